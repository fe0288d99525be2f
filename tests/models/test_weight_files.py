"""Files and folders of weights, and the errors for files that are no weights."""

import contextlib
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from selftaught.models import heads
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import weight_files
from tests.networks import RESNET, assert_same_weights, lived_in


@pytest.fixture(scope="module")
def backbone() -> backbone_module.Backbone:
    network = backbone_module.create(
        RESNET, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size=32
    )
    lived_in(network.network)
    return network


@pytest.fixture
def state(backbone: backbone_module.Backbone) -> dict[str, torch.Tensor]:
    return dict(backbone.network.state_dict())


def load_and_compare(source: Path, backbone: backbone_module.Backbone) -> str:
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
    "rubbish": (bytes(range(1, 256)), ""),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_other_kinds_of_files_are_named(tmp_path: Path, kind: str, suffix: str) -> None:
    content, word = NO_WEIGHTS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    for read in (
        weights_io.guess,
        weights_io.load_backbone,
        lambda p: weights_io.load_weights(backbone_module.create(RESNET), p),
    ):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(path) in str(error.value)
        assert word in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "suffix", [".onnx", ".h5", ".pb", ".tflite", ".msgpack", ".keras", ".ckpt.data-00000-of-00001"]
)
def test_kinds_of_files_known_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(range(200, 256)))
    with pytest.raises(UserError) as error:
        weight_files.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_off(tmp_path: Path, state: dict[str, torch.Tensor], kind: str, share: float) -> None:
    path = tmp_path / "weights.pth"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError) as error:
        weight_files.read(path)
    assert "\n" not in str(error.value)


def test_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)

    def closed(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(UserError, match="Permission denied"):
        weight_files.read(path)


@pytest.mark.parametrize(
    "name", ["https://example.org/a.pth", "hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"]
)
def test_missing_paths(name: str) -> None:
    with pytest.raises(UserError, match="no file"):
        weights_io.load_weights(backbone_module.create(RESNET), name)


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match="absent"):
        weight_files.read(tmp_path / "weights.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ".ckpt"])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_the_format_is_that_of_the_content(
    tmp_path: Path,
    backbone: backbone_module.Backbone,
    state: dict[str, torch.Tensor],
    kind: str,
    suffix: str,
) -> None:
    path = tmp_path / f"weights{suffix}"
    safetensors.torch.save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    load_and_compare(path, backbone)


