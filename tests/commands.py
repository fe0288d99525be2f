"""Words of a command line in tests."""


def argv(line: str, *more: object) -> list[str]:
    """The words of `line`, and `more`, which may hold spaces, as they are."""
    return [*line.split(), *map(str, more)]
