"""The page, the album and the tables of a run that looks real."""

import json
import math
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from selftaught.errors import UserError
from selftaught.report import charts, console_tables, page, samples, scores
from selftaught.runs.reader import RunContent, load_all
from selftaught.visualize import album, snapshots
from tests.fixtures import Places

PHOTOS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "rocket.jpg")


def patches(n: int, size: int = 64) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """n patches of scikit-image's photographs: uint8 [n, 3, size, size], labels [n], classes."""
    folder = Path(skimage.__file__).parent / "data"
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for i in range(n):
        with Image.open(folder / PHOTOS[i % len(PHOTOS)]) as photo:
            pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)
        side = 110
        top, left = (
            int(torch.randint(0, d - side, (1,), generator=generator)) for d in pixels.shape[1:]
        )
        crop = pixels[None, :, top : top + side, left : left + side].float()
        small = torch.nn.functional.interpolate(
            crop, size=(size, size), mode="bilinear", antialias=True
        )
        pictures.append(small[0].round().clamp(0, 255).to(torch.uint8))
    classes = tuple(photo.partition(".")[0] for photo in PHOTOS)
    return torch.stack(pictures), torch.arange(n) % len(PHOTOS), classes


def fake_album(
    folder: Path, *, n: int = 60, labelled: bool = True, hard: bool = True, spread: float = 0.45
) -> None:
    """An album of photographs, with random features that depend on the class a little."""
    pixels, labels, classes = patches(n)
    generator = torch.Generator().manual_seed(1)
    views = []
    for size in (64, 64, 32):
        top = int(torch.randint(0, 20, (1,), generator=generator))
        crop = pixels[:6, :, top : top + 40, 10:50].float() / 255
        crop = torch.nn.functional.interpolate(crop, size=(size, size), mode="bilinear")
        gain = 0.7 + 0.6 * torch.rand(6, 3, 1, 1, generator=generator)
        views.append((crop * gain).clamp(0, 1))
    album.write_views(folder, pixels[:6], views)
    entries: list[dict[str, Any]] = []
    for i in range(4 if hard else 0):
        clean = pixels[i].float() / 255
        if i % 2 == 0:
            noise = torch.randn(3, 64, 64, generator=generator).sign() * 2 / 255
            harder = {"kind": "adversarial", "clean": clean, "hard": (clean + noise).clamp(0, 1)}
            entries.append({**harder, "loss_before": 4.31, "loss_after": 6.02})
        else:
            mixed = clean.clone()
            mixed[:, 8:40, 20:60] = pixels[i + 6, :, 8:40, 20:60].float() / 255
            partner, note = pixels[i + 6].float() / 255, "69 % of the area kept"
            harder = {"kind": "cutmix", "clean": clean, "partner": partner, "hard": mixed}
            entries.append({**harder, "loss_before": 4.5, "loss_after": 5.9, "note": note})
    album.write_hard(folder, entries)
    centres = torch.randn(len(classes), 32, generator=generator)
    vectors = spread * centres[labels] + 0.6 * torch.randn(n, 32, generator=generator)
    map_labels = labels if labelled else None
    album.write_neighbours(folder, pixels, vectors, map_labels, classes=classes)
    album.write_map(folder, vectors, pixels, map_labels, classes)


def journal(
    steps: int = 2000, every: int = 10, *, hard: bool = True, level: float = 0.0
) -> list[dict[str, Any]]:
    """Records of a healthy run."""
    noise = torch.randn(
        steps // every + 1, 4, generator=torch.Generator().manual_seed(int(level * 10) + 3)
    ).tolist()
    records = []
    for i, step in enumerate(range(0, steps + 1, every)):
        share = step / steps
        clean = 4.2 - 1.6 * (1 - math.exp(-4 * share)) + 0.08 * noise[i][0] + level
        parts = {"clean": clean}
        if hard:
            parts |= {"adversarial": clean + 0.9 + 0.05 * noise[i][1], "cutmix": clean + 0.5}
        features = None
        if step % (every * 10) == 0:
            features = {
                "std": 0.35 + 0.5 * share + 0.01 * noise[i][2] - 0.1 * level,
                "rank": 20 + 60 * share,
                "alignment": 0.9 - 0.4 * share,
                "uniformity": -1.2 - 1.6 * share,
                "knn": 0.42 + 0.3 * share**0.5 + 0.01 * noise[i][3] - 0.05 * level,
            }
        records.append(
            {
                "step": step,
                "epoch": step / 74,
                "loss": sum(parts.values()) / len(parts),
                "losses": parts,
                "lr": 0.03 * (1 + math.cos(math.pi * share)),
                "images_per_s": 310 + 12 * noise[i][1],
                "wait": min(1.0, abs(0.04 + 0.01 * noise[i][2])),
                "seconds": step * 0.4,
                "features": features,
            }
        )
    return records


