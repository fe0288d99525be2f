"""The pictures of docs/evaluation.md. `python -m benchmarks.explanations`

Two are drawn from made-up points, and say so; the third from results/methods.json.
"""

import json
import math
from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor

from benchmarks.common import RESULTS
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.protocol import Features, Protocol
from selftaught.features.statistics import measure

OUT = Path(__file__).parents[1] / "docs" / "figures" / "evaluation"
COLOURS = ("#4c72b0", "#dd8452")
WIDTH, HEIGHT = 8.0, 2.9  # inches


def save(name: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    pyplot.tight_layout()
    pyplot.savefig(OUT / name, dpi=110)
    pyplot.close()


def moons(n: int, noise: float) -> Features:
    """Two interleaved half circles of n points each."""
    rng = torch.Generator().manual_seed(0)
    angle = torch.rand(n, generator=rng) * math.pi
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.4 - angle.sin()], 1)
    points = torch.cat([upper, lower]) + noise * torch.randn(2 * n, 2, generator=rng)
    return Features(points - points.mean(0), torch.arange(2).repeat_interleave(n))


def on_sphere(points: Tensor) -> Tensor:
    """Points [N, 2] as unit vectors [N, 3] whose cosine falls with their distance."""
    return torch.nn.functional.normalize(
        torch.cat([points, 2.5 * torch.ones(len(points), 1)], 1), dim=1
    )


def regions(axes: Axes, protocol: Protocol, features: Features, title: str) -> None:
    """Where a protocol says which class."""
    side = torch.linspace(-2.2, 2.2, 160)
    y, x = torch.meshgrid(0.7 * side, side, indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], 1)
    of = on_sphere if isinstance(protocol, KNN) else lambda points: points
    scores = protocol.score(Features(of(features.vectors), features.labels), of(grid)).values
    axes.contourf(x, y, scores.argmax(1).view(x.shape), levels=1, colors=COLOURS, alpha=0.25)
    for label, colour in enumerate(COLOURS):
        axes.scatter(*features.vectors[features.labels == label].T, s=8, color=colour)
    axes.set(title=title, xticks=[], yticks=[])


def draw_protocols() -> None:
    features = moons(80, 0.12)
    _, panels = pyplot.subplots(1, 2, figsize=(WIDTH, HEIGHT))
    regions(panels[0], KNN(neighbours=10), features, "kNN: the nearest images vote")
    regions(panels[1], LinearProbe(), features, "linear probe: one straight border")
    save("protocols.png")


def draw_spread() -> None:
    rng = torch.Generator().manual_seed(1)
    angle = torch.rand(60, generator=rng) * 2 * math.pi
    clouds = {
        "healthy": torch.stack([angle.cos(), angle.sin()], 1),
        "one direction left": torch.stack([angle.cos().sign(), 0.05 * angle.sin()], 1),
        "collapsed": 1 + 0.02 * torch.randn(60, 2, generator=rng),
    }
    _, panels = pyplot.subplots(1, 3, figsize=(WIDTH, HEIGHT))
    for axes, (name, points) in zip(panels, clouds.items(), strict=True):
        result = measure(points)
        unit = torch.nn.functional.normalize(points, dim=1)
        axes.add_patch(pyplot.Circle((0, 0), 1, fill=False, color="0.8"))
        axes.scatter(*unit.T, s=14, color=COLOURS[0], alpha=0.7)
        title = f"{name}:\nspread {result['std']:.2f}, effective rank {result['rank']:.2f}"
        axes.set_title(title, fontsize=9)
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")
    save("spread.png")


def draw_paired() -> None:
    rows = json.loads((RESULTS / "methods.json").read_text())["rows"]
    where = {"method": "simclr", "seed": 1, "protocol": "linear", "labels": "all"}
    of = {r["part"]: r for r in rows if all(r[k] == v for k, v in where.items())}
    _, (scores, gain) = pyplot.subplots(1, 2, figsize=(WIDTH, 2.2), width_ratios=(3, 2))
    parts = {"plain": "plain", "hexa": "with hard examples"}
    for place, part in enumerate(parts):
        interval(scores, place, of[part], COLOURS[place])
    scores.set(yticks=range(2), yticklabels=parts.values(), ylim=(1.6, -0.6))
    scores.set_xlabel("linear probe, balanced accuracy in %")
    interval(gain, 0, of["hexa"]["over"], "0.3")
    gain.axvline(0, color="0.6", linestyle=":")
    gain.set(yticks=[], ylim=(0.6, -0.6), xlabel="difference in points, image by image")
    save("paired.png")


def interval(axes: Axes, place: int, row: dict[str, float], colour: str) -> None:
    low, mean, high = (100 * row[k] for k in ("low", "mean", "high"))
    axes.errorbar(
        [mean], [place], xerr=[[mean - low], [high - mean]], fmt="o", capsize=4, color=colour
    )


if __name__ == "__main__":
    draw_protocols()
    draw_spread()
    draw_paired()
