"""Tensors out of a pickle whose other contents are unknown, without importing or calling anything
that it names.

Training tools pickle their hyperparameters, callbacks or whole modules beside the weights.
`torch.load(weights_only=True)` rightly refuses such files altogether. Here a name in the pickle
becomes something real only if it stands in `_tensors` below; every other one becomes a class made
on the spot that does nothing.
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
    """Stands for an object whose class is unknown: it takes whatever a pickle does to it, and keeps
    its state alone.
    """

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


def _tensors(module: str, name: str) -> Callable[..., Any] | None:
    """What a tensor is written with. Functions are made anew, because a pickle can set attributes
    of what it names.
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
    """The content of a PyTorch file, and the names in it that were replaced by `OpaqueObject`,
    sorted.

    Raises whatever the reader raises when the file is no PyTorch file, and ValueError for what it
    must not be.
    """
    refuse_archives(path)
    met: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if known := _tensors(module, name):
                return known
            met.add(f"{module}.{name}")
            return type("OpaqueObject", (OpaqueObject,), {})

    # torch.load takes the reader of pickles as an argument, and finds nothing in a file but through
    # it.
    reader: Any = SimpleNamespace(
        __name__="inert",
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
    )
    with path.open("rb") as file:  # by its name torch would judge what it is
        content = torch.load(
            file, map_location="cpu", weights_only=False, pickle_module=reader, encoding="latin1"
        )
    return _opened(content), sorted(met)


def refuse_archives(path: Path) -> None:
    """Raises ValueError for what torch.load would hand to TorchScript, which runs code, or unpack
    to disk, and for archives of something else.
    """
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


def _opened(content: Any, depth: int = 0) -> Any:
    """The same with each pickled module replaced by its state dict; what lies deeper than any
    layout stays closed.
    """
    if isinstance(content, OpaqueObject):
        return _state_dict(content)
    if isinstance(content, dict) and depth < 5:
        return {key: _opened(value, depth + 1) for key, value in content.items()}
    return content


def _state_dict(module: OpaqueObject, prefix: str = "") -> dict[str, Tensor] | OpaqueObject:
    state = module.state
    kept = ("_parameters", "_buffers", "_modules")
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in kept):
        return module
    unsaved = state.get("_non_persistent_buffers_set") or ()
    found: dict[str, Tensor] = {}
    for key, value in [*state["_parameters"].items(), *state["_buffers"].items()]:
        if isinstance(value, Tensor) and not (isinstance(unsaved, set) and key in unsaved):
            found[f"{prefix}{key}"] = value
    for key, child in state["_modules"].items():
        if isinstance(child, OpaqueObject) and isinstance(
            inner := _state_dict(child, f"{prefix}{key}."), dict
        ):
            found.update(inner)
    return found
