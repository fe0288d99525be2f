"""What every command needs to speak with a person."""

from rich.console import Console

err = Console(stderr=True)


def plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", r"\[")


def tell(text: str) -> None:
    """A line on standard error, as it stands."""
    err.print(plain(text), highlight=False, soft_wrap=True)
