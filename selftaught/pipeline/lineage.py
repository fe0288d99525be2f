"""What led to a run: its stages, their data, weights and scores."""

from pathlib import Path
from typing import Any

from selftaught.config import registry
from selftaught.errors import UserError
from selftaught.runs import folder as run_folder


def lineage(folder: Path) -> list[dict[str, Any]]:
    """What led to a run, or every stage of a plan: facts of each, the first one first."""
    if run_folder.is_plan(folder):
        written = run_folder.read_plan(folder)
        places = {name: folder / s["folder"] for name, s in written["stages"].items()}
        places[written["outcome"]] = run_folder.resolve_run(folder)
        known = {
            name: (places[name], s["after"] or s["init"] or "random weights")
            for name, s in written["stages"].items()
        }
        return [described(name, begun, place) for name, (place, begun) in known.items()]
    rows: list[dict[str, Any]] = []
    place: Path | None = folder
    while place is not None:
        stage = run_folder.read_run(place).stage
        before = run_folder.resolve_run(Path(stage.init)) if stage.init else None
        before = before if before and (before / "run.json").is_file() else None
        rows.insert(
            0,
            described(place.name, before.name if before else stage.init or "random weights", place),
        )
        place = before
    return rows


def described(name: str, begun: str, place: Path) -> dict[str, Any]:
    """A stage as facts, and `said`: the same in lines."""
    if not (place / "run.json").is_file():
        return {
            "stage": name,
            "from": begun,
            "folder": str(place),
            "outcome": "not begun",
            "said": [],
        }
    found = run_folder.read_run(place)
    stage, chosen = found.stage, found.facts.get("choice")
    try:
        judged, trouble = run_folder.evaluations(place), []
    except UserError as error:
        judged, trouble = [], [str(error)]
    teacher = run_folder.teacher_of(stage)
    method = " + ".join([registry.method_name(stage), *map(registry.hard_name, stage.hard)])
    data = f"{', '.join(stage.data.roots)} ({found.facts['data']['train']:,} images)"
    said = [
        f"{data}; {method}; {stage.backbone}, {stage.size} px",
        f"{stage.steps:,} steps of {stage.batch} images; moved: {stage.trainable}",
        *([f"taught by {teacher}"] if teacher else []),
        *([chosen["text"]] if chosen else []),
        *(f"on {', '.join(e['data'])}: {e['verdict']}" for e in judged),
        *trouble,
        str(place / "backbone.safetensors"),
    ]
    return {
        "stage": name,
        "from": begun,
        "folder": str(place),
        "outcome": found.facts["outcome"],
        "data": list(stage.data.roots),
        "images": found.facts["data"]["train"],
        "method": registry.method_name(stage),
        "hard": [registry.hard_name(h) for h in stage.hard],
        "trainable": stage.trainable,
        "steps": stage.steps,
        "teacher": teacher,
        "choice": chosen,
        "evaluations": judged,
        "said": said,
    }
