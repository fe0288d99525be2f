"""Conversion of command-line words to values, with one-line errors that name valid values."""

from types import NoneType
from typing import Any, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from selftaught.config.overrides import value


def reader(flag: str, kind: Any, metavar: str) -> PrimitiveConstructorSpec[Any]:
    """A reader of values of `kind` for tyro.

    kind: str, int, float, a Literal of strings, a number or a Literal, or a tuple of one of them;
    also None, if the flag is absent. tyro's own reader lists 'None' as a choice, and its errors
    list types instead of valid values.
    """
    optional = NoneType in get_args(kind)
    single = next(k for k in (get_args(kind) if optional else (kind,)) if k is not NoneType)
    several = get_origin(single) is tuple
    single = get_args(single)[0] if several else single

    def read(words: list[str]) -> Any:
        values = tuple(value(f"--{flag}", word, single) for word in words)
        return values if several else values[0]

    def write(default: Any) -> list[str]:
        return [str(v) for v in (default if isinstance(default, tuple) else (default,))]

    return PrimitiveConstructorSpec(
        "*" if several else 1, metavar, read, lambda default: True, write
    )
