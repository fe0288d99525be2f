"""The lineage of a run: its stages with their data, weights and scores."""

from pathlib import Path
from typing import Any

from selftaught.config import registry
from selftaught.errors import UserError
from selftaught.runs import folder as run_folder


def lineage(folder: Path) -> list[dict[str, Any]]:
    """Facts of every stage that led to a run, or of every stage of a plan, in order."""
    if run_folder.is_plan(folder):
        plan = run_folder.read_plan(folder)
        places = {name: folder / s["folder"] for name, s in plan["stages"].items()}
        places[plan["outcome"]] = run_folder.resolve_run(folder)
        return [
            describe_stage(name, s["after"] or s["init"] or "random weights", places[name])
            for name, s in plan["stages"].items()
        ]
    rows: list[dict[str, Any]] = []
    place: Path | None = folder
    while place is not None:
        stage = run_folder.read_run(place).stage
        before = run_folder.resolve_run(Path(stage.init)) if stage.init else None
        before = before if before and (before / "run.json").is_file() else None
        origin = before.name if before else stage.init or "random weights"
        rows.insert(0, describe_stage(place.name, origin, place))
        place = before
    return rows


def describe_stage(name: str, origin: str, place: Path) -> dict[str, Any]:
    """Facts of a stage. `said` is a list of lines with the same facts."""
    if not (place / "run.json").is_file():
        return {
            "stage": name,
            "from": origin,
            "folder": str(place),
            "outcome": "not begun",
            "said": [],
        }
    run = run_folder.read_run(place)
    stage, choice = run.stage, run.facts.get("choice")
    try:
        evaluations, errors = run_folder.evaluations(place), []
    except UserError as error:
        evaluations, errors = [], [str(error)]
    teacher = run_folder.teacher_of(stage)
    method = " + ".join([registry.method_name(stage), *map(registry.hard_name, stage.hard)])
    data = f"{', '.join(stage.data.roots)} ({run.facts['data']['train']:,} images)"
    lines = [
        f"{data}; {method}; {stage.backbone}, {stage.size} px",
        f"{stage.steps:,} steps of {stage.batch} images; moved: {stage.trainable}",
        *([f"taught by {teacher}"] if teacher else []),
        *([choice["text"]] if choice else []),
        *(f"on {', '.join(e['data'])}: {e['verdict']}" for e in evaluations),
        *errors,
        str(place / "backbone.safetensors"),
    ]
    return {
        "stage": name,
        "from": origin,
        "folder": str(place),
        "outcome": run.facts["outcome"],
        "data": list(stage.data.roots),
        "images": run.facts["data"]["train"],
        "method": registry.method_name(stage),
        "hard": [registry.hard_name(h) for h in stage.hard],
        "trainable": stage.trainable,
        "steps": stage.steps,
        "teacher": teacher,
        "choice": choice,
        "evaluations": evaluations,
        "said": lines,
    }
