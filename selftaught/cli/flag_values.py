"""Words of a command line as values: what makes no sense is one line that says what would."""

from types import NoneType
from typing import Any, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from selftaught.config.overrides import value


def reader(flag: str, kind: Any, metavar: str) -> PrimitiveConstructorSpec[Any]:
    """For values of `kind`: str, int, float, a Literal of strings, a number or a Literal, a tuple
    of any number of one of them; or None, not given.

    (tyro's own reader offers 'None' among the choices, and says of a word that is no number which
    types it tried.)
    """
    optional = NoneType in get_args(kind)
    single = next(k for k in (get_args(kind) if optional else (kind,)) if k is not NoneType)
    several = get_origin(single) is tuple
    single = get_args(single)[0] if several else single

    def read(words: list[str]) -> Any:
        values = tuple(value(f"--{flag}", word, single) for word in words)
        return values if several else values[0]

    def written(given: Any) -> list[str]:
        return [str(v) for v in (given if isinstance(given, tuple) else (given,))]

    return PrimitiveConstructorSpec(
        "*" if several else 1, metavar, read, lambda given: True, written
    )
