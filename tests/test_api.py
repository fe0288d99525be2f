"""The Python API: values and objects in place of words, the parts by themselves, and what is one's
own.
"""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import selftaught as st
from selftaught.cli.main import main
from selftaught.errors import UserError
from tests.pictures import folder

SMALL: dict[str, Any] = {
    "backbone": "test_resnet",
    "size": 32,
    "batch": 8,
    "steps": 2,
    "precision": "fp32",
    "workers": 0,
    "threads": 1,
}
WORDS = ["--size", "32", "--batch", "8", "--steps", "2", "--precision", "fp32", "--workers", "0"]


class Net(nn.Module):
    """A network of one's own: pixels [B, 3, H, W] -> features [B, width]."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.conv(pixels)).relu().mean(dim=(2, 3))


class Pictures(Dataset[Any]):
    """Images and labels, of the kinds that Datasets give."""

    classes = ("zebra", "test")  # the second one is no word for a split here

    def __init__(self, kind: str, count: int = 24) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        values = torch.randint(0, 256, (3, 40, 36), generator=torch.Generator().manual_seed(i))
        values = values.to(torch.uint8)
        if self.kind == "tensor":
            return values
        if self.kind == "array":
            return values.permute(1, 2, 0).numpy(), np.int64(i % 2)
        return Image.fromarray(values.permute(1, 2, 0).numpy()), i % 2 if i else -1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> st.Run:
    """A run that was asked for in values."""
    return st.pretrain(
        images,
        out=tmp_path_factory.mktemp("runs") / "a",
        method=st.methods.SimCLR.Config(temperature=0.2, hidden=16),
        hard=(st.hard.CutMix(alpha=0.5),),
        optimizer=st.SGD(lr=0.01),
        views=st.Views(flip=0.0),
        schedule=st.Cosine(warmup=0.5),
        **SMALL,
    )


def test_values_are_taken_as_they_are(run: st.Run) -> None:
    stage = run.stage
    assert stage.method == st.methods.SimCLR.Config(temperature=0.2, hidden=16)
    assert stage.hard == (st.hard.CutMix(alpha=0.5),)
    assert (stage.optimizer, stage.views.flip) == (st.SGD(lr=0.01), 0.0)
    assert (stage.schedule.warmup, stage.steps, stage.backbone) == (0.5, 2, "test_resnet")
    assert run.facts["command"].startswith("selftaught.pretrain(")
    assert Path(run) == run.folder == Path(str(run))


def test_names_do_as_well(images: Path, tmp_path: Path) -> None:
    run = st.pretrain(
        images,
        out=tmp_path / "run",
        method="moco-v2",
        method__temperature=0.3,
        hard="cutmix",
        hard__cutmix__weight=2,
        optimizer=st.AdamW,
        **SMALL,
    )
    stage = run.stage
    assert stage.method.temperature == 0.3  # type: ignore[attr-defined]
    assert stage.hard == (st.hard.CutMix(weight=2.0),)
    assert isinstance(stage.optimizer, st.AdamW)


@pytest.mark.parametrize(
    ("settings", "near"),
    [
        ({"stepz": 3}, "steps"),
        ({"worker": 3}, "workers"),
        ({"steps": "many"}, "--steps"),
        ({"method": "moco"}, "moco-v2"),
        ({"method": 3}, "method"),
        ({"method": st.Method}, "Config"),
        ({"method__temprature": 0.2}, "--method.temperature"),
        ({"method": st.methods.SimCLR, "method__queue": 8}, "moco-v2"),
        ({"hard": ("cut",)}, "cutmix"),
        ({"hard__cutmix__weight": 2}, "cutmix"),
        ({"optimizer": {"lr": 0.1}}, "optimizer.lr"),
        ({"views": "quick"}, "fast"),
        ({"device": "gpu"}, "cuda"),
        ({"threads": 0}, "--threads"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any], near: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=near):
        st.pretrain(images, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_embedded_exported_and_reported(run: st.Run, tmp_path: Path) -> None:
    found = st.evaluate(
        run, protocols=(st.KNN(), st.LinearProbe()), labels=("all",), against=("random", run)
    )
    assert {row["protocol"] for row in found.rows} == {"knn", "linear"}
    assert run.scores == found.rows
    assert st.report(run, out=tmp_path / "report.html").stat().st_size > 10_000
    assert st.report is not sys.modules["selftaught.report"]
    file = st.export(run, tmp_path / "backbone.safetensors")
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(st.load(file)(pixels), st.load(run)(pixels))
    table = st.embed(run, out=tmp_path / "table.npz")
    assert (len(table), table.features.shape) == (48, (48, 96))
    written = np.load(tmp_path / "table.npz")
    assert np.array_equal(written["features"], table.features.numpy())
    assert set(written["label"]) == set(table.labels or ())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_features_are_a_table(suffix: str, run: st.Run, images: Path, tmp_path: Path) -> None:
    file = tmp_path / f"table.{suffix}"
    words = ["embed", str(run), "--data", str(images), "--out", str(file), "--workers", "0"]
    assert main(words) == 0
    table = st.embed(run, images)
    if suffix == "csv":
        head, *rows = [line.split(",") for line in file.read_text().splitlines()]
        assert head[:3] == ["path", "label", "f0"]
        features = torch.tensor([[float(v) for v in row[2:]] for row in rows])
        paths = [row[0] for row in rows]
    else:
        read = pytest.importorskip("pyarrow.parquet").read_table(file).to_pydict()
        assert list(read) == ["path", "label", "features"]
        features, paths = torch.tensor(read["features"]), read["path"]
    assert tuple(paths) == table.paths
    assert torch.equal(features, table.features)
    assert main(["embed", str(run), "--out", str(tmp_path / "table.xls")]) == 2


def test_a_module_is_a_backbone(images: Path, tmp_path: Path) -> None:
    net, small = Net(), SMALL | {"backbone": None}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    run = st.pretrain(images, out=tmp_path / "run", **small | {"backbone": net})
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert "test_api.Net" in run.stage.backbone
    for forgotten in (
        lambda: st.load(run),
        lambda: st.evaluate(run),
        lambda: st.load(run, backbone=Net(13)),
        lambda: st.pretrain(out=run, resume=True),
    ):
        with pytest.raises(UserError, match="backbone=") as refused:
            forgotten()
        assert "\n" not in str(refused.value)
    learnt = st.load(run, backbone=net)
    assert learnt(torch.rand(2, 3, 32, 32)).shape == (2, 12)
    assert not torch.equal(learnt.network.conv.weight, net.conv.weight)  # type: ignore[union-attr]
    rows = st.evaluate(run, labels=("all",), backbone=net).rows
    assert {row["backbone"] for row in rows} == {str(run), "random"}
    file = st.export(run, tmp_path / "net.safetensors", backbone=net)
    assert len(st.embed(file, images, size=32, backbone=net)) == 48
    # broken off, and gone on with
    cut = st.pretrain(images, out=tmp_path / "cut", **small | {"backbone": net, "steps": 2})
    facts = json.loads((cut.folder / "run.json").read_text())
    (cut.folder / "run.json").write_text(
        json.dumps(facts | {"outcome": "stopped", "finished": False})
    )
    st.pretrain(out=cut, resume=True, backbone=net, workers=0)
    assert cut.facts["finished"]


def test_a_module_that_is_no_backbone_is_refused(images: Path, tmp_path: Path) -> None:
    for wrong in (nn.Conv2d(3, 4, 3), nn.Linear(7, 2)):
        with pytest.raises(UserError, match=type(wrong).__name__):
            st.pretrain(images, out=tmp_path / "run", backbone=wrong, size=32)
    with pytest.raises(UserError, match="maps"):
        st.pretrain(
            images,
            out=tmp_path / "maps",
            method="densecl",
            **SMALL | {"backbone": Net()},
        )


@pytest.mark.parametrize("kind", ["tensor", "array", "pil"])
def test_a_dataset_is_a_set_of_images(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Pictures(kind)
    run = st.pretrain(data, out=tmp_path / "run", **SMALL)
    facts = run.facts["data"]
    assert facts["images"] == 24
    assert facts["labels"] == (kind != "tensor")
    assert facts["classes"] == ([] if kind == "tensor" else ["test", "zebra"])
    first = Image.open(tmp_path / "run" / "images" / "dataset-0" / "00000000.png")
    expected = Pictures("array")[0][0]
    assert np.array_equal(np.asarray(first), expected)
    if kind == "pil":
        return
    # it is written once, and lies in the run
    monkeypatch.setattr(Pictures, "__getitem__", None)
    again = st.pretrain(data, out=tmp_path / "run", resume=True, workers=0)
    assert again.facts["data"]["fingerprint"] == facts["fingerprint"]
    with pytest.raises(UserError, match="24"):
        st.pretrain(Pictures(kind, 25), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("item", "near"),
    [
        (torch.rand(3, 8, 8), "uint8"),
        (torch.zeros(5, 8, 8, dtype=torch.uint8), "shape"),
        ("photo.png", "str"),
        ((torch.zeros(8, 8, dtype=torch.uint8), "cat"), "integer"),
        ((1, 2, 3), "3 parts"),
    ],
)
def test_items_that_are_no_images_are_refused(item: Any, near: str, tmp_path: Path) -> None:
    class Wrong(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            return item

    with pytest.raises(UserError, match=near):
        st.pretrain(Wrong(), out=tmp_path / "run", **SMALL)


def test_weights_are_adapted(run: st.Run, images: Path, tmp_path: Path) -> None:
    small = {key: value for key, value in SMALL.items() if key != "backbone"}
    adapted = st.adapt(init=run, target=images, out=tmp_path / "b", **small)
    assert adapted.stage.keep == "best"
    assert adapted.stage.backbone == "test_resnet"
    rows = st.evaluate(adapted, labels=("all",), protocols=(st.KNN(),)).rows
    assert {row["backbone"] for row in rows} == {str(adapted), "random", "init"}
    plan = {
        "stages": {
            "one": {"data": images, "method": st.methods.BYOL, **small},
            "two": {"data": [images], "after": "one", "hard": (st.hard.MixUp(),), **small},
        }
    }
    for stage in plan["stages"].values():
        for conduct in ("workers", "threads"):
            stage.pop(conduct)
    other = st.adapt(plan=plan, out=tmp_path / "c", workers=0, threads=1)
    assert other.stage.hard == (st.hard.MixUp(),)
    assert (tmp_path / "c" / "backbone.safetensors").is_file()
    with pytest.raises(UserError, match="plan"):
        st.adapt(plan=plan, out=tmp_path / "c", steps=3)
    with pytest.raises(UserError, match="init"):
        st.adapt(target=images, out=tmp_path / "d")


def test_a_stage_is_carried_out_as_it_is(run: st.Run, tmp_path: Path) -> None:
    stage = dataclasses.replace(run.stage, steps=1)
    again = st.train(stage, tmp_path / "run", workers=0)
    assert again.stage == stage
    with pytest.raises(UserError, match="size"):
        st.train(stage, tmp_path / "other", size=3)


def test_the_parts_are_there_by_themselves() -> None:
    torch.manual_seed(0)
    views = st.Augment(st.Views(), 32)
    raw = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    batch = st.Batch(
        views=views(raw, torch.ones(4), torch.Generator().manual_seed(0)),
        index=torch.arange(4),
        label=torch.full((4,), -1),
        noise=torch.rand(4, 16),
    )
    method = st.methods.SimCLR(
        st.methods.SimCLR.Config(), st.create_backbone("test_resnet"), images=4
    )
    step = st.Step(method, (st.hard.CutMix(),))
    outcome = step(batch, torch.Generator().manual_seed(0))
    assert set(outcome.losses) == {"clean", "cutmix"}
    assert st.losses.__name__ == "selftaught.losses"
    assert set(st.__all__) <= set(dir(st))
    for name in st.__all__:
        assert getattr(st, name) is not None


def test_import_is_quick() -> None:
    code = "import sys, selftaught; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
