"""The Python API: values and objects in place of words, the parts by themselves, and what is one's
own.
"""

import dataclasses
import importlib
import importlib.util
import json
import re
import subprocess
import sys
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
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder

SMALL: dict[str, Any] = {"size": 32, "batch": 8, "steps": 2, "precision": "fp32", "workers": 0}
SMALL |= {"backbone": "test_resnet", "threads": 1}
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
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: Places) -> st.Run:
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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"selftaught {st.__version__}\n"


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
    assert stage.method.temperature == 0.3
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
        ({"method": st.Method}, "define"),
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
    result = st.evaluate(
        run, protocols=(st.KNN(), st.LinearProbe()), labels=("all",), against=("random", run)
    )
    assert {row["protocol"] for row in result.rows} == {"knn", "linear"}
    assert run.scores == result.rows
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
    assert not torch.equal(learnt.network.conv.weight, net.conv.weight)
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
        st.pretrain(images, out=tmp_path / "maps", method="densecl", **SMALL | {"backbone": Net()})


@pytest.mark.parametrize("kind", ["tensor", "array", "pil"])
def test_a_dataset_is_a_set_of_images(kind: str, tmp_path: Path, monkeypatch: Patch) -> None:
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


@pytest.mark.usefixtures("quick_scores")
def test_weights_are_adapted(run: st.Run, images: Path, tmp_path: Path) -> None:
    small = {key: value for key, value in SMALL.items() if key != "backbone"}
    adapted = st.adapt(init=run, target=images, out=tmp_path / "b", **small)
    assert adapted.stage.keep == "best"
    assert adapted.stage.backbone == "test_resnet"
    rows = st.evaluate(adapted, labels=("all",), protocols=(st.KNN(),)).rows
    assert {row["backbone"] for row in rows} == {str(adapted), "random", "init"}
    settings = {k: v for k, v in SMALL.items() if k not in ("workers", "threads")}
    one = {"data": images, "method": st.methods.BYOL, **settings}
    two = {"data": [images], "after": "one", "hard": (st.hard.MixUp(),), **settings}
    plan = {"stages": {"one": one, "two": two}}
    other = st.adapt(plan=plan, out=tmp_path / "c", workers=0, threads=1)
    assert other.stage.hard == (st.hard.MixUp(),)
    assert (tmp_path / "c" / "backbone.safetensors").is_file()
    with pytest.raises(UserError, match="plan"):
        st.adapt(plan=plan, out=tmp_path / "c", steps=3)
    with pytest.raises(UserError, match="init"):
        st.adapt(target=images, out=tmp_path / "d")
    with pytest.raises(UserError, match="not as data"):
        st.adapt(init=adapted, target=images, data=images, out=tmp_path / "d")
    with pytest.raises(UserError, match="plan"):
        st.adapt(plan=plan, out=tmp_path / "c", source_steps=3)


def test_a_stage_is_carried_out_as_it_is(run: st.Run, tmp_path: Path) -> None:
    stage = dataclasses.replace(run.stage, steps=1)
    again = st.train(stage, tmp_path / "run", workers=0)
    assert again.stage == stage
    with pytest.raises(UserError, match="size"):
        st.train(stage, tmp_path / "other", size=3)


def test_every_name_is_there() -> None:
    assert st.losses.__name__ == "selftaught.losses"
    assert set(st.__all__) <= set(dir(st))
    for name in st.__all__:
        assert getattr(st, name) is not None


def test_import_is_quick() -> None:
    code = "import sys, selftaught; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------- one's own


def write_module(package: Path) -> None:
    """The code of docs/your-own-method.md, as mypackage/mymodule.py."""
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mymodule.py").write_text("\n\n".join(blocks("your-own-method")))


def blocks(page: str) -> list[str]:
    """The Python code of a page of docs."""
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


OWN = "mypackage.mymodule"


