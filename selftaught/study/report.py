"""A study as one self-contained page: what was found, the figures, every number, and how to do it
again.
"""

import base64
import datetime
from collections.abc import Sequence
from pathlib import Path

import jinja2

from selftaught.features.protocol import TITLES
from selftaught.files import write_text
from selftaught.study.tables import Rows

ABOUT = {
    "separability": (
        "How well a linear probe and kNN tell the classes apart, against the steps of pretraining."
    ),
    "labels": "Fine-tuning the whole network with few labels, and with all.",
    "sequential": "Is a source between base and target worth it?",
    "augmentations": "What is left when augmentations are taken away, in the article's order.",
    "data": "What is left when there are fewer images to pretrain on.",
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
    """`done` of `total` cells are in it."""
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
    """Of a figure's file: protocol, and number of labels where there are several figures of it."""
    protocol, _, labels = figure.partition("-")
    return ", ".join([TITLES.get(protocol, protocol), *([f"labels: {labels}"] if labels else [])])
