"""The figures of the paper for a study: one panel for each target and base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selftaught import files
from selftaught.errors import UserError
from selftaught.study.tables import Rows, budget, labelled

# from Okabe & Ito's palette, which most colour-blind people can distinguish
COLOURS = {
    "HPT": "#0072B2",
    "HPT-BN": "#56B4E9",
    "adapt": "#CC79A7",
    "Target": "#D55E00",
    "Base": "#009E73",
    "base as is": "#8FBC8F",
    "random": "#999999",
    "B": "#009E73",
    "B+S": "#E69F00",
    "B+T": "#0072B2",
    "B+S+T": "#CC79A7",
}
# labels of the x axis; studies without one show dots by the number of labels
AXES = {
    "separability": "steps of pretraining on the target",
    "augmentations": "augmentations left",
    "data": "share of the target's images, %",
}
WORDS = {"balanced_accuracy": "balanced accuracy, %", "auroc": "AUROC, %"}


def draw(study: str, points: Rows, out: Path) -> list[Path]:
    """Draw PNG and SVG for each protocol; return the files. Raises UserError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("the figures need matplotlib: pip install 'selftaught[study]'") from None
    written = []
    for protocol in sorted({p["protocol"] for p in points}):
        of = [p for p in points if p["protocol"] == protocol]
        budgets = sorted({p["labels"] for p in of}, key=budget)
        if study not in AXES or len(budgets) == 1:  # otherwise one figure for each budget
            written += sheet(study, of, out / f"{study}-{protocol}", pyplot)
            continue
        for labels in budgets:
            name = f"{study}-{protocol}-{labels.replace(':', '')}"
            written += sheet(study, [p for p in of if p["labels"] == labels], out / name, pyplot)
    return written


def sheet(study: str, points: Rows, name: Path, pyplot: Any) -> list[Path]:
    """Draw one figure as PNG and SVG, with a row for each target and a column for each base."""
    targets, bases = (list(dict.fromkeys(p[k] for p in points)) for k in ("target", "base"))
    size = (4.6 * len(bases) + 0.4, 3.6 * len(targets) + 0.9)
    figure, axes = pyplot.subplots(
        len(targets), len(bases), figsize=size, squeeze=False, layout="constrained"
    )
    names: dict[str, Any] = {}
    for axis_row, target in zip(axes, targets, strict=True):
        of = [p for p in points if p["target"] == target]
        metric = (
            "balanced_accuracy" if any(p["metric"] == "balanced_accuracy" for p in of) else "auroc"
        )
        axis_row[0].set_ylabel(WORDS[metric], fontsize=9)
        for axis, base in zip(axis_row, bases, strict=True):
            panel = [p for p in of if p["base"] == base and p["metric"] == metric]
            axis.set_title(f"{target}, from {base}", fontsize=10)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#e8e8e8", lw=0.8)
            axis.set_axisbelow(True)
            if not panel:
                axis.text(
                    0.5, 0.5, "not done yet", transform=axis.transAxes, ha="center", color="#999999"
                )
                axis.set(xticks=[], yticks=[])
                continue
            if study in AXES:
                curves(study, axis, panel)
            else:
                dots(axis, panel)
            axis.set_ylim(top=min(axis.get_ylim()[1], 101))
            names |= {
                label: handle
                for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
    columns = min(len(names), 3 * len(bases))
    figure.legend(
        names.values(),
        names.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
    pictures = [name.with_name(name.name + suffix) for suffix in (".png", ".svg")]
    for picture in pictures:
        files.atomic(picture, lambda draft: figure.savefig(draft, dpi=130))
    pyplot.close(figure)
    return pictures


def style(variant: str) -> dict[str, Any]:
    """Colour and line of a variant."""
    plain = variant.removesuffix(" + hard")
    return {"color": COLOURS.get(plain, "#333333"), "linestyle": "--" if plain != variant else "-"}


def whiskers(of: Rows) -> list[list[float]]:
    """Distances of `low` and `high` from the mean, in percent."""
    return [[100 * (p["mean"] - p["low"]) for p in of], [100 * (p["high"] - p["mean"]) for p in of]]


def curves(study: str, axis: Any, panel: Rows) -> None:
    """Draw curves over the axis of the study, with the range from `low` to `high`.

    A single point is a diamond, and references are horizontal lines.
    """
    order: Sequence[str] = list(dict.fromkeys(p["x"] for p in panel if p["x"]))
    numeric = study in ("separability", "data")
    if numeric:
        axis.set_xscale("log")

    def place(x: str) -> float:
        return float(x.removesuffix("%")) if numeric else float(order.index(x))

    for variant in dict.fromkeys(p["variant"] for p in panel):
        of = [p for p in panel if p["variant"] == variant]
        if not of[0]["x"]:
            axis.axhline(100 * of[0]["mean"], **{**style(variant), "linestyle": ":"}, label=variant)
            continue
        of = sorted(of, key=lambda p: place(p["x"]))
        xs, ys = [place(p["x"]) for p in of], [100 * p["mean"] for p in of]
        face = "white" if variant.endswith(" + hard") else style(variant)["color"]
        if len(of) == 1:
            single = {
                "fmt": "D",
                "markersize": 6,
                "markerfacecolor": face,
                "elinewidth": 1.5,
                "zorder": 3,
            }
            axis.errorbar(
                xs, ys, whiskers(of), color=style(variant)["color"], label=variant, **single
            )
            continue
        axis.plot(
            xs,
            ys,
            marker="o",
            markersize=4.5,
            markerfacecolor=face,
            label=variant,
            **style(variant),
        )
        low, high = ([100 * p[k] for p in of] for k in ("low", "high"))
        axis.fill_between(xs, low, high, color=style(variant)["color"], alpha=0.15, lw=0)
    ticks = sorted({place(x) for x in order})
    if numeric:
        axis.set_xticks(ticks, [f"{t:,g}" for t in ticks], rotation=45 if len(ticks) > 5 else 0)
        axis.minorticks_off()
    else:
        axis.set_xticks(ticks, order, rotation=20)
    axis.set_xlabel(AXES[study], fontsize=9)


def dots(axis: Any, panel: Rows) -> None:
    """Draw a group of dots for each number of labels, with the range from `low` to `high`.

    Dots, and not bars, allow an axis that does not start at 0.
    """
    budgets = sorted({p["labels"] for p in panel}, key=budget)
    variants = list(dict.fromkeys(p["variant"] for p in panel))
    for i, variant in enumerate(variants):
        of = [p for p in panel if p["variant"] == variant]
        xs = [
            budgets.index(p["labels"]) + (i - (len(variants) - 1) / 2) * 0.7 / len(variants)
            for p in of
        ]
        colour = style(variant)["color"]
        face = {
            "markerfacecolor": "white" if variant.endswith(" + hard") else colour,
            "markersize": 6,
            "elinewidth": 1.5,
        }
        axis.errorbar(
            xs,
            [100 * p["mean"] for p in of],
            whiskers(of),
            fmt="o",
            color=colour,
            label=variant,
            **face,
        )
    for between in range(1, len(budgets)):
        axis.axvline(between - 0.5, color="#e8e8e8", lw=0.8, zorder=0)
    axis.set_xlim(-0.5, len(budgets) - 0.5)
    axis.set_xticks(range(len(budgets)), [labelled(b) for b in budgets])
