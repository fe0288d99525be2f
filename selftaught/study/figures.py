"""The article's figures, from a study's points: one panel for each target and base."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selftaught.errors import UserError
from selftaught.study.tables import Rows

COLOURS = {  # Okabe & Ito's, which most colour-blind people can tell apart
    "HPT": "#0072B2", "HPT-BN": "#56B4E9", "Target": "#D55E00", "Base": "#009E73", "base as is": "#8FBC8F",
    "random": "#999999", "B": "#009E73", "B+S": "#E69F00", "B+T": "#0072B2", "B+S+T": "#CC79A7",
}  # fmt: skip
AXES = {
    "separability": "steps of pretraining on the target",
    "augmentations": "augmentations left",
    "data": "share of the target's images",
}
WORDS = {"balanced_accuracy": "balanced accuracy, %", "auroc": "AUROC, %"}


def draw(study: str, points: Rows, out: Path) -> list[Path]:
    """PNG and SVG for each protocol; the files that were written. Raises UserError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("the figures need matplotlib: pip install 'selftaught[study]'") from None
    written = []
    for protocol in sorted({p["protocol"] for p in points}):
        of = [p for p in points if p["protocol"] == protocol]
        metric = "balanced_accuracy" if any(p["metric"] == "balanced_accuracy" for p in of) else "auroc"
        of = [p for p in of if p["metric"] == metric]
        targets, bases = (list(dict.fromkeys(p[k] for p in of)) for k in ("target", "base"))
        size = (4.6 * len(bases) + 0.4, 3.6 * len(targets) + 0.9)
        figure, axes = pyplot.subplots(len(targets), len(bases), figsize=size, squeeze=False, layout="constrained")
        for axis_row, target in zip(axes, targets, strict=True):
            for axis, base in zip(axis_row, bases, strict=True):
                panel = [p for p in of if p["target"] == target and p["base"] == base]
                bars(axis, panel) if study in ("labels", "sequential") else curves(study, axis, panel)
                axis.set_title(f"{target}, from {base}", fontsize=10)
                axis.set_ylabel(WORDS[metric], fontsize=9)
                axis.tick_params(labelsize=8)
                axis.spines[["top", "right"]].set_visible(False)
        names = {
            label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            names.values(), names.keys(), loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=9
        )
        for suffix in (".png", ".svg"):
            file = out / f"{study}-{protocol}{suffix}"
            figure.savefig(file, dpi=130)
            written.append(file)
        pyplot.close(figure)
    return written


def style(variant: str) -> dict[str, Any]:
    plain = variant.removesuffix(" + hard")
    return {"color": COLOURS.get(plain, "#333333"), "linestyle": "--" if plain != variant else "-"}


def curves(study: str, axis: Any, panel: Rows) -> None:
    """Curves over what the study varies, with the range over seeds; a cross for a single point; lines for the rest."""
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
        marker = "x" if len(of) == 1 else "o"
        axis.plot(xs, ys, marker=marker, markersize=7 if len(of) == 1 else 4, label=variant, **style(variant))
        axis.fill_between(
            xs, [100 * p["low"] for p in of], [100 * p["high"] for p in of], color=style(variant)["color"], alpha=0.15, lw=0
        )
    if numeric:
        ticks = sorted({place(x) for x in order})
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=45 if len(ticks) > 5 else 0)
        axis.minorticks_off()
    else:
        axis.set_xticks(range(len(order)), order, rotation=20)
    axis.set_xlabel(AXES[study], fontsize=9)


def bars(axis: Any, panel: Rows) -> None:
    """A group of bars for each number of labels, with the range over seeds."""
    budgets = list(dict.fromkeys(p["labels"] for p in panel))
    variants = list(dict.fromkeys(p["variant"] for p in panel))
    width = 0.8 / max(len(variants), 1)
    for i, variant in enumerate(variants):
        of = [next((p for p in panel if p["variant"] == variant and p["labels"] == b), None) for b in budgets]
        known = [(j, p) for j, p in enumerate(of) if p]
        heights = [100 * p["mean"] for _, p in known]
        error = [[100 * (p["mean"] - p["low"]) for _, p in known], [100 * (p["high"] - p["mean"]) for _, p in known]]
        hatch = "//" if variant.endswith(" + hard") else None
        axis.bar(
            [j + (i - (len(variants) - 1) / 2) * width for j, _ in known], heights, 0.9 * width, yerr=error,
            color=style(variant)["color"], hatch=hatch, edgecolor="white", label=variant, error_kw={"lw": 1},
        )  # fmt: skip
    lowest = min((100 * p["low"] for p in panel), default=0)
    axis.set_ylim(bottom=max(0, lowest - 5))
    names = {b: "all labels" if b == "all" else f"{b.removeprefix('total:')} labels" for b in budgets}
    axis.set_xticks(range(len(budgets)), [names[b] for b in budgets])
