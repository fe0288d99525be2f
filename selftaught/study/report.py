"""The page of a study: findings, figures, all numbers, and the command to repeat it."""

import base64
import datetime
from collections.abc import Sequence
from pathlib import Path

import jinja2

from selftaught.features.protocol import TITLES
from selftaught.files import write_text
from selftaught.study.tables import Rows

ABOUT = {
    "separability": ("Scores of a linear probe and kNN over the steps of pretraining."),
    "labels": "Fine-tuning the whole network with few labels, and with all.",
    "sequential": "The effect of a source between base and target.",
    "augmentations": "The effect of fewer and fewer augmentations, in the order of the paper.",
    "data": "The effect of fewer images to pretrain on.",
}


def write(
    study: str,
    points: Rows,
    findings: Sequence[str],
    figures: Sequence[Path],
    out: Path,
    *,
    command: str,
    plan: str,
    done: int,
    total: int,
) -> Path:
    """Write the page to `out`; return its path. It has `done` of `total` cells."""
    pictures = [
        (heading(f.stem.removeprefix(f"{study}-")), base64.b64encode(f.read_bytes()).decode())
        for f in figures
        if f.suffix == ".png"
    ]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        study=study,
        about=ABOUT[study],
        points=points,
        columns=list(points[0]) if points else [],
        findings=findings,
        figures=pictures,
        command=command,
        plan=plan,
        done=done,
        total=total,
        date=datetime.datetime.now().strftime("%d %B %Y, %H:%M"),
    )
    return write_text(out / f"{study}.html", page)


def heading(figure: str) -> str:
    """The heading of a figure: its protocol, and its number of labels if the file names one."""
    protocol, _, labels = figure.partition("-")
    return ", ".join([TITLES.get(protocol, protocol), *([f"labels: {labels}"] if labels else [])])