class TestFolders:
    @pytest.mark.parametrize(
        "name", ["model.safetensors", "pytorch_model.bin", "checkpoint.pth", "anything.ckpt"]
    )
    def test_one_file_of_weights(
        self,
        tmp_path: Path,
        backbone: backbone_module.Backbone,
        state: dict[str, torch.Tensor],
        name: str,
    ) -> None:
        (tmp_path / "README.md").write_text("about it")
        save = safetensors.torch.save_file if name.endswith(".safetensors") else torch.save
        save(state, tmp_path / name)
        load_and_compare(tmp_path, backbone)

    def test_a_snapshot_of_timm_on_the_hub(
        self, tmp_path: Path, backbone: backbone_module.Backbone, state: dict[str, torch.Tensor]
    ) -> None:
        folder = tmp_path / "models--timm--test" / "snapshots" / "0123abc"
        folder.mkdir(parents=True)
        safetensors.torch.save_file(state, folder / "model.safetensors")
        torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
        config = {
            "architecture": RESNET,
            "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
        }
        (folder / "config.json").write_text(json.dumps(config))
        for source in (folder, folder.parents[1], folder / "model.safetensors"):
            assert weights_io.guess(source) == (RESNET, "imagenet")
            fresh = backbone_module.create(RESNET)
            weights_io.load_weights(fresh, source)
            assert_same_weights(fresh.network, backbone.network)
            torch.testing.assert_close(fresh.mean, torch.tensor([0.5, 0.4, 0.3]))
        assert set(weight_files.sources(folder)) == {
            folder / "model.safetensors",
            folder / "config.json",
        }

    @pytest.mark.parametrize("usable", [True, False])
    def test_the_statistics_of_a_preprocessor(
        self, tmp_path: Path, state: dict[str, torch.Tensor], usable: bool
    ) -> None:
        safetensors.torch.save_file(state, tmp_path / "model.safetensors")
        written = {
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.2, 0.2, 0.2] if usable else [0.2, 0, float("nan")],
        }
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
        fresh = backbone_module.create(RESNET)
        weights_io.load_weights(fresh, tmp_path)
        assert bool(fresh.mean[0] == 0.5) == usable

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_several_files_that_weights_are_spread_over(
        self,
        tmp_path: Path,
        backbone: backbone_module.Backbone,
        state: dict[str, torch.Tensor],
        suffix: str,
    ) -> None:
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        names = [f"{stem}-0000{i}-of-00003.{suffix}" for i in (1, 2, 3)]
        keys = list(state)
        for i, name in enumerate(names):
            part = {key: state[key] for key in keys[i::3]}
            safetensors.torch.save_file(
                part, tmp_path / name
            ) if suffix == "safetensors" else torch.save(part, tmp_path / name)
        index = tmp_path / f"{stem}.{suffix}.index.json"
        index.write_text(
            json.dumps({"weight_map": {key: names[i % 3] for i, key in enumerate(keys)}})
        )
        load_and_compare(tmp_path, backbone)
        load_and_compare(index, backbone)
        with pytest.raises(UserError, match="one of several"):
            weight_files.read(tmp_path / names[0])
        (tmp_path / names[1]).unlink()
        with pytest.raises(UserError, match="00002"):
            weight_files.read(tmp_path)

    def test_several_to_choose_from_are_listed(
        self, tmp_path: Path, state: dict[str, torch.Tensor]
    ) -> None:
        for name in ("a.pth", "b.pth"):
            torch.save(state, tmp_path / name)
        with pytest.raises(UserError, match=r"a\.pth.*b\.pth"):
            weight_files.read(tmp_path)

    @pytest.mark.parametrize(
        "below", [(), ("x.txt",), ("runs/backbone.safetensors",), ("tf_model.h5",)]
    )
    def test_none(self, tmp_path: Path, below: tuple[str, ...]) -> None:
        for name in below:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
        with pytest.raises(
            UserError, match=below[0].split("/")[-1][:3] if below else "no file"
        ) as error:
            weights_io.guess(tmp_path)
        assert "\n" not in str(error.value)

    def test_a_checkpoint_of_several_processes(self, tmp_path: Path) -> None:
        (tmp_path / "__0_0.distcp").write_text("x")
        with pytest.raises(UserError, match="dcp_to_torch"):
            weight_files.read(tmp_path)


