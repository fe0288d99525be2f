"""Output to the terminal."""

from rich.console import Console

err = Console(stderr=True)


def plain(text: str) -> str:
    """Escape the markup of rich."""
    return text.replace("[", r"\[")


def tell(text: str) -> None:
    """Print a line to standard error, without markup."""
    err.print(plain(text), highlight=False, soft_wrap=True)
