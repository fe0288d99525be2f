"""Imports of objects of other packages by name: `package.module:Name`."""

import difflib
import importlib
import sys
from typing import Any

from selftaught.errors import UserError


class MissingObject(UserError):
    """A named object cannot be imported from Python's path."""


def import_object(name: str, what: str) -> Any:
    """Import the object `package.module:Name` from Python's path.

    `what`: its kind, for error lines. Raises MissingObject where there is no such module or name,
    or where the import fails.
    """
    module_name, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # the import of a user's module can raise anything
        raise MissingObject(
            f"there is no {what} '{name}': {module_name} cannot be imported ({error}); install it,"
            " or put its folder on PYTHONPATH"
        ) from error
    for part in path.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "use a name that it defines"
            raise MissingObject(
                f"there is no {what} '{name}': {module_name} has no {part}; {remedy}"
            )
        value = getattr(value, part)
    return value


def object_name(value: Any) -> str:
    """Return the name by which `import_object` finds a class or function.

    Raises UserError where there is none.
    """
    module, path = value.__module__, value.__qualname__
    if module == "__main__":  # a module that `python -m` runs also has its own name
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else module
    if "<locals>" in path:
        raise UserError(
            f"{path} is defined inside a function, where it cannot be imported: define it at the"
            f" top level of {module}"
        )
    return f"{module}:{path}"
