"""A stage as JSON, and back."""

from collections.abc import Callable
from functools import cache
from typing import Any

import cattrs

from selftaught.config import registry
from selftaught.config.defaults import OLD_MAX_PIXELS
from selftaught.config.mismatch import describe_mismatch
from selftaught.config.stage import Stage, method_of
from selftaught.errors import UserError
from selftaught.hard.base import HardExample
from selftaught.method import Method
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS, Optimizer

# For each kind that a stage stores by name: its noun, the function that finds the class by its
# name, and the function that returns the name of a value.
_KINDS: dict[type, tuple[str, Callable[[str], type], Callable[[Any], str]]] = {
    Method.Config: (
        "method",
        lambda name: registry.find_method(name).Config,
        lambda config: registry.kind_name(method_of(config), METHODS),
    ),
    HardExample: ("hard example", registry.find_hard, registry.hard_name),
    Optimizer: (
        "optimizer",
        registry.find_optimizer,
        lambda optimizer: registry.kind_name(type(optimizer), OPTIMIZERS),
    ),
}


@cache
def _converter() -> cattrs.Converter:
    """Build a converter between dataclasses and JSON types. It refuses unknown fields.

    A value of one of `_KINDS` has its name in the field `name`. The converter is built once, as it
    compiles functions for each class that it meets.
    """
    plain = cattrs.Converter(forbid_extra_keys=True)
    converter = plain.copy()
    for base, (noun, find, name_of) in _KINDS.items():

        def unstructure(value: Any, name_of: Callable[[Any], str] = name_of) -> dict[str, Any]:
            return {"name": name_of(value), **plain.unstructure(value)}

        def structure(
            value: Any, _: type, noun: str = noun, find: Callable[[str], type] = find
        ) -> Any:
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise UserError(f'{noun}: give an object with "name" and its fields')
            kind = find(value["name"])
            return plain.structure({k: v for k, v in value.items() if k != "name"}, kind)

        converter.register_unstructure_hook(base, unstructure)
        converter.register_structure_hook(base, structure)
    return converter


def to_json(stage: Stage) -> dict[str, Any]:
    """Return a stage as JSON types."""
    content: dict[str, Any] = _converter().unstructure(stage)
    return content


def from_json(content: dict[str, Any]) -> Stage:
    """Return the stage of `to_json`.

    Raises UserError, which names the invalid fields, and MissingObject for a class that cannot be
    imported.
    """
    if not isinstance(content, dict):
        raise UserError("this configuration does not fit: it is not a JSON object")
    if isinstance(content.get("data"), dict):
        content = {**content, "data": {"max_pixels": OLD_MAX_PIXELS, **content["data"]}}
    import_own(content)
    try:
        return _converter().structure(content, Stage)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"this configuration does not fit: {describe_mismatch(error)}") from error


def import_own(content: dict[str, Any]) -> None:
    """Import the classes of other packages. Raises MissingObject where one cannot be imported.

    This runs before the conversion, so the error does not blame the configuration.
    """
    for field, find in (
        ("method", registry.find_method),
        ("hard", registry.find_hard),
        ("optimizer", registry.find_optimizer),
    ):
        values = content.get(field)
        for value in values if isinstance(values, list) else [values]:
            name = value.get("name") if isinstance(value, dict) else None
            if isinstance(name, str) and ":" in name:
                find(name)
