"""A stage as JSON, and back."""

from collections.abc import Callable
from typing import Any

import cattrs

from selftaught.config import registry
from selftaught.config.defaults import OLD_MAX_PIXELS
from selftaught.config.stage import Stage, method_of
from selftaught.errors import UserError
from selftaught.hard.base import HardExample
from selftaught.method import Method
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS, Optimizer

# of each kind that a stage holds by name: what finds the class, and what names a value
_KINDS: dict[type, tuple[Callable[[str], type], Callable[[Any], str]]] = {
    Method.Config: (
        lambda name: registry.find_method(name).Config,
        lambda config: registry.kind_name(method_of(config), METHODS),
    ),
    HardExample: (registry.find_hard, registry.hard_name),
    Optimizer: (
        registry.find_optimizer,
        lambda optimizer: registry.kind_name(type(optimizer), OPTIMIZERS),
    ),
}


def _converter() -> cattrs.Converter:
    """Plain JSON types for every dataclass; one of several kinds says its name. Unknown fields are
    refused.
    """
    plain = cattrs.Converter(forbid_extra_keys=True)
    converter = plain.copy()
    for base, (find, name_of) in _KINDS.items():

        def unstructure(value: Any, name_of: Callable[[Any], str] = name_of) -> dict[str, Any]:
            return {"name": name_of(value), **plain.unstructure(value)}

        def structure(value: dict[str, Any], _: type, find: Callable[[str], type] = find) -> Any:
            kind = find(value["name"])
            return plain.structure({k: v for k, v in value.items() if k != "name"}, kind)

        converter.register_unstructure_hook(base, unstructure)
        converter.register_structure_hook(base, structure)
    return converter


def to_json(stage: Stage) -> dict[str, Any]:
    written: dict[str, Any] = _converter().unstructure(stage)
    return written


def from_json(written: dict[str, Any]) -> Stage:
    """Raises UserError that names what does not fit, MissingObject for what cannot be imported."""
    if not isinstance(written, dict):
        raise UserError("this configuration does not fit: it is no JSON object")
    if isinstance(written.get("data"), dict):
        written = {**written, "data": {"max_pixels": OLD_MAX_PIXELS, **written["data"]}}
    import_own(written)
    try:
        return _converter().structure(written, Stage)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        reasons = (
            cattrs.transform_error(error)
            if isinstance(error, cattrs.BaseValidationError)
            else [repr(error)]
        )
        raise UserError(f"this configuration does not fit: {'; '.join(reasons)}") from error


def import_own(written: dict[str, Any]) -> None:
    """Import the kinds that are of other packages. Raises MissingObject, as it is, where one is not
    there: the configuration itself is sound.
    """
    for field, find in (
        ("method", registry.find_method),
        ("hard", registry.find_hard),
        ("optimizer", registry.find_optimizer),
    ):
        values = written.get(field)
        for value in values if isinstance(values, list) else [values]:
            name = value.get("name") if isinstance(value, dict) else None
            if isinstance(name, str) and ":" in name:
                find(name)
