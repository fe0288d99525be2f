"""Files of weights: located at a path and read without running code from them.

A file is recognised by its first bytes, because downloads often have a wrong suffix.
"""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import torch
from torch import Tensor

from selftaught.errors import UserError
from selftaught.models.weights import safe_unpickle

BACKBONE = "backbone.safetensors"  # of a run
RECORDS = ("run.json", "plan.json")  # the description of a run and of an adaptation
OURS = ("name", "stem", "mean", "std", "image_size")  # metadata of a file of this package
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".torch")
# Files of the Hugging Face hub, the best first. An index lists the parts of split weights.
HUB = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
SETTINGS = ("config.json", "preprocessor_config.json")  # beside them
CHECKPOINT = {"guard", "next", "skipped"}  # keys of every checkpoint of a run


@dataclass(frozen=True)
class Content:
    """The content of a file of weights."""

    path: Path
    data: Any  # nested dicts with tensors
    metadata: Mapping[str, str]
    opaque: tuple[str, ...] = ()  # names of the pickled objects that were not unpickled
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a Hugging Face folder, by file

    @property
    def is_ours(self) -> bool:
        """Whether this package wrote the file."""
        return all(isinstance(self.metadata.get(key), str) for key in OURS)

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json of timm or transformers; empty elsewhere."""
        config = self.settings.get(SETTINGS[0])
        return config if isinstance(config, dict) else {}

    @property
    def architecture(self) -> str | None:
        """The network's name, if the file or the settings beside it state one."""
        name = self.data.get("arch") if isinstance(self.data, dict) else None
        name = name if isinstance(name, str) else self.config.get("architecture")
        return name if isinstance(name, str) else None

    def __str__(self) -> str:
        return str(self.path)


# Location


def locate(source: str | Path) -> tuple[Path, ...]:
    """Locate the files with the weights of `source`: one file, or all parts of split weights.

    The source is a file, or the folder of a run or of `adapt`, or the run.json or plan.json in it.
    It can also be a folder of the Hugging Face hub, or any folder with one file of weights. Raises
    UserError if there is no file of weights, or more than one.
    """
    path = folder_of(Path(source))
    if path.is_dir():
        return _in_folder(path)
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which is not there: fetch the weights again."
        )
    if not path.is_file():
        away = "://" in str(source) or str(source).startswith("hf-hub:") or ":/" in str(source)
        raise UserError(
            f"There is no file {source}."
            + (" Addresses are not fetched: download it, and give the file." if away else "")
        )
    if re.search(r"-\d+-of-\d+\.", path.name):
        raise UserError(
            f"{path} is one of several files that weights are spread over: give the folder,"
            f" {path.parent}."
        )
    return _shards(path) if path.name.endswith(".index.json") else (path,)


def folder_of(path: Path) -> Path:
    """The folder of a run.json or plan.json; any other path as it is."""
    return path.parent if path.name in RECORDS and path.is_file() else path


def sources(source: str | Path) -> tuple[Path, ...]:
    """All files that are read for `source`: its weights, and the settings beside them."""
    files = locate(source)
    return (*files, *(files[0].parent / name for name in _settings(files[0])))


