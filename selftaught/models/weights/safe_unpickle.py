"""An unpickler that reads tensors without importing or calling any other name in the pickle.

Training tools pickle hyperparameters, callbacks or whole modules beside the weights, and
`torch.load(weights_only=True)` refuses such files. Here only the names in `_resolve_name` are
resolved. Every other name becomes a new class without behaviour.
"""

import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class OpaqueObject:
    """A placeholder for an object of another class, which stores only the pickled state."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> "OpaqueObject":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "OpaqueObject":
        return OpaqueObject()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: Any) -> None:
        pass

    def _ignore(self, *_: Any) -> None:
        pass

    append = extend = add = _ignore


def _resolve_name(module: str, name: str) -> Callable[..., Any] | None:
    """The function that rebuilds a tensor or its container; None for any other name.

    Functions are created anew, because a pickle can set attributes of the objects that it names.
    """
    if module == "collections" and name == "OrderedDict":
        return OrderedDict
    if module == "torch._utils" and name == "_rebuild_tensor_v2":
        return lambda storage, offset, size, stride, *_: torch._utils._rebuild_tensor(
            storage, offset, size, stride
        )
    if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return lambda data, *_: data
    return None


def load(path: Path) -> tuple[Any, list[str]]:
    """Load a PyTorch file; returns its content, and the sorted names that became OpaqueObject.

    Raises ValueError for archives that are refused, and torch's errors for other broken files.
    """
    refuse_archives(path)
    opaque: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if function := _resolve_name(module, name):
                return function
            opaque.add(f"{module}.{name}")
            return type("OpaqueObject", (OpaqueObject,), {})

    # torch.load resolves all names in a file by the pickle module that it is given.
    reader: Any = SimpleNamespace(
        __name__="inert",
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
    )
    with path.open("rb") as file:  # torch.load decides on the format by the name of a file
        content = torch.load(
            file, map_location="cpu", weights_only=False, pickle_module=reader, encoding="latin1"
        )
    return _extract_states(content), sorted(opaque)


def refuse_archives(path: Path) -> None:
    """Raise ValueError for TorchScript, which runs code, for tar files, and for other archives."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            raise ValueError(
                "it is a TorchScript archive, which is code: save the module's state dict instead, "
                "by torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') where you trust it"
            )
        if not any(name.endswith("data.pkl") for name in names):
            raise ValueError(_other_archive(names))
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        if {"pickle", "storages", "tensors"} <= set(names):
            raise ValueError("it is a tar archive, as PyTorch wrote before 0.1.10: save it anew")
        raise ValueError(
            f"it is a tar archive ({_some(names)}): unpack it, and give the file of weights in it"
        )


def _other_archive(names: list[str]) -> str:
    if names and all(name.endswith(".npy") for name in names):
        return (
            "it is an archive of NumPy (npz): timm.create_model(NAME, checkpoint_path=FILE) reads"
            " those of JAX, save that"
        )
    if any(name.endswith(".weights.h5") for name in names):
        return "it is a network of Keras: convert it to PyTorch first"
    if any(
        name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names
    ):
        return "it is a program of torch.export: save the module's state dict instead"
    return (
        f"it is a zip archive ({_some(names) or 'empty'}): unpack it, and give the file of weights"
        " in it"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _extract_states(content: Any, depth: int = 0) -> Any:
    """Replace each pickled module by its state dict, down to a depth of five dicts."""
    if isinstance(content, OpaqueObject):
        return _state_dict(content)
    if isinstance(content, dict) and depth < 5:
        return {key: _extract_states(value, depth + 1) for key, value in content.items()}
    return content


def _state_dict(module: OpaqueObject, prefix: str = "") -> dict[str, Tensor] | OpaqueObject:
    """The state dict of a pickled module; any other object as it is."""
    state = module.state
    parts = ("_parameters", "_buffers", "_modules")
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in parts):
        return module
    unsaved = state.get("_non_persistent_buffers_set") or ()
    tensors: dict[str, Tensor] = {}
    for key, value in [*state["_parameters"].items(), *state["_buffers"].items()]:
        if isinstance(value, Tensor) and not (isinstance(unsaved, set) and key in unsaved):
            tensors[f"{prefix}{key}"] = value
    for key, child in state["_modules"].items():
        if isinstance(child, OpaqueObject):
            inner = _state_dict(child, f"{prefix}{key}.")
            if isinstance(inner, dict):
                tensors.update(inner)
    return tensors
