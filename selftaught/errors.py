"""What a user can mend: one clear line, which the command line prints before it exits with 2."""

import math


class UserError(Exception):
    """Bad input, said in one line together with what to do about it."""


def require(fine: bool, name: str, rule: str, value: float) -> None:
    """Refuse a setting that makes no sense, or is no number."""
    if not fine or not math.isfinite(value):
        raise UserError(f"{name} must be {rule}, and not {value:g}")
