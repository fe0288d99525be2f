"""Files and folders of weights, and the errors for files that are no weights."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from selftaught.models import heads
from selftaught.models.backbone import Backbone
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import weight_files
from tests.networks import RESNET, State, assert_same_weights, at, lived_in, write


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    network = backbone_module.create(RESNET, image_size=32, **statistics)
    lived_in(network.network)
    return network


@pytest.fixture
def state(backbone: Backbone) -> State:
    return dict(backbone.network.state_dict())


Capture = pytest.CaptureFixture[str]


def load_and_compare(source: Path, backbone: Backbone) -> str:
    """Load `source` into a fresh network, and compare."""
    fresh = backbone_module.create(RESNET)
    line = weights_io.load_weights(fresh, source)
    assert "\n" not in line
    assert_same_weights(fresh.network, backbone.network)
    return line


def zipped(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, kernel=np.ones(3))
    return buffer.getvalue()


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"a" + b"\nsize 46830571\n"
)
# Content, and a word that the line must have.
NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "lfs": (POINTER, "Git LFS"),
    "annex": (b"/annex/objects/SHA256E-s1--aa.pth\n", "git-annex"),
    "html": (b"<!DOCTYPE html>\n<html><head><title>404</title>", "HTML"),
    "html without doctype": (b"\n  <html lang='en'><body>Sign in</body></html>", "HTML"),
    "html utf-8 mark": (b"\xef\xbb\xbf<!doctype HTML><p>", "HTML"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "json": (b'{"error": "Repository not found"}', "JSON"),
    "json list": (b'["a"]', "JSON"),
    "text": (b"Too many requests, try again later\n", "text"),
    "text in another language": ("Datei nicht gefunden: Gewichte für ein Netz".encode(), "text"),
    "utf-16": ("not found".encode("utf-16"), "text"),
    "empty": (b"", "empty"),
    "blank": (b"\n\n", "blank"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "gguf": (b"GGUF\x03" + bytes(100), "GGUF"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(100), "NumPy"),
    "npz": (npz(), "NumPy"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow"),
    "keras": (zipped({"config.json": b"{}", "model.weights.h5": b"x"}), "Keras"),
    "zip": (
        zipped({"resnet18/readme.txt": b"x", "resnet18/weights.pth": b"x"}),
        "resnet18/readme.txt",
    ),
    "empty zip": (zipped({}), "zip"),
    "torch.export": (zipped({"a/models/model.json": b"{}"}), "torch.export"),
    "zip cut off": (zipped({"archive/data.pkl": bytes(900)})[:500], "cut off"),
    "tar": (tarred({"weights/a.pth": b"x"}), "weights/a.pth"),
    "old tar": (tarred({"pickle": b"x", "storages": b"x", "tensors": b"x"}), "before 0.1.10"),
    "gzip": (gzip.compress(b"x" * 100), "gzip"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(50), "JPEG"),
    "pdf": (b"%PDF-1.7\n" + bytes(50), "PDF"),
    "parquet": (b"PAR1" + bytes(50), "Parquet"),
    "rubbish": (bytes(range(1, 256)), "broken"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_other_kinds_of_files_are_named(tmp_path: Path, kind: str, suffix: str) -> None:
    content, word = NO_WEIGHTS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    for read in (weights_io.guess, weights_io.load_backbone, load):
        error = refused(read, path)
        assert str(path) in error
        assert word in error


def load(source: Path | str) -> str:
    return weights_io.load_weights(backbone_module.create(RESNET), source)


def refused(read: Callable[[Path], Any], path: Path, match: str | None = None) -> str:
    """The one line of the error, which names the file."""
    with pytest.raises(UserError, match=match) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "suffix", [".onnx", ".h5", ".pb", ".tflite", ".msgpack", ".keras", ".ckpt.data-00000-of-00001"]
)
def test_kinds_of_files_known_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(range(200, 256)))
    refused(weight_files.read, path)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_off(tmp_path: Path, state: State, kind: str, share: float) -> None:
    path = tmp_path / "weights.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(weight_files.read, path)


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    path = write(tmp_path / "weights.pth", state)
    (tmp_path / "link.pth").symlink_to(tmp_path / "absent")
    refused(weight_files.read, tmp_path / "link.pth", "absent")

    def closed(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", closed)
    refused(weight_files.read, path, "Permission denied")


@pytest.mark.parametrize(
    "name",
    ["https://example.org/a.pth", "hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "a.pth"],
)
def test_missing_paths(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load(name)
    with pytest.raises(UserError, match="no file"):
        weights_io.load_backbone(tmp_path)


@pytest.mark.parametrize(
    "suffix", [".pth", ".pt", ".pth.tar", ".torch", ".safetensors", ".bin", ".ckpt"]
)
@pytest.mark.parametrize("kind", [torch.save, safetensors.torch.save_file])
def test_the_format_is_that_of_the_content(
    tmp_path: Path, backbone: Backbone, state: State, kind: Any, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    kind(state, path)
    load_and_compare(path, backbone)


class TestFolders:
    @pytest.mark.parametrize(
        "name", ["model.safetensors", "pytorch_model.bin", "checkpoint.pth", "anything.ckpt"]
    )
    def test_one_file_of_weights(
        self, tmp_path: Path, backbone: Backbone, state: State, name: str
    ) -> None:
        (tmp_path / "README.md").write_text("about it")
        write(tmp_path / name, state)
        load_and_compare(tmp_path, backbone)

    def test_a_snapshot_of_timm_on_the_hub(
        self, tmp_path: Path, backbone: Backbone, state: State
    ) -> None:
        folder = tmp_path / "models--timm--test" / "snapshots" / "0123abc"
        folder.mkdir(parents=True)
        write(folder / "model.safetensors", state)
        write(folder / "pytorch_model.bin", {"other": torch.ones(1)})
        statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
        config = {"architecture": RESNET, "pretrained_cfg": statistics}
        (folder / "config.json").write_text(json.dumps(config))
        for source in (folder, folder.parents[1], folder / "model.safetensors"):
            assert weights_io.guess(source) == (RESNET, "imagenet")
            fresh = backbone_module.create(RESNET)
            weights_io.load_weights(fresh, source)
            assert_same_weights(fresh.network, backbone.network)
            torch.testing.assert_close(fresh.mean, torch.tensor([0.5, 0.4, 0.3]))
        expected = {folder / "model.safetensors", folder / "config.json"}
        assert set(weight_files.sources(folder)) == expected

    @pytest.mark.parametrize("usable", [True, False])
    def test_the_statistics_of_a_preprocessor(
        self, tmp_path: Path, state: State, usable: bool
    ) -> None:
        write(tmp_path / "model.safetensors", state)
        std = [0.2, 0.2, 0.2] if usable else [0.2, 0, float("nan")]
        statistics = json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": std})
        (tmp_path / "preprocessor_config.json").write_text(statistics)
        fresh = backbone_module.create(RESNET)
        weights_io.load_weights(fresh, tmp_path)
        assert bool(fresh.mean[0] == 0.5) == usable

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_several_files_that_weights_are_spread_over(
        self, tmp_path: Path, backbone: Backbone, state: State, suffix: str
    ) -> None:
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        names = [f"{stem}-0000{i}-of-00003.{suffix}" for i in (1, 2, 3)]
        keys = list(state)
        for i, name in enumerate(names):
            write(tmp_path / name, {key: state[key] for key in keys[i::3]})
        index = tmp_path / f"{stem}.{suffix}.index.json"
        places = {key: names[i % 3] for i, key in enumerate(keys)}
        index.write_text(json.dumps({"weight_map": places}))
        load_and_compare(tmp_path, backbone)
        load_and_compare(index, backbone)
        refused(weight_files.read, tmp_path / names[0], "one of several")
        (tmp_path / names[1]).unlink()
        refused(weight_files.read, tmp_path, "00002")

    def test_several_to_choose_from_are_listed(self, tmp_path: Path, state: State) -> None:
        for name in ("a.pth", "b.pth"):
            write(tmp_path / name, state)
        refused(weight_files.read, tmp_path, r"a\.pth.*b\.pth")

    @pytest.mark.parametrize(
        ("below", "match"),
        [
            ("", "no file"),
            ("x.txt", r"x\.t"),
            ("runs/backbone.safetensors", "bac"),
            ("tf_model.h5", "tf_"),
            ("__0_0.distcp", "dcp_to_torch"),  # a checkpoint of several processes
        ],
    )
    def test_none(self, tmp_path: Path, below: str, match: str) -> None:
        if below:
            (tmp_path / below).parent.mkdir(exist_ok=True)
            (tmp_path / below).write_text("x")
        refused(weights_io.guess, tmp_path, match)


class TestRuns:
    """The folder of a run, with every file that it wrote."""

    @pytest.fixture
    def folder(self, tmp_path: Path, backbone: Backbone) -> Path:
        folder = tmp_path / "run"
        (folder / "checkpoints").mkdir(parents=True)
        weights_io.save_backbone(backbone, folder / "backbone.safetensors")
        config = {"backbone": backbone.name, "stem": backbone.stem, "size": 32}
        (folder / "run.json").write_text(json.dumps({"config": config}))
        own = dict(backbone.state_dict())
        other = {key: torch.zeros_like(value) for key, value in own.items()}
        step = {**at("method.backbone.", own), **at("method.network.0.", other)}
        step["method.projection.0.weight"] = torch.ones(2)
        state = {"guard": {}, "next": 2, "skipped": 0, "seconds": 1.0, "optimizer": {"state": {}}}
        write(folder / "checkpoints" / "last.pt", {**state, "step": step})
        return folder

    @pytest.mark.parametrize(
        "file", ["", "run.json", "backbone.safetensors", "checkpoints/last.pt"]
    )
    def test_it_is_taken(self, folder: Path, backbone: Backbone, file: str) -> None:
        source = folder / file
        assert "with its mean and std" in load_and_compare(source, backbone)
        assert weights_io.guess(source) == (RESNET, "imagenet")
        again = weights_io.load_backbone(source)
        assert_same_weights(again, backbone)
        assert again.image_size == 32

    def test_a_checkpoint_that_was_moved(
        self, folder: Path, tmp_path: Path, backbone: Backbone
    ) -> None:
        moved = (folder / "checkpoints" / "last.pt").rename(tmp_path / "step.pt")
        assert "with its mean and std" in load_and_compare(moved, backbone)
        refused(weights_io.load_backbone, moved, "which network")

    def test_a_plan(self, folder: Path, tmp_path: Path, backbone: Backbone) -> None:
        plan = tmp_path / "plan.json"
        plan.write_text('{"outcome": "target", "stages": {"target": {"folder": "run"}}}')
        load_and_compare(tmp_path, backbone)
        load_and_compare(plan, backbone)
        plan.write_text(plan.read_text().replace("run", "gone"))
        refused(weight_files.locate, tmp_path, "gone")

    def test_an_unfinished_one_names_its_checkpoints(self, folder: Path) -> None:
        (folder / "backbone.safetensors").unlink()
        refused(weight_files.locate, folder, r"--resume.*last\.pt")

    @pytest.mark.parametrize(
        "change",
        [
            {"step": None, "shards": "last-2"},
            {"step": {"method.backbone.blocks.0.attn.qkv.base_layer.weight": torch.ones(2)}},
        ],
        ids=["shards", "lora"],
    )
    def test_checkpoints_without_plain_weights(self, folder: Path, change: dict[str, Any]) -> None:
        file = folder / "checkpoints" / "last.pt"
        content = {
            key: value for key, value in (torch.load(file) | change).items() if value is not None
        }
        torch.save(content, file)
        refused(weight_files.read, file, r"backbone\.safetensors")

    @pytest.mark.parametrize("file", ["head.safetensors", "evaluation.json", "journal.jsonl"])
    def test_other_files_of_it_name_the_right_one(self, folder: Path, file: str) -> None:
        head = torch.nn.Sequential(torch.nn.Linear(2, 3))
        heads.save_head(head, (), False, folder / "head.safetensors")
        for name in ("evaluation.json", "journal.jsonl"):
            (folder / name).write_text('{"step": 0}\n')
        refused(weight_files.read, folder / file, r"run's (folder|head)")


class TestExport:
    @pytest.fixture
    def source(self, tmp_path: Path, backbone: Backbone) -> Path:
        weights_io.save_backbone(backbone, tmp_path / "b.safetensors")
        return tmp_path / "b.safetensors"

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_the_same_weights_are_the_same_file(
        self, source: Path, tmp_path: Path, backbone: Backbone, suffix: str, capsys: Capture
    ) -> None:
        """An existing file is replaced with a note."""
        names = [tmp_path / f"{name}{suffix}" for name in "xyz"]
        names[0].write_text("old")
        for name in names:
            assert main(["export", str(source), "--to", str(name)]) == 0
            assert ("replaces" in capsys.readouterr().err) == (name == names[0])
        assert len({name.read_bytes() for name in names}) == 1
        load_and_compare(names[0], backbone)

    @pytest.mark.parametrize("to", ["", "b.safetensors", "b.onnx", "file/x.pth", "name"])
    def test_where_nothing_can_be_written(
        self, source: Path, tmp_path: Path, capsys: Capture, to: str
    ) -> None:
        (tmp_path / "file").write_text("x")
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert main(["export", str(source), "--to", str(tmp_path / to)]) == 2
        output = capsys.readouterr()
        assert not output.out
        assert len(output.err.strip().splitlines()) == 1
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("old", [True, False])
    def test_a_full_disk_leaves_the_old_file(
        self,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Capture,
        old: bool,
        suffix: str,
    ) -> None:
        to = tmp_path / f"x{suffix}"
        if old:
            to.write_text("old")
        before = sorted(tmp_path.iterdir())

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(weights_io.os, "fsync", full)
        assert main(["export", str(source), "--to", str(to)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "no space left" in line.lower()
        assert sorted(tmp_path.iterdir()) == before
        assert not old or to.read_text() == "old"


def test_a_reason_is_no_bare_key(tmp_path: Path) -> None:
    # whose reader fails with a KeyError, which says nothing
    (tmp_path / "junk.pth").write_bytes(b"junk\x00\n")
    match = r"is broken, or no PyTorch file: \w+\.$"
    refused(weights_io.load_backbone, tmp_path / "junk.pth", match)
