"""Words of a command line as values: what makes no sense is one line that says what would."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from selftaught.errors import UserError

Count = int | Literal["auto"]


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


def value(flag: str, word: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if word not in get_args(kind):
            raise UserError(f"{flag} takes {', '.join(get_args(kind))}, and not '{word}'")
        return word
    names: tuple[str, ...] = ()
    if get_origin(kind) in (Union, UnionType):
        kind, literal = get_args(kind)
        names = get_args(literal)
    if word in names:
        return word
    try:
        return kind(word)
    except ValueError:
        number = f"a {'whole ' if kind is int else ''}number"
        raise UserError(f"{flag} takes {' or '.join((*names, number))}, and not '{word}'") from None
