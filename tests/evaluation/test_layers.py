"""Evaluation at the stages of a backbone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import selftaught
from selftaught.cli.main import main
from selftaught.evaluation.compare import describe_stages, evaluate
from selftaught.evaluation.layer_choice import AtBestLayer
from selftaught.evaluation.results import Results
from selftaught.features.extract import extract
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.metrics import balanced_accuracy
from selftaught.features.protocol import FeatureExtractor, Features, LabelledImages, Subject
from selftaught.report import scores
from selftaught.runs import folder as run_folder
from selftaught.training.session import build_session
from tests.fixtures import Capture, Places
from tests.pictures import folder

SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32"]
SMALL += ["--workers", "0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: Places) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", str(images), "--out", str(out), "--steps", "3", *SMALL]
    assert main(["pretrain", *words]) == 0
    return out


def stages_of(run: Path) -> list[str]:
    return list(selftaught.load(run).maps(torch.rand(1, 3, 32, 32)))


def test_all_stages_have_rows_and_so_have_the_baselines(trained: Path, capsys: Capture) -> None:
    words = ["evaluate", str(trained), "--labels", "all", "--protocol", "knn", "--json"]
    assert main([*words, "--layers", "all"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = stages_of(trained)
    assert [row.get("layer") for row in rows] == [n for name in [*names, None] for n in 2 * [name]]
    assert {row["backbone"] for row in rows} == {str(trained), "random"}
    assert all("stage" not in row for row in rows)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == rows[-2:]  # the final features, as ever
    # the cached features of one stage are not those of another
    assert main([*words, "--layers", names[1]]) == 0
    assert json.loads(capsys.readouterr().out) == rows[2:4]


def test_a_stage_is_its_map_averaged_over_places(trained: Path) -> None:
    name = stages_of(trained)[-2]
    result = selftaught.evaluate(
        trained, protocols=[KNN()], labels=["all"], against=[], layers=name
    ).rows

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = selftaught.load(trained)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.backbone.maps(pixels)[name].flatten(2).mean(2)

    stage = run_folder.read_run(trained).stage
    index = stage.data.index(stage.seed)
    session = build_session(stage, index, torch.device("cpu"), 0)
    train, test = (
        extract(Pooled(), session.images, positions, size=32)
        for positions in (index.train, index.held_out)
    )
    assert index.labels is not None
    values = KNN().score_features(Features(train, index.labels[index.train]), test).values
    expected = balanced_accuracy(index.labels[index.held_out], values)
    assert result[0]["mean"] == pytest.approx(expected)


def test_the_best_stage_is_in_the_rows_and_the_report(
    trained: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--labels", "2", "--draws", "2", "--json", "--layers", "best"]
    assert main(["evaluate", str(trained), *words]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert len(rows) == 2 * 2
    assert {row["layer"] for row in rows} == {"best"}
    stage_names = {*stages_of(trained), "last"}
    for row in rows:
        for part in row["stage"].split(", "):
            assert part.split(" ")[0] in stage_names
    assert rows[-1]["stage"] in captured.err  # the table
    saved = run_folder.evaluations(trained)[-1]
    assert saved["rows"] == rows
    assert all(d["layer"] == "best" for d in saved["differences"])
    restored = Results.from_json(json.dumps({k: saved[k] for k in ("rows", "differences")}))
    assert json.loads(restored.to_json())["rows"] == rows
    assert {scores.read_score(row)[0].layer for row in rows} == {"best"}
    assert main(["report", str(trained), "--out", str(tmp_path / "page.html")]) == 0
    assert f"({rows[-2]['stage']})" in (tmp_path / "page.html").read_text()


COUNT = 60


def subject(layers: dict[str, Tensor], final: Tensor, seen: list[Tensor] | None = None) -> Subject:
    def reader(vectors: Tensor) -> Callable[[Tensor], Tensor]:
        def read(positions: Tensor) -> Tensor:
            if seen is not None:
                seen.append(positions)
            return vectors[positions]

        return read

    absent: object = None
    return Subject(
        name="made up",
        backbone=absent,
        images=absent,
        size=0,
        device="cpu",
        precision="fp32",
        features=reader(final),
        layers={name: reader(vectors) for name, vectors in layers.items()},
    )


def made_up() -> tuple[Tensor, Tensor, Tensor]:
    """Labels, features that tell them, and features of noise."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % 3
    telling = nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(COUNT, 3, generator=rng)
    return labels, telling, torch.randn(COUNT, 3, generator=rng)


