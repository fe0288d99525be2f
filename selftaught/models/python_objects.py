"""Objects of other packages by name: `package.module:Name`."""

import difflib
import importlib
import sys
from typing import Any

from selftaught.errors import UserError


class MissingObject(UserError):
    """What a name stands for is not on Python's path."""


def import_object(name: str, what: str) -> Any:
    """What `package.module:Name` names, imported from Python's path.

    Raises MissingObject where there is no such module or name, or where importing it fails.
    """
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's can fail in any way while it is imported
        raise MissingObject(
            f"there is no {what} '{name}': {module_name} cannot be imported ({error}); install it,"
            " or put its folder on PYTHONPATH"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "name what it defines"
            raise MissingObject(
                f"there is no {what} '{name}': {module_name} has no {part}; {remedy}"
            )
        found = getattr(found, part)
    return found


def object_name(found: Any) -> str:
    """The name by which `import_object` finds a class or function. Raises UserError where none
    does.
    """
    module, path = found.__module__, found.__qualname__
    if module == "__main__":  # started by `python -m`, it has a name of its own
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else module
    if "<locals>" in path:
        raise UserError(
            f"{path} is defined inside a function, where no run finds it again: define it at the"
            f" top of {module}"
        )
    return f"{module}:{path}"