class TestRuns:
    """The folder of a run, with every file that it wrote."""

    @pytest.fixture
    def folder(self, tmp_path: Path, backbone: backbone_module.Backbone) -> Path:
        folder = tmp_path / "run"
        (folder / "checkpoints").mkdir(parents=True)
        weights_io.save_backbone(backbone, folder / "backbone.safetensors", {"size": "32"})
        config = {"backbone": backbone.name, "stem": backbone.stem, "size": 32}
        (folder / "run.json").write_text(json.dumps({"config": config}))
        step = {f"method.backbone.{key}": value for key, value in backbone.state_dict().items()}
        step |= {
            f"method.network.0.{key}": torch.zeros_like(value)
            for key, value in backbone.state_dict().items()
        }
        step["method.projection.0.weight"] = torch.ones(2)
        state = {
            "guard": {},
            "next": 2,
            "skipped": 0,
            "seconds": 1.0,
            "step": step,
            "optimizer": {"state": {}},
        }
        torch.save(state, folder / "checkpoints" / "last.pt")
        return folder

    @pytest.mark.parametrize(
        "file", ["", "run.json", "backbone.safetensors", "checkpoints/last.pt"]
    )
    def test_it_is_taken(self, folder: Path, backbone: backbone_module.Backbone, file: str) -> None:
        source = folder / file
        assert "with its mean and std" in load_and_compare(source, backbone)
        assert weights_io.guess(source) == (RESNET, "imagenet")
        again = weights_io.load_backbone(source)
        assert_same_weights(again, backbone)
        assert again.image_size == 32

    def test_a_checkpoint_that_was_moved(
        self, folder: Path, tmp_path: Path, backbone: backbone_module.Backbone
    ) -> None:
        moved = (folder / "checkpoints" / "last.pt").rename(tmp_path / "step.pt")
        assert "with its mean and std" in load_and_compare(moved, backbone)
        with pytest.raises(UserError, match="which network"):
            weights_io.load_backbone(moved)

    def test_a_plan(self, folder: Path, tmp_path: Path, backbone: backbone_module.Backbone) -> None:
        stages = {"target": {"folder": "run"}}
        (tmp_path / "plan.json").write_text(json.dumps({"outcome": "target", "stages": stages}))
        load_and_compare(tmp_path, backbone)
        load_and_compare(tmp_path / "plan.json", backbone)
        stages["target"]["folder"] = "gone"
        (tmp_path / "plan.json").write_text(json.dumps({"outcome": "target", "stages": stages}))
        with pytest.raises(UserError, match="gone"):
            weight_files.locate(tmp_path)

    def test_an_unfinished_one_names_its_checkpoints(self, folder: Path) -> None:
        (folder / "backbone.safetensors").unlink()
        with pytest.raises(UserError, match=r"--resume.*last\.pt"):
            weight_files.locate(folder)

    @pytest.mark.parametrize(
        "disturb",
        [
            lambda state: {"guard": {}, "next": 2, "skipped": 0, "shards": "last-2"},
            lambda state: {
                **state,
                "step": {
                    "method.backbone.network.blocks.0.attn.qkv.base_layer.weight": torch.ones(2)
                },
            },
        ],
        ids=["shards", "lora"],
    )
    def test_checkpoints_without_plain_weights(
        self, folder: Path, disturb: Callable[[dict], dict]
    ) -> None:
        file = folder / "checkpoints" / "last.pt"
        torch.save(disturb(torch.load(file)), file)
        with pytest.raises(UserError, match=r"backbone\.safetensors"):
            weight_files.read(file)

    @pytest.mark.parametrize("file", ["head.safetensors", "evaluation.json", "journal.jsonl"])
    def test_other_files_of_it_name_the_right_one(self, folder: Path, file: str) -> None:
        heads.save_head(
            torch.nn.Sequential(torch.nn.Linear(2, 3)), (), False, folder / "head.safetensors"
        )
        for name in ("evaluation.json", "journal.jsonl"):
            (folder / name).write_text('{"step": 0}\n')
        with pytest.raises(UserError, match=r"run's (folder|head)"):
            weight_files.read(folder / file)


class TestExport:
    @pytest.fixture
    def source(self, tmp_path: Path, backbone: backbone_module.Backbone) -> Path:
        weights_io.save_backbone(backbone, tmp_path / "b.safetensors")
        return tmp_path / "b.safetensors"

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_the_same_weights_are_the_same_file(
        self, source: Path, tmp_path: Path, suffix: str
    ) -> None:
        names = [tmp_path / f"{name}{suffix}" for name in "xyz"]
        for name in names:
            assert main(["export", str(source), "--to", str(name)]) == 0
        assert len({name.read_bytes() for name in names}) == 1

    def test_an_existing_file_is_replaced_with_a_note(
        self,
        source: Path,
        tmp_path: Path,
        backbone: backbone_module.Backbone,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "x.pth").write_text("old")
        assert main(["export", str(source), "--to", str(tmp_path / "x.pth")]) == 0
        assert "replaces" in capsys.readouterr().err
        load_and_compare(tmp_path / "x.pth", backbone)

    @pytest.mark.parametrize("to", ["", "b.safetensors", "b.onnx", "file/x.pth", "name"])
    def test_where_nothing_can_be_written(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
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
        capsys: pytest.CaptureFixture[str],
        old: bool,
        suffix: str,
    ) -> None:
        to = tmp_path / f"x{suffix}"
        with contextlib.nullcontext() if old else contextlib.suppress(FileNotFoundError):
            to.write_text("old") if old else to.unlink()
        before = sorted(tmp_path.iterdir())

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(weights_io.os, "fsync", full)
        assert main(["export", str(source), "--to", str(to)]) == 2
        output = capsys.readouterr().err.strip().splitlines()
        assert len(output) == 1
        assert "no space left" in output[0].lower()
        assert sorted(tmp_path.iterdir()) == before
        assert not old or to.read_text() == "old"


def test_a_reason_is_no_bare_key(tmp_path: Path) -> None:
    # whose reader fails with a KeyError, which says nothing
    (tmp_path / "junk.pth").write_bytes(b"junk\x00\n")
    with pytest.raises(UserError, match=r"is broken, or no PyTorch file: \w+\.$"):
        weights_io.load_backbone(tmp_path / "junk.pth")