def evaluation(
    *, lift: float = 0.12, data: str = "labelled/", trained: str = "trained", shift: float = 0.0
) -> dict[str, Any]:
    """An evaluation.json: against random initialisation and starting weights."""
    rows, differences = [], []
    for protocol in ("knn", "linear"):
        for labels, base in (("5", 0.48), ("20", 0.60), ("all", 0.74)):
            setting = {"protocol": protocol, "labels": labels, "metric": "balanced_accuracy"}
            own = base + lift
            for name, mean in ((trained, own + shift), ("random", base), ("init", own - 0.01)):
                score = {"mean": mean, "low": mean - 0.02, "high": mean + 0.021}
                rows.append({"backbone": name, **setting, **score, "draws": 5})
            for other, gain in (("random", lift), ("init", 0.01)):
                score = {"mean": gain, "low": gain - 0.02, "high": gain + 0.02}
                differences.append({"backbone": trained, "against": other, **setting, **score})
    return {
        "data": data,
        "fingerprint": "e" * 64,
        "command": (
            "selftaught evaluate runs/hexa --data labelled/ --labels 5 20 all --against random init"
        ),
        "date": "2031-05-04T10:00:00",
        "rows": rows,
        "differences": differences,
        "verdict": (
            "+12.0 points over random initialisation with 5 labels a class (95 % interval +10.0 to"
            " +14.0); not distinguishable from the starting weights."
        ),
    }


HARD = ({"name": "adversarial", "eps": 2, "steps": 1}, {"name": "cutmix", "beta": 1.0})


def fake_run(
    folder: Path,
    *,
    labelled: bool = True,
    hard: bool = True,
    records: Sequence[dict[str, Any]] | None = None,
    evaluations: Sequence[dict[str, Any]] | None = None,
    pictures: int = 0,
    **changes: Any,
) -> Path:
    """A run folder as `selftaught pretrain` leaves it; `changes` replace parts of run.json."""
    folder.mkdir(parents=True)
    about: dict[str, Any] = {
        "selftaught": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.9.0", "timm": "1.0.22"},
        "config": {
            "method": {"name": "moco-v2", "temperature": 0.2, "queue": 4096, "symmetric": True},
            "hard": [dict(h) for h in HARD if hard],
            **{"backbone": "resnet18", "stem": "cifar", "size": 64, "batch": 128, "epochs": 27},
            "optimizer": {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 0.0005},
            "views": {"pipeline": "fast", "scale": [0.2, 1.0], "large": 2},
        },
        "data": {
            "fingerprint": "0123456789abcdef" * 4,
            "images": 9469,
            "train": 7575,
            "held_out": 1894,
            "classes": [photo.partition(".")[0] for photo in PHOTOS] if labelled else [],
            "labels": labelled,
            "split": "drawn",
            "unreadable": [["photos/half.jpg", "truncated"], ["photos/notes.jpg", "not an image"]],
            "roots": ["photos"],
        },
        "command": "selftaught pretrain --data photos/ --hard adversarial cutmix --out runs/hexa",
        "seed": 0,
        "lineage": [{"init": None, "data": "photos", "steps": 2000}],
        "device": "cpu",
        "finished": True,
        "outcome": "done",
    } | changes
    (folder / "run.json").write_text(json.dumps(about))
    lines = [json.dumps(record) for record in (journal(hard=hard) if records is None else records)]
    (folder / "journal.jsonl").write_text("".join(line + "\n" for line in lines))
    if evaluations is not None:
        (folder / "evaluation.json").write_text(json.dumps(list(evaluations)))
    if pictures:
        fake_album(folder / "album", n=pictures, labelled=labelled, hard=hard)
    return folder


