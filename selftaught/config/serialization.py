"""A stage as JSON, and back."""

from typing import Any

import cattrs

from selftaught.config.defaults import OLD_MAX_PIXELS
from selftaught.config.registry import find_name
from selftaught.config.stage import Stage
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.hard.base import HardExample
from selftaught.method import Method
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS, Optimizer

_NAMED: dict[type, dict[str, type]] = {
    Method.Config: {name: method.Config for name, method in METHODS.items()},
    HardExample: dict(HARD),
    Optimizer: dict(OPTIMIZERS),
}


def _converter() -> cattrs.Converter:
    """Plain JSON types for every dataclass; one of several kinds says its name. Unknown fields are
    refused.
    """
    plain = cattrs.Converter(forbid_extra_keys=True)
    converter = plain.copy()
    for base, kinds in _NAMED.items():

        def unstructure(value: Any, kinds: dict[str, type] = kinds) -> dict[str, Any]:
            name = next(name for name, kind in kinds.items() if kind is type(value))
            return {"name": name, **plain.unstructure(value)}

        def structure(
            value: dict[str, Any], _: type, kinds: dict[str, type] = kinds, base: type = base
        ) -> Any:
            what = {Method.Config: "method", HardExample: "hard example", Optimizer: "optimizer"}[
                base
            ]
            kind = kinds[find_name(value["name"], kinds, what)]
            return plain.structure({k: v for k, v in value.items() if k != "name"}, kind)

        converter.register_unstructure_hook(base, unstructure)
        converter.register_structure_hook(base, structure)
    return converter


def to_json(stage: Stage) -> dict[str, Any]:
    written: dict[str, Any] = _converter().unstructure(stage)
    return written


def from_json(written: dict[str, Any]) -> Stage:
    """Raises UserError that names what does not fit."""
    if not isinstance(written, dict):
        raise UserError("this configuration does not fit: it is no JSON object")
    if isinstance(written.get("data"), dict):
        written = {**written, "data": {"max_pixels": OLD_MAX_PIXELS, **written["data"]}}
    try:
        return _converter().structure(written, Stage)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        reasons = (
            cattrs.transform_error(error)
            if isinstance(error, cattrs.BaseValidationError)
            else [repr(error)]
        )
        raise UserError(f"this configuration does not fit: {'; '.join(reasons)}") from error
