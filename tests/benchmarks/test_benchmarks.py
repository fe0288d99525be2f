"""What benchmarks do with their numbers, where that is more than printing them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, hpt
from selftaught.study.runner import MARKER


def row(part: str, seed: int, mean: float, **more: Any) -> dict[str, Any]:
    about = {"method": "simclr", "part": part, "seed": seed, "protocol": "knn", "labels": "all"}
    return {**about, "mean": mean, "low": mean - 0.03, "high": mean + 0.03, **more}


def test_results_of_earlier_runs_stay_and_what_they_were_compared_with_is_remembered() -> None:
    """A peer's gain over a plain run that was since replaced would be the gain over something
    else.
    """
    methods = pytest.importorskip("benchmarks.methods", reason="needs what benchmarks compare with")
    over = {"mean": -0.1, "low": -0.11, "high": -0.09}
    old = methods.joined(
        [],
        [
            row("plain", 0, 0.4),
            row("peer", 0, 0.3, over=dict(over)),
            row("peer", 1, 0.3, over=dict(over)),
        ],
    )
    kept = methods.joined(old, [row("plain", 1, 0.5)])
    assert len(kept) == 4
    assert all(r["over"]["mean"] == -0.1 for r in kept if r["part"] == "peer" and r["seed"] == 0)
    replaced = methods.joined(kept, [row("plain", 0, 0.5)])
    (peer,) = (r for r in replaced if r["part"] == "peer" and r["seed"] == 0)
    assert peer["over"]["mean"] == pytest.approx(-0.2)
    # two means, each as sure as it is
    assert peer["over"]["high"] - peer["over"]["mean"] == pytest.approx(0.03 * 2**0.5)
    assert methods.joined(replaced, []) == replaced


def test_a_gain_is_told_beside_what_a_seed_alone_does() -> None:
    methods = pytest.importorskip("benchmarks.methods", reason="needs what benchmarks compare with")

    def of(name: str, part: str, seed: int, mean: float, **more: Any) -> dict[str, Any]:
        return row(part, seed, mean, **more) | {"method": name}

    plain = [
        of("simclr", "plain", 0, 0.40),
        of("simclr", "plain", 1, 0.42),
        of("byol", "plain", 0, 0.50),
    ]
    # one method has two seeds, two points apart
    assert methods.between_seeds(plain, "knn") == (1, pytest.approx(2))
    # means by method: +2 and -2
    gains = [("simclr", 0, 0.01), ("simclr", 1, 0.03), ("byol", 0, -0.02)]
    hexa = [of(name, "hexa", seed, 0.4, over={"mean": gain}) for name, seed, gain in gains]
    gain, low, high = methods.across([*plain, *hexa], "knn")
    assert gain == pytest.approx(0)
    # t for one degree of freedom, s / sqrt(2) = 2
    assert high == pytest.approx(-low) == pytest.approx(12.706 * 2, rel=1e-3)


def test_random_weights_of_a_seed_count_once_however_many_runs_they_stood_beside() -> None:
    methods = pytest.importorskip("benchmarks.methods", reason="needs what benchmarks compare with")
    rows = [row("random", 0, 0.2) | {"method": name} for name in ("simclr", "byol", "swav")] + [
        row("random", 1, 0.4)
    ]
    assert methods.average(rows, protocol="knn", labels="all") == pytest.approx(30)
    assert methods.average(rows, protocol="linear") is None


def test_earlier_rows_stay_unless_they_were_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    rows = [{"method": "jigsaw", "seed": 0, "mean": 0.1}, {"method": "mae", "seed": 0, "mean": 0.2}]
    assert len(common.merge_earlier("table", rows, ("method", "seed"))) == 2  # the first time
    there = {"cpu": "another", "gpu": "large", "commit": "abc"}
    own = {"method": "mae", "seed": 1, "mean": 0.4, "gpu": None}  # from a third machine
    (tmp_path / "table.json").write_text(json.dumps({"machine": there, "rows": [*rows, own]}))
    new = {"method": "jigsaw", "seed": 0, "mean": 0.3}
    result = common.merge_earlier("table", [new], ("method", "seed"))
    assert [row["mean"] for row in result] == [0.3, 0.2, 0.4]
    assert [row["cpu"] for row in result] == [common.machine()["cpu"], "another", "another"]
    assert [row["gpu"] for row in result[1:]] == ["large", None]


def test_a_study_is_collected_beside_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker of a folder of studies is no study, and one that is not whole is left out."""
    results, studies = tmp_path / "benchmarks" / "results", tmp_path / "studies"
    for folder in (results, studies):
        folder.mkdir(parents=True)
    for module in (common, hpt):
        monkeypatch.setattr(module, "RESULTS", results)
    earlier = {"machine": {"commit": "a"}, "studies": {"data": {"rows": [1]}, "labels": {}}}
    (results / "hpt.json").write_text(json.dumps(earlier))
    (studies / MARKER).write_text(json.dumps({"selftaught": "1"}))
    (studies / "labels.json").write_text(json.dumps({"done": 2, "cells": 2, "rows": [2]}))
    (studies / "sequential.json").write_text(json.dumps({"done": 1, "cells": 2, "rows": [3]}))
    hpt.collect([studies])
    collected = json.loads((results / "hpt.json").read_text())["studies"]
    assert {name: study["rows"] for name, study in collected.items()} == {
        "data": [1],
        "labels": [2],
    }
    assert collected["data"]["machine"] == {"commit": "a"}
    assert collected["labels"]["machine"]["python"]