class Page(HTMLParser):
    """A parsed page: tags with attributes, visible text, and a check that all tags are closed."""

    VOID = frozenset(["meta", "img", "br", "link", "input", "hr"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop() if self.open else None
        assert closed == tag, f"</{tag}> closes <{closed}>"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(*runs: Path) -> Page:
    return Page(page.write(runs, runs[0].parent / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: Places) -> Path:
    return fake_run(
        tmp_path_factory.mktemp("runs") / "hexa", evaluations=[evaluation()], pictures=60
    )


def test_the_verdict_comes_first(full: Path) -> None:
    document = written(full)
    verdict = document.text.index("+12.0 points over random initialisation")
    assert 0 < verdict < document.text.index("Before and after")
    parts = "scores training speed views hard neighbours map data configuration reproduce"
    for part in parts.split():
        assert any(section.get("id") == part for section in document.all("section")), part
    for words in (
        "▲ better",
        "≈ not distinguishable",
        "58.0 to 62.1",
        "9 469 images",
        "photos/half.jpg",
        "optimizer.lr",
        "selftaught pretrain --data photos/",
        "selftaught evaluate runs/hexa",
        "Loss 4.31 → 6.02 , harder (+40 %)",
        "Perturbation ×64; at most 2/255 a pixel",
        "2.9.0",
    ):
        assert words in document.text, words
    assert "Problem" not in document.text
    assert "Not finished" not in document.text


def test_the_page_has_no_external_resources(full: Path) -> None:
    document = written(full)
    html = (full.parent / "report.html").read_text(encoding="utf-8")
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    for _, attributes in document.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            if (target := attributes.get(key)) is not None:
                assert target.startswith(("data:image/", "#")), target
    policy = next(
        meta for meta in document.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in str(policy["content"])
    assert len(html) < 3_000_000


def test_pictures_and_tables_can_be_heard(full: Path) -> None:
    document = written(full)
    assert all(image.get("alt") for image in document.all("img"))
    assert len(document.all("img")) > 40
    assert all(head.get("scope") for head in document.all("th"))
    assert all(
        chart.get("aria-label") for chart in document.all("svg") if chart.get("role") == "img"
    )
    headings = [int(tag[1]) for tag, _ in document.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    ids = [str(attributes["id"]) for _, attributes in document.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for tag in ("a", "use") for a in document.all(tag) if a.get("href")}
    assert links <= set(ids)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("evaluation.json", "Not evaluated yet"),
        ("journal.jsonl", "No step has been logged yet"),
        ("album/views.png", "No example views were saved"),
        ("album/hard.json", "The run trains on hard examples, but none were saved"),
        ("album", "No map was saved"),
    ],
)
def test_a_missing_part_is_named(full: Path, tmp_path: Path, missing: str, sentence: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(full, run)
    shutil.rmtree(run / missing) if (run / missing).is_dir() else (run / missing).unlink()
    assert sentence in written(run).text


def test_an_almost_empty_run_is_a_page(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "run.json").write_text("{}")
    text = written(run).text
    assert "Not finished" in text
    assert "before the first step was logged" in text
    assert "not recorded" in text


def test_a_torn_journal_and_a_resumed_one(tmp_path: Path) -> None:
    records = journal(100)
    # the clock began anew
    again = [record | {"seconds": record["seconds"] - 32.0} for record in records[8:]]
    run = fake_run(
        tmp_path / "torn", records=[*records[:9], *again], outcome="running", finished=False
    )
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"step": 110, "loss": 3.')
    (loaded,) = load_all([run])
    assert (loaded.torn, loaded.repeated) == (1, 1)
    steps = [record["step"] for record in loaded.journal]
    assert steps == sorted(set(steps)) == [record["step"] for record in records]
    seconds = [record["seconds"] for record in loaded.journal]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(36.0, abs=8.1)
    text = written(run).text
    assert "1 line of journal.jsonl could not be read" in text
    assert "Not finished: the last record is at step 100" in text


def test_banners_of_each_outcome(tmp_path: Path) -> None:
    records = journal(100)
    records[3] |= {"loss": math.nan, "losses": {"clean": math.inf}}
    run = fake_run(
        tmp_path / "a",
        records=records,
        outcome="collapsed",
        finished=False,
        warnings=["lr is 100x the usual"],
    )
    text = written(run).text
    assert "Collapsed: training was stopped at step 100." in text
    assert "Do not use this backbone" in text
    assert "not finite in 1 logged step" in text
    assert "lr is 100x the usual" in text
    assert text.index("Collapsed") < text.index("Not evaluated yet")
    stopped = fake_run(tmp_path / "b", records=journal(50), outcome="stopped", finished=False)
    assert "Stopped early at step 50." in written(stopped).text
    assert "--resume" in written(stopped).text


def test_the_look_before_the_first_step_is_no_alarm(tmp_path: Path) -> None:
    first: dict[str, Any] = {"step": 0, "epoch": 0, "losses": {}, "skipped": 0}
    first |= dict.fromkeys(("loss", "images_per_s", "wait"))
    run = fake_run(tmp_path / "plain", records=[first, *journal(50)[1:]], hard=False)
    fake_album(run / "album", n=16, hard=True)
    text = written(run).text
    assert "Problem" not in text
    assert "skipped" not in text
    assert "This run did not train on hard examples" in text
    skipping = fake_run(tmp_path / "skipping", records=[first | {"skipped": 3}])
    assert "3 steps skipped: the gradients were not finite." in written(skipping).text


def test_without_labels_no_accuracy_is_shown(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "plain", labelled=False, pictures=16)
    text = written(run).text
    assert "ccuracy" not in text.replace("this page shows no accuracy of training", "")
    assert "kNN" not in text
    assert "same class" not in text
    assert "astronaut" not in text
    assert "Map of the embedding" in text


def test_untrusted_text_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>\'"&<img src=x onerror=y>'
    bad = [[evil, evil]]
    run = fake_run(
        tmp_path / "evil & <b>co",
        records=[{"step": 1, "loss": 1.0, "losses": {evil: 1.0, "clean": 2.0}, "features": None}],
        evaluations=[evaluation(data=evil, trained=evil) | {"verdict": evil, "command": evil}],
        pictures=16,
        config={"method": evil, "hard": [{"name": evil}], evil: evil},
        versions={evil: evil},
        command=evil,
        device=evil,
        outcome=evil,
        warnings=[evil],
        lineage=[{"init": evil, "data": evil, "steps": 3}],
        data={"classes": [evil], "labels": True, "images": 3, "roots": [evil], "unreadable": bad},
    )
    for name in ("map", "neighbours"):
        file = run / "album" / f"{name}.json"
        file.write_text(file.read_text().replace("astronaut", evil.replace('"', '\\"')))
    hard = run / "album" / "hard.json"
    hard.write_text(hard.read_text().replace('"cutmix"', json.dumps(evil)))
    document = written(run)
    assert len(document.all("script")) == 1
    assert not any(image.get("src") == "x" for image in document.all("img"))
    assert not any("onerror" in attributes for _, attributes in document.tags)
    assert not document.all("b") or "<b>co" in document.text
    assert document.text.count("alert(") > 10  # it is all there, as text


def test_pictures_come_from_the_album_only(full: Path) -> None:
    (full / "secret.png").write_bytes((full / "album" / "views.png").read_bytes())
    (full / "album" / "torn.png").write_bytes((full / "album" / "views.png").read_bytes()[:2000])
    assert samples.embed_picture(full, "views.png") is not None
    for name in (
        "../secret.png",
        str(full / "secret.png"),
        "map.json",
        "torn.png",
        "none.png",
        None,
        3,
        "..",
    ):
        assert samples.embed_picture(full, name) is None, name


def test_several_runs_stand_side_by_side(full: Path, tmp_path: Path) -> None:
    other = fake_run(
        tmp_path / "other" / "hexa",
        hard=False,
        records=journal(500, hard=False, level=0.5),
        evaluations=[evaluation(lift=0.02, shift=0.001)],
        data={"fingerprint": "x", "labels": True, "images": 5},
    )
    elsewhere = evaluation(data="elsewhere/") | {"fingerprint": "z"}
    third = fake_run(tmp_path / "third", labelled=False, records=[], evaluations=[elsewhere])
    document = written(full, other, third)
    assert "A (" in document.text
    assert "/hexa against" in document.text
    assert "is above B" in document.text
    assert "were not evaluated in the same setting" in document.text
    assert "What differs between the runs" in document.text
    assert "hard.0.name" in document.text
    assert "trained on different images" in document.text
    labels = [
        str(chart["aria-label"]) for chart in document.all("svg") if chart.get("role") == "img"
    ]
    loss = next(label for label in labels if label.startswith("Loss:"))
    assert "A (" in loss
    assert "B (" in loss
    assert "C (" not in loss
    # one run has an album
    assert len({str(a["id"]) for a in document.all("image") if a.get("id")}) == 1


def scored(own: str, mean: float, against: str = "random", gain: float = 0.1) -> dict[str, Any]:
    """An evaluation of `own`, compared with one other backbone."""
    setting = {"protocol": "knn", "labels": "all", "metric": "balanced_accuracy"}
    rows = [(own, mean), (against, mean - gain)]
    return {
        "data": "labelled/",
        "fingerprint": "e" * 64,
        "rows": [
            {"backbone": b, **setting, "mean": m, "low": m - 0.05, "high": m + 0.05, "draws": 1}
            for b, m in rows
        ],
        "differences": [
            {"backbone": own, "against": against, **setting}
            | {"mean": gain, "low": gain - 0.02, "high": gain + 0.02}
        ],
    }


@pytest.mark.parametrize("spelt", ["{folder}", "a", "runs/a", "./runs/a", "{folder}/../a"])
@pytest.mark.parametrize("own", [True, False], ids=["evaluated itself", "only as a baseline"])
def test_a_run_that_another_was_evaluated_against_is_one_row(
    tmp_path: Path, spelt: str, own: bool
) -> None:
    a = fake_run(tmp_path / "runs" / "a", evaluations=[scored("runs/a", 0.6)] if own else [])
    against = spelt.format(folder=a)
    b = fake_run(
        tmp_path / "runs" / "b",
        evaluations=[scored("elsewhere/b", 0.65, against=against, gain=0.05)],
    )
    for folders, expected in (((a, b), ["a", "b"]), ((b, a), ["b", "a"])):
        runs = load_all(folders)
        (table,) = scores.tables(runs, ["A", "B"])
        lines = table.groups[0].lines
        assert [line.name for line in lines if line.letter] == expected
        assert [line.name for line in lines if not line.letter] == (
            ["random initialisation"] if own else []
        )
        (gained,) = [line for line in lines if line.name == "b"]
        assert gained.gains["a"].mean == 0.05
        # by the paired difference
        assert "b) is above" in scores.between(runs, ["A", "B"], [table])[0]


def test_a_run_evaluated_from_two_places_is_one_row(tmp_path: Path) -> None:
    a = fake_run(
        tmp_path / "a",
        evaluations=[scored("a", 0.6), scored("../x/a", 0.7), scored("../x/a", 0.8, "a", 0.0)],
    )
    (table,) = scores.tables(load_all([a]), ["A"])
    assert [(line.letter, line.name, line.score.mean) for line in table.groups[0].lines] == [
        ("A", "a", 0.8),
        ("", "random initialisation", 0.6),
    ]


def test_one_run_named_twice_is_one(full: Path) -> None:
    assert len(load_all([full, full / "."])) == 1


def test_no_run_is_a_clear_line(full: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    for folders, essential in (
        ([], "no run"),
        ([tmp_path / "nowhere"], "nowhere"),
        ([tmp_path / "empty"], "run.json"),
        ([full.parent], str(full)),
        ([tmp_path / "broken"], "damaged"),
    ):
        with pytest.raises(UserError, match=re.escape(essential)):
            page.write(folders, out)
    assert not out.exists()
    with pytest.raises(UserError, match="cannot be written"):
        page.write([full], tmp_path / "empty")


def test_best_needs_a_distinguishable_score() -> None:
    def run(rows: list[tuple[str, float]], gains: list[tuple[str, float]]) -> RunContent:
        setting = {"protocol": "knn", "labels": "all", "metric": "auroc"}

        def score(mean: float, width: float) -> dict[str, Any]:
            return {**setting, "mean": mean, "low": mean - width, "high": mean + width}

        content = {
            "data": "d",
            "rows": [{"backbone": b, **score(m, 0.02)} for b, m in rows],
            "differences": [
                {"backbone": "trained", "against": b, **score(m, 0.01)} for b, m in gains
            ],
        }
        empty: dict[str, Any] = {"torn": 0, "repeated": 0, "journal": (), "unreadable": ()}
        empty |= {"album": {}, "about": {}}
        return RunContent(folder=Path("x"), name="x", evaluations=(content,), **empty)

    def best(*runs: RunContent) -> list[str]:
        (table,) = scores.tables(runs, ["A", "B"][: len(runs)])
        return [line.letter or line.name for line in table.groups[0].lines if line.best]

    # Paired differences decide where the intervals of the scores overlap.
    assert best(run([("trained", 0.8), ("random", 0.77)], [("random", 0.03)])) == ["A"]
    assert best(run([("trained", 0.8), ("random", 0.795)], [("random", 0.005)])) == []
    assert best(run([("trained", 0.7), ("init", 0.8)], [("init", -0.1)])) == ["starting weights"]
    two = (
        run([("trained", 0.9), ("random", 0.5)], [("random", 0.4)]),
        run([("trained", 0.89), ("random", 0.5)], [("random", 0.39)]),
    )
    assert best(*two) == []
    assert scores.overall(two[0].evaluations[0]) == "better"
    output = scores.between(two, ["A", "B"], scores.tables(two, ["A", "B"]))
    assert "not distinguishable in the one setting" in output[0]


def test_settings_read_from_few_labels_to_many() -> None:
    labels = ["all", "total:1000", "20", "5"]
    settings = [scores.Setting(metric="auroc", protocol="knn", labels=label) for label in labels]
    in_order = [s.labels for s in sorted(settings, key=lambda s: s.order)]
    assert in_order == ["5", "20", "total:1000", "all"]
    assert [scores.labels_words(label) for label in ("1", "5", "total:1000", "all")] == [
        "1 label a class",
        "5 labels a class",
        "1000 labels in all",
        "all labels",
    ]
    assert scores.points(-0.0312) == "\u22123.1"


def test_curves_break_at_gaps_and_labels_keep_apart() -> None:
    x = list(range(10))
    gaps = [1.0, 2.0, None, 3.0, 4.0, None, 5.0, None, 6.0, 6.0]
    series = [
        charts.Series(label="a", name="a", colour=0, x=x, y=gaps),
        charts.Series(label="b", name="b", colour=1, x=x, y=[6.0] * 10),
        charts.Series(label="c", name="c", colour=2, x=x[:5], y=[3.0] * 5),
    ]
    drawing = charts.chart("t", series)
    assert drawing is not None
    assert len(drawing.curves[0].paths) == 3
    assert len(drawing.curves[0].dots) == 1
    assert abs(drawing.curves[0].label_at[1] - drawing.curves[1].label_at[1]) >= 13
    # a shorter run's label stands where it ends
    assert drawing.curves[2].label_at[0] < drawing.curves[0].label_at[0]
    assert charts.chart("t", [charts.Series(label="", name="", colour=0, x=[], y=[])]) is None
    alone = charts.chart("t", [charts.Series(label="", name="", colour=0, x=[3.0], y=[2.0])])
    assert alone is not None
    assert len(alone.curves[0].dots) == 1


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.42, 0.73), (-2.8, -1.2), (0, 60_000), (3.0, 3.0), (0, 0), (1e-5, 3e-5)],
)
def test_ticks_are_round_and_reach_both_ends(low: float, high: float) -> None:
    marks = charts.ticks(low, high, 4)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 8
    texts = [charts.tick_text(mark, marks) for mark in marks]
    assert len(set(texts)) == len(texts), texts


def test_the_perturbation_is_magnified_by_a_power_of_two() -> None:
    clean = torch.full((3, 8, 8), 0.5)
    hard = clean + 2 / 255 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    picture, factor, radius = album.magnify(clean, hard)
    assert factor == 64
    assert radius == pytest.approx(2 / 255)
    assert torch.equal(picture > 0.5, hard > clean)
    assert album.magnify(clean, clean)[1:] == (1, 0.0)


def test_neighbours_are_those_of_largest_cosine(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 5, generator=generator)
    vectors[3] = torch.nan  # is left out
    thumbnails = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 16, 16) * 10
    labels = torch.arange(20) % 2
    names = ("x", "y")
    file = album.write_neighbours(tmp_path, thumbnails, vectors, labels, 4, 3, classes=names)
    content = json.loads(file.read_text())

    def which(name: str) -> int:
        with Image.open(tmp_path / name) as picture:
            return int(picture.getpixel((8, 8))[0]) // 10

    assert content["of"] == 20
    assert len(content["groups"]) == 4
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    for group in content["groups"]:
        query = which(group["query"])
        cosines = {j: float(unit[query] @ unit[j]) for j in range(20) if j not in (query, 3)}
        expected = sorted(cosines, key=lambda j: -cosines[j])[:3]
        assert [which(name) for name in group["neighbours"]] == expected
        assert group["labels"] == [("x", "y")[j % 2] for j in expected]
    assert {group["label"] for group in content["groups"]} == {"x", "y"}


@pytest.mark.parametrize("n", [0, 1, 2, 5, 40])
def test_a_map_of_any_size_lies_in_its_square(tmp_path: Path, n: int) -> None:
    vectors = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    thumbnails = torch.zeros(n, 3, 8, 8, dtype=torch.uint8)
    content = json.loads(album.write_map(tmp_path, vectors, thumbnails, None).read_text())
    assert len(content["points"]) == n
    assert all(0 <= value <= 1 for point in content["points"] for value in point)
    assert content["labels"] is None
    again = json.loads(album.write_map(tmp_path, vectors, thumbnails, None).read_text())
    assert again == content
    album.write_neighbours(tmp_path, thumbnails, vectors, None)


def test_a_collapsed_embedding_and_several_classes_at_once(tmp_path: Path) -> None:
    vectors = torch.ones(30, 4)
    labels = torch.zeros(30, 3, dtype=torch.uint8)
    labels[0, 2] = labels[1, 0] = labels[1, 1] = 1
    thumbnails = torch.zeros(30, 3, 8, 8, dtype=torch.uint8)
    names = ("p", "q", "r")
    file = album.write_map(tmp_path, vectors, thumbnails, labels, names, limit=25)
    content = json.loads(file.read_text())
    assert content["method"] == "all features are equal"
    assert len(content["points"]) == 25
    assert content["of"] == 30
    assert album.single_labels(labels)[:3].tolist() == [2, -1, -1]
    assert [album.label_text(labels[i], names) for i in range(3)] == ["r", "p | q", "none"]


def test_views_stand_beside_their_image(tmp_path: Path) -> None:
    originals = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    views = [torch.ones(2, 3, 64, 64), torch.full((2, 3, 32, 32), 0.5)]
    content = json.loads(album.write_views(tmp_path, originals, views).read_text())
    assert content == {"columns": ["original", "view 1", "small view 1"], "rows": 2, "tile": 64}
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == (3 * 68 - 4, 2 * 68 - 4)
        assert picture.getpixel((32, 32)) == (0, 0, 0, 255)
        assert picture.getpixel((100, 100)) == (255, 255, 255, 255)
        assert picture.getpixel((136 + 32, 32)) == (128, 128, 128, 255)
        assert picture.getchannel("A").getpixel((138, 2)) == 0


@pytest.mark.parametrize(
    ("shape", "side"), [((3, 8, 8), (8, 8)), ((4, 3, 8, 8), (16, 16)), ((7, 7, 3, 4, 4), (28, 28))]
)
def test_parts_of_an_image_are_one_picture(shape: tuple[int, ...], side: tuple[int, int]) -> None:
    leaf = torch.rand(2, *shape)
    sheet = snapshots.tile(leaf)
    assert sheet.shape == (2, 3, *side)
    corner = leaf[(slice(None), *(-1 for _ in shape[:-3]))]  # the last part
    assert torch.equal(sheet[:, :, -corner.shape[2] :, -corner.shape[3] :], corner)
    assert snapshots.tile(torch.rand(2, 5, 1, 4, 4)).shape == (2, 3, 8, 12)  # grey, and a gap


def test_tables_for_the_terminal() -> None:
    console = Console(width=80, record=True, file=StringIO())
    content = evaluation()
    console.print(console_tables.evaluation(content["rows"], content["differences"]))
    console.print(console_tables.evaluation([]))
    method = {"name": "moco[v2]", "kind": "method", "family": "contrastive", "paper": ""}
    method["summary"] = "Momentum [bold]contrast"
    fields = [
        {"flag": "--method.t", "values": "number", "default": 0.2, "meaning": "of all"},
        {
            "flag": "--method.betas",
            "values": "number number",
            "default": (0.9, 0.99),
            "meaning": "",
        },
        {"flag": "--method.on", "values": "yes or no", "default": True, "meaning": ""},
    ]
    console.print(console_tables.method_list([method]))
    console.print(console_tables.method_fields({**method, "fields": fields}))
    text = console.export_text()
    for words in (
        "Balanced accuracy",
        "60.0 (58.0 to 62.1)",
        "▲ +12.0 (+10.0 to +14.0)",
        "≈ +1.0",
        "moco[v2]",
        "[bold]contrast",
        "contrastive methods",
        "--method.t       0.2        number",
        "0.9 0.99   number number",
        "yes        yes or no",
    ):
        assert words in text, words