def forget(name: str = "mypackage") -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def test_what_is_ones_own_works_like_the_rest(
    images: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    write_module(tmp_path / "mypackage")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    out, table = tmp_path / "run", tmp_path / "table.csv"
    words = ["pretrain", "--data", str(images), "--out", str(out), *WORDS]
    words += ["--method", f"{OWN}:AlignUniform", "--backbone", f"{OWN}:build"]
    hard = ["--hard", f"{OWN}:Erased", "cutmix", "--hard.erased.share", "0.3"]
    assert main([*words, *hard, "--method.width", "16", "--method.spread", "0.5"]) == 0
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["method"] == {"name": f"{OWN}:AlignUniform", "width": 16, "spread": 0.5}
    assert [h["name"] for h in config["hard"]] == [f"{OWN}:Erased", "cutmix"]
    assert config["hard"][0]["share"] == 0.3
    assert config["backbone"] == f"{OWN}:build"
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"outcome": "stopped", "finished": False}))
    forget()
    assert main(["pretrain", "--out", str(out), "--resume", "--workers", "0"]) == 0
    assert main(["evaluate", str(out), "--labels", "all", "--workers", "0"]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    assert "AlignUniform" in (tmp_path / "report.html").read_text()
    assert main(["embed", str(out), "--out", str(table), "--workers", "0"]) == 0
    assert main(["export", str(out), "--to", str(tmp_path / "own.safetensors")]) == 0
    assert f"{OWN}.build()" in capsys.readouterr().out
    again = [*words[:4], str(tmp_path / "heir"), *words[5:], "--init", str(out)]
    assert main(again) == 0
    refused = [
        ("--method", f"{OWN}:AlignUnifrom", "AlignUniform"),
        ("--method", f"{OWN}:Erased", "Method"),
        ("--method", "mypackage.nothing:AlignUniform", "PYTHONPATH"),
        ("--hard", f"{OWN}:Erasd", "Erased"),
        ("--backbone", f"{OWN}:bild", "build"),
        ("--backbone", f"{OWN}:nn", "function"),
        ("--method.queue", "3", "moco-v2"),
        ("--method.spread", "-1", "--method.spread"),
        ("--method.widht", "3", "--method.width"),
    ]
    for flag, value, near in refused:
        assert main([*words[:4], str(tmp_path / "no"), *words[5:], flag, value]) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("selftaught: ")
        assert near in last
    assert not (tmp_path / "no").exists()
    monkeypatch.undo()
    forget()
    assert main(["evaluate", str(out)]) == 2
    assert "PYTHONPATH" in capsys.readouterr().err.strip().splitlines()[-1]


def test_weights_of_a_network_that_is_not_there_are_not_called_damaged(
    images: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    write_module(tmp_path / "mypackage")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    out = tmp_path / "run"
    words = ["--out", str(out), *WORDS, "--backbone", f"{OWN}:build"]
    assert main(["pretrain", "--data", str(images), *words]) == 0
    monkeypatch.undo()
    forget()
    assert main(["evaluate", str(out)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("put its folder on PYTHONPATH")


def test_what_is_ones_own_is_an_object_in_python(
    images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    write_module(tmp_path / "mypackage")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    own = importlib.import_module(OWN)
    run = st.pretrain(
        images,
        out=tmp_path / "run",
        method=own.AlignUniform.Config(width=8),
        hard=(own.Erased(),),
        **SMALL,
    )
    assert run.stage.method == own.AlignUniform.Config(width=8)

    class Local(own.AlignUniform):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config(own.AlignUniform.Config):
            pass

    class Bare(own.AlignUniform):
        pass

    for wrong, near in ((Local, "inside a function"), (Local.Config(), "inside"), (Bare, "inside")):
        with pytest.raises(UserError, match=near):
            st.pretrain(images, out=tmp_path / "other", method=wrong, **SMALL)
    own.Bare = Bare
    Bare.__qualname__, Bare.__module__ = "Bare", OWN
    with pytest.raises(UserError, match="Config"):
        st.pretrain(images, out=tmp_path / "other", method=Bare, **SMALL)


# ------------------------------------------------------------------------------------------- docs


def test_the_page_on_python_runs(
    run: st.Run, images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Each block as it stands; trainings are cut short, and the weights to adapt are a run's."""
    for name in ("photos", "labelled"):
        (tmp_path / name).symlink_to(images)
    monkeypatch.chdir(tmp_path)
    pretrain, adapt = st.pretrain, st.adapt
    small = {key: value for key, value in SMALL.items() if key != "backbone"}

    def cut_short(*data: Any, backbone: Any = "test_resnet", **settings: Any) -> st.Run:
        return pretrain(*data, backbone=backbone, **settings | small)

    def adapt_run(init: str, **settings: Any) -> st.Run:
        assert init == "resnet50.a1_in1k"
        return adapt(init=run, **settings | small)

    monkeypatch.setattr(st, "pretrain", cut_short)
    monkeypatch.setattr(st, "adapt", adapt_run)
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert (tmp_path / "report.html").is_file()
    assert namespace["again"].stage.seed == 1


def test_the_page_on_ones_own_loop_runs(capsys: Capture) -> None:
    plain, lightning = blocks("your-own-loop")
    namespace: dict[str, Any] = {}
    exec(plain, namespace)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(name in lines[0] for name in ("clean", "adversarial", "cutmix"))
    if importlib.util.find_spec("lightning"):
        exec(lightning, namespace)
        learner = namespace["Learner"](namespace["step"])
        trainer = namespace["lightning"].Trainer(max_steps=2, logger=False, accelerator="cpu")
        trainer.fit(learner, [namespace["batch"]] * 2)


def test_what_is_no_in_python_is_no(images: Path, tmp_path: Path) -> None:
    """False is a value, and not the default."""
    settings = {**SMALL, "backbone": "test_vit", "steps": 1}
    run = st.pretrain(
        images, out=tmp_path / "run", method="moco-v3", method__freeze_patches=False, **settings
    )
    assert run.stage.method.freeze_patches is False
