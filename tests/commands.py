"""Commands in tests: their words, and running them in this process."""

from selftaught.cli.main import main


def argv(line: str, *more: object) -> list[str]:
    """The words of `line`, and `more`, which may hold spaces, as they are."""
    return [*line.split(), *map(str, more)]


def succeed(*words: object) -> None:
    """Run `selftaught WORDS`, which must end well."""
    assert main([*map(str, words)]) == 0
