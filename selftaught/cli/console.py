"""What every command needs to speak with a person."""

from rich.console import Console

from selftaught.errors import UserError

err = Console(stderr=True)


def plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", r"\[")


def tell(text: str) -> None:
    """A line on standard error, as it stands."""
    err.print(plain(text), highlight=False, soft_wrap=True)


def device_named(name: str) -> str:
    import torch  # here: to say how it is used, selftaught need not wait for it

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: use --device cpu, or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