@pytest.mark.parametrize("protocol", [KNN(neighbours=3), LinearProbe()], ids=["knn", "linear"])
def test_the_stage_that_tells_the_classes_is_chosen(protocol: KNN | LinearProbe) -> None:
    labels, telling, noise = made_up()
    train = LabelledImages(torch.arange(40), labels[:40])
    best = AtBestLayer(protocol=protocol)
    one = subject({"a": noise, "b": telling, "c": noise}, noise)
    assert best.choose(one, train) == "b"
    assert best.score(one, train, torch.arange(40, COUNT)).stage == "b"
    assert best.choose(subject({"a": noise, "b": telling}, telling), train) == "last"  # of equals


def test_each_stage_is_judged_at_its_own_penalty() -> None:
    """Two features whose difference tells the classes take a weak penalty, many a strong one."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    common, small = torch.randn(2, 200, 1, generator=rng)
    narrow = torch.cat([common, common + 0.3 * labels[:, None] + 0.03 * small], 1)
    wide = torch.randn(200, 50, generator=rng) + 0.3 * labels[:, None]
    train = LabelledImages(torch.arange(200), labels)
    one = subject({"narrow": narrow, "wide": wide}, wide)
    assert AtBestLayer(protocol=LinearProbe()).choose(one, train) == "narrow"


def test_the_choice_never_sees_the_test_images() -> None:
    """A stage that tells the test images' classes alone is not chosen."""
    labels, telling, noise = made_up()
    seen: list[Tensor] = []
    trap = torch.cat([noise[:40], 10 * telling[40:]])
    half = telling + 0.7 * noise
    one = subject({"trap": trap, "half": half}, noise, seen)
    train = LabelledImages(torch.arange(40), labels[:40])
    assert AtBestLayer(protocol=KNN(neighbours=3)).choose(one, train) == "half"
    assert max(int(positions.max()) for positions in seen) < 40


def test_labels_too_few_to_choose_by_leave_the_final_features() -> None:
    labels, telling, noise = made_up()
    train = LabelledImages(torch.arange(3), labels[:3])  # one a class: none can be kept out
    one = subject({"a": telling}, noise)
    assert AtBestLayer(protocol=KNN()).choose(one, train) == "last"


def test_several_classes_an_image_are_chosen_by_auroc() -> None:
    labels, telling, noise = made_up()
    several = nn.functional.one_hot(labels, 3)
    train = LabelledImages(torch.arange(40), several[:40])
    one = subject({"a": telling, "b": noise}, noise)
    assert AtBestLayer(protocol=KNN(neighbours=3)).choose(one, train) == "a"


def test_draws_that_choose_differently_are_counted() -> None:
    assert describe_stages(["b", "b"]) == "b"
    assert describe_stages(["a", "b", "b"]) == "b 2x, a 1x"
    labels, telling, noise = made_up()
    test = LabelledImages(torch.arange(40, COUNT), labels[40:])
    train = LabelledImages(torch.arange(40), labels[:40])
    best = AtBestLayer(protocol=KNN(neighbours=3))
    rows = evaluate([subject({"a": telling}, noise)], train, test, [best], labels=["9"], draws=4)
    assert [(row.layer, row.stage) for row in rows.rows] == [("best", "a")]


def test_columns_of_an_extractor() -> None:
    vectors = torch.arange(12.0).view(4, 3)
    extractor = FeatureExtractor(vectors.__getitem__, torch.arange(4))
    where = torch.tensor([2, 0])
    assert torch.equal(extractor(where, slice(1, 3)), vectors[where, 1:3])
    assert torch.equal(extractor(where), vectors[where])


@pytest.mark.parametrize(
    "words",
    [
        ["--layers", "no_such_stage"],
        ["--layers", "all", "--protocol", "finetune"],
        ["--layers", "best", "--protocol", "knn", "classifier"],
    ],
)
def test_layers_that_cannot_be_scored_are_refused(
    trained: Path, words: list[str], capsys: Capture
) -> None:
    assert main(["evaluate", str(trained), *words]) == 2
    assert "--layers" in capsys.readouterr().err


def own_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_network_without_stages_is_refused(images: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--steps", "2", *SMALL[2:]]
    words += ["--backbone", "tests.evaluation.test_layers:own_network", "--method", "rotation"]
    assert main(["pretrain", *words]) == 0  # which monitors the final features
    assert "recommended_stage" not in json.loads((tmp_path / "run" / "run.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--layers", "best"]) == 2
    assert "--layers" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--labels", "all", "--protocol", "knn"]) == 0