def _in_folder(folder: Path) -> tuple[Path, ...]:
    if (folder / BACKBONE).is_file():
        return (folder / BACKBONE,)
    if (folder / "run.json").is_file():
        checkpoints = sorted(str(file) for file in folder.glob("checkpoints/*.pt"))
        other = f", or give a checkpoint of it: {', '.join(checkpoints)}" if checkpoints else ""
        raise UserError(
            f"{folder} has no backbone yet: finish the run by --out {folder} --resume{other}."
        )
    if (folder / "plan.json").is_file():
        stage = _outcome(folder)
        if not stage.is_dir():
            raise UserError(
                f"{folder} names {stage} as its outcome, which is not there: give the folder of"
                " another stage."
            )
        return _in_folder(stage)
    for name in HUB:
        if (folder / name).is_file():
            return locate(folder / name)
    # The hub's cache has a level of snapshots.
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    if len(snapshots) == 1:
        return _in_folder(snapshots[0])
    if list(folder.glob("*.distcp")):
        raise UserError(
            f"{folder} is a sharded checkpoint: convert it to one file by torch's"
            " dcp_to_torch_save(FOLDER, FILE), and give that."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(files) == 1:
        return (files[0],)
    if files:
        raise UserError(
            f"{folder} holds {len(files)} files of weights: give one of them: {list_some(files)}."
        )
    below = sorted(path for suffix in SUFFIXES for path in folder.glob(f"*/*{suffix}"))[:100]
    if below:
        hint = f"below it are {list_some(below)}"
    else:
        hint = f"it holds {list_some(sorted(folder.iterdir())) or 'nothing'}"
    raise UserError(f"There is no file of weights in {folder}, and it is not a run: {hint}.")


def _outcome(folder: Path) -> Path:
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        return folder / str(plan["stages"][plan["outcome"]]["folder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'plan.json'} cannot be read ({error}): give the folder of a stage."
        ) from error


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{index} is no index of weights: give the file of weights itself."
        ) from None
    files = tuple(index.parent / Path(str(name)).name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{index} names {len(files)} files, of which {len(missing)} are not there:"
            f" {list_some(missing)}."
        )
    return files


def _settings(file: Path) -> dict[str, Any]:
    """The settings beside a file of the Hugging Face hub, by name of file."""
    if file.name not in HUB and "-of-" not in file.name:
        return {}
    settings = {}
    for name in SETTINGS:
        try:
            settings[name] = json.loads((file.parent / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return settings


# Reading


def read(source: str | Path) -> Content:
    """Read the weights of `source` without running code; raise UserError where there are none.

    Pickled objects other than tensors and plain data become opaque.
    """
    files = locate(source)
    parts = [_read_file(file) for file in files]
    if len(parts) > 1:
        merged: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part.data, dict) or merged.keys() & part.data.keys():
                raise UserError(
                    f"{part} is no part of weights that are spread over {len(files)} files: fetch"
                    " them again."
                )
            merged |= part.data
        opaque = sorted({name for part in parts for name in part.opaque})
        parts = [Content(files[0].parent, merged, parts[0].metadata, tuple(opaque))]
    return replace(parts[0], settings=_settings(files[0]))


def _read_file(path: Path) -> Content:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Ask for the permission to read it."
        ) from None
    if kind := describe(path, head):
        raise UserError(f"{path} is broken, or no file of weights: {kind}.")
    if _is_safetensors(head):
        return _read_safetensors(path)
    opaque: list[str] = []
    try:
        safe_unpickle.refuse_archives(path)
        # torch.load gets a handle, because it decides on the format by the name of a file.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of old formats, which can still be read
            try:
                data = torch.load(file, map_location="cpu", weights_only=True)
            except UnpicklingError:
                data, opaque = safe_unpickle.load(path)
    except Exception as error:  # torch raises many types for a broken file
        reason = (str(error).splitlines() or [""])[0]
        # The message of a KeyError is the key alone.
        reason = reason if " " in reason else type(error).__name__
        if "magic number" in reason:
            reason = "it is a pickle that PyTorch did not write: save the tensors by torch.save"
        raise UserError(f"{path} is broken, or no PyTorch file: {reason.rstrip('.')}.") from None
    if isinstance(data, dict) and data.keys() >= CHECKPOINT:
        return _read_checkpoint(path, data)
    metadata = data.get("metadata") if isinstance(data, dict) else None
    return Content(path, data, metadata if isinstance(metadata, dict) else {}, tuple(opaque))


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30


def _read_safetensors(path: Path) -> Content:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            data = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is broken or cut off, as safetensors: {error}. Fetch or write it again."
        ) from None
    if "widths" in metadata and OURS[0] not in metadata:
        raise UserError(
            f"{path} is a run's head alone: give the run's folder, or the {BACKBONE} beside it."
        )
    return Content(path, data, metadata)


def _read_checkpoint(path: Path, data: dict[str, Any]) -> Content:
    """The backbone in a checkpoint of a run, as an export at that step would give it."""
    run = path.parent.parent
    instead = f"give {run}, or the {BACKBONE} in it"
    state = data.get("step")
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no weights, which lie in files of shards: {instead}.")
    prefix = "method.backbone."
    inside = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    network = {
        key.removeprefix("network."): value
        for key, value in inside.items()
        if key.startswith("network.")
    }
    if not network or any(".base_layer." in key for key in network):
        raise UserError(
            f"{path} is a checkpoint with low-rank additions that are not merged yet: {instead}."
        )
    metadata = {key: format_statistics(inside[key]) for key in ("mean", "std")}
    try:
        config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
        metadata |= {
            "name": config["backbone"],
            "stem": config["stem"],
            "image_size": str(config["size"]),
            "size": str(config["size"]),
        }
    except (OSError, ValueError, KeyError):
        pass  # the checkpoint was moved, so the user must name the network
    return Content(path, network, metadata)


def format_statistics(values: Tensor) -> str:
    """Values as JSON, with the shortest digits that give the same float32 again."""
    return json.dumps([float(str(value)) for value in values.cpu().numpy()])


# Files that are no weights

_MAGIC = (
    (
        b"version https://git-lfs",
        "it is a pointer of Git LFS, not the weights: run git lfs pull where it was cloned",
    ),
    (
        b"version https://hawser",
        "it is a pointer of Git LFS, not the weights: run git lfs pull where it was cloned",
    ),
    (b"/annex/objects/", "it is a pointer of git-annex, not the weights: run git annex get"),
    (
        b"\x89HDF\r\n\x1a\n",
        "it is HDF5, as Keras and TensorFlow write it: convert it to PyTorch first",
    ),
    (b"GGUF", "it is GGUF, of llama.cpp: give the weights in PyTorch or safetensors"),
    (b"\x93NUMPY", "it is an array of NumPy: give a PyTorch file or safetensors"),
    (b"\x1f\x8b", "it is compressed by gzip: unpack it first"),
    (b"BZh", "it is compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "it is compressed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it first"),
    (b"Rar!", "it is a RAR archive: unpack it first"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
    (b"\x89PNG", "it is a PNG image"),
    (b"%PDF", "it is a PDF"),
    (b"PAR1", "it is a Parquet file, of images or a table: give it by --data"),
)
_BY_SUFFIX = {
    ".onnx": (
        "it is ONNX, a graph without the names of PyTorch's weights: give the network's state dict"
    ),
    ".h5": "Keras and TensorFlow write such files: convert it to PyTorch first",
    ".keras": "Keras writes such files: convert it to PyTorch first",
    ".pb": "TensorFlow writes such files: convert it to PyTorch first",
    ".tflite": "TensorFlow Lite writes such files: give the weights in PyTorch",
    ".msgpack": "Flax writes such files: convert it to PyTorch first",
    ".index": "it belongs to a checkpoint of TensorFlow: convert it to PyTorch first",
    ".engine": "TensorRT writes such files: give the weights in PyTorch",
    ".gguf": "it is GGUF, of llama.cpp: give the weights in PyTorch or safetensors",
}


def describe(path: Path, head: bytes) -> str | None:
    """Describe a file that cannot hold weights, with a remedy; None if it may hold weights.

    head: the first bytes of the file.
    """
    if not head:
        return "it is empty: fetch or write it again"
    if description := next((text for magic, text in _MAGIC if head.startswith(magic)), None):
        return description
    if head[4:8] == b"TFL3":
        return _BY_SUFFIX[".tflite"]
    if head.startswith(b"PK"):  # `safe_unpickle` tells PyTorch files from npz and others
        if zipfile.is_zipfile(path):
            return None
        return "it is a zip archive without its end, so cut off: fetch it again"
    if (text := _decode_text(head)) is not None:
        return _describe_text(path, text)
    if ".data-0" in path.name:
        return _BY_SUFFIX[".index"]
    return None if _is_safetensors(head) else _BY_SUFFIX.get(path.suffix.lower())


def _decode_text(head: bytes) -> str | None:
    """The bytes as text, or None if they are no text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise the last character is cut off
            return None
        text = head[: error.start].decode("utf-8")
    return None if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text) else text


def _describe_text(path: Path, text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n")
    lower = start[:300].lower()
    tags = ("<!doctype html", "<html", "<head", "<body", "<script")
    if lower.startswith(tags) or "<html" in lower:
        return "it is a web page (HTML): download the file itself, not the page that shows it"
    excerpt = " ".join(start[:60].split()) + ("..." if len(start) > 60 else "")
    if start.startswith(("{", "[")):
        remedy = "give the file of weights itself, or the folder of both"
        if path.parent.joinpath("run.json").is_file():
            remedy = f"give the run's folder, {path.parent}"
        return f"it is JSON ({excerpt}): {remedy}"
    if start.startswith("<"):
        return f"it is XML, often an error message of a server ({excerpt}): fetch it again"
    if start:
        return f"it is text ({excerpt}): fetch or write it again"
    return "it is blank: fetch or write it again"


def list_some(names: Sequence[object], most: int = 3) -> str:
    """List the first `most` names, with an ellipsis if there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
