"""Writes the report of one run, or of several side by side, as a single HTML page that asks nothing of any network.

Over 200 lines: what the page says is put together here, part by part, so that the templates only draw it. Where a part of a
run is missing the page says so in a sentence; only a folder that is no run at all is an error."""

import base64
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from selftaught.files import write_text
from selftaught.report import charts, scores
from selftaught.report.charts import Chart, Series, chart
from selftaught.runs.reader import Run, load_all, number

FEATURES = (
    ("std", "Spread", "1: features lie all around the sphere. 0: all images look the same to the backbone.", (0.0, 1.0)),
    ("rank", "Effective rank", "Dimensions that are really used (RankMe). Falling towards 1 means collapse.", (0.0, None)),
    ("alignment", "Alignment", "Distance between two views of one image: lower is better.", (0.0, None)),
    ("uniformity", "Uniformity", "How evenly features cover the sphere: lower is better.", (None, None)),
    (
        "knn",
        "kNN accuracy",
        "Balanced accuracy on held-back images (AUROC where images have several classes).",
        (None, None),
    ),
)
SHAPES = 4  # marks of the map: with 8 colours 32 classes look different


@dataclass(frozen=True, kw_only=True)
class Banner:
    level: str  # "bad" | "warn"
    letter: str
    text: str


def write(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page about these run folders to `out` (its folder is made) and returns `out`.

    Raises UserError where a folder is no run, or `out` cannot be written."""
    html = render(load_all(runs), command=shlex.join(["selftaught", "report", *map(str, runs), "--out", str(out)]))
    return write_text(out, html)


def render(runs: Sequence[Run], *, command: str) -> str:
    """The page as text. `command` is what wrote it, shown among the commands that reproduce it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # for every template: names of files and classes come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": scores.percent,
        "points": scores.points,
        "interval": scores.interval,
        "effect": scores.effect_words,
    }
    letters = [_letter(i) for i in range(len(runs))]
    found = scores.tables(runs, letters)
    return environment.get_template("page.html.j2").render(
        title=" against ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        date=datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
        several=len(runs) > 1,
        runs=[_about(run, letter, i) for i, (run, letter) in enumerate(zip(runs, letters, strict=True))],
        banners=_banners(runs, letters),
        tables=found,
        between=scores.between(runs, letters, found) if found else (),
        losses=_losses(runs, letters),
        features=_features(runs, letters),
        speed=_speed(runs, letters),
        differing=_differing(runs),
        command=command,
        shapes=SHAPES,
    )


def _about(run: Run, letter: str, position: int) -> dict[str, Any]:
    """All that the page says about one run alone."""
    return {
        "name": run.name,
        "letter": letter,
        "colour": position % charts.SERIES,
        "subtitle": subtitle(run),
        "verdicts": _verdicts(run),
        "evaluate": _evaluate_command(run),
        "facts": _facts(run),
        "views": _views(run),
        "hard": _hard(run),
        "hard_expected": bool(_listed(run.section("config").get("hard"))),
        "neighbours": _neighbours(run),
        "map": _map(run),
        "data": _data(run),
        "config": flatten(run.section("config")),
        "versions": [
            *([("selftaught", str(run.about["selftaught"]))] if "selftaught" in run.about else []),
            *((str(k), str(v)) for k, v in run.section("versions").items() if k != "selftaught"),
        ],
        "commands": _commands(run),
        "lineage": _lineage(run),
    }


# What happened


def _banners(runs: Sequence[Run], letters: Sequence[str]) -> list[Banner]:
    found = []
    for run, letter in zip(runs, letters, strict=True):
        found += [Banner(level=level, letter=letter, text=text) for level, text in _warnings(run)]
    fingerprints = {str(run.section("data").get("fingerprint")) for run in runs}
    if len(fingerprints) > 1:
        text = "These runs were trained on different images: their losses and features are not comparable number by number."
        found.append(Banner(level="warn", letter="", text=text))
    return sorted(found, key=lambda banner: banner.level != "bad")


def _warnings(run: Run) -> list[tuple[str, str]]:
    at = f" at step {_integer(run.journal[-1]['step'])}" if run.journal else " before the first step was logged"
    outcome = run.about.get("outcome")
    told = _words_of(run.about.get("reason"))
    found = []
    if outcome == "collapsed":
        why = told or "The features of different images became nearly the same, so there is nothing left to learn from."
        found.append(("bad", f"Collapsed: training was stopped{at}. {why} Do not use this backbone."))
    elif outcome in ("diverged", "failed"):
        found.append(("bad", f"Training came to no good end{at}{f': {told}' if told else ''}."))
    elif outcome == "stopped":
        found.append(("warn", f"Stopped early{at}. {told + ' ' if told else ''}Go on with: {_resume(run)}"))
    elif outcome != "done" or run.about.get("finished") is False:
        found.append(
            ("warn", f"Not finished: the last record is{at}. It still runs, or was killed; then go on with: {_resume(run)}")
        )
    for warning in _listed(run.about.get("warnings")):
        found.append(("warn", _words_of(warning)))
    lost = sum(1 for record in run.journal if record.get("loss") is not None and number(record["loss"]) is None)
    if lost:
        found.append(("bad", f"The loss was no finite number in {_count(lost, 'logged step')}; the curves leave them out."))
    if skipped := number(run.journal[-1].get("skipped")) if run.journal else None:
        found.append(("warn", f"{_count(int(skipped), 'step')} skipped: the gradients were not finite."))
    if run.torn:
        found.append(
            (
                "warn",
                f"{_count(run.torn, 'line')} of journal.jsonl could not be read (a crash tears the last one); left out.",
            )
        )
    for name in run.unreadable:
        found.append(("warn", f"{name} is there but could not be read; the part of the page that shows it is missing."))
    return [(level, text) for level, text in found if text]


def _verdicts(run: Run) -> list[dict[str, Any]]:
    """The words of the last evaluation on each data set."""
    return [
        {
            "text": str(evaluation.get("verdict") or "Evaluated; the table says how well."),
            "notes": [_sentence(note) for note in _listed(evaluation.get("notes"))],
            "data": scores.data_words(evaluation),
            "effect": scores.overall(evaluation),
        }
        for evaluation in scores.latest(run.evaluations)
        if scores.rows_of(evaluation)
    ]


def subtitle(run: Run) -> str:
    """Method, hard examples, backbone and size in one line, as far as the configuration tells."""
    config = run.section("config")
    method = " + ".join(filter(None, [_name(config.get("method")), *map(_name, _listed(config.get("hard")))]))
    images = number(run.section("data").get("images"))
    parts = [
        method,
        _name(config.get("backbone")),
        f"{_integer(config['size'])} px" if number(config.get("size")) else "",
        f"{_integer(images)} images" if images else "",
    ]
    return " · ".join(filter(None, parts))


def _facts(run: Run) -> list[tuple[str, str]]:
    config, data = run.section("config"), run.section("data")
    last = run.journal[-1] if run.journal else {}
    rates = [rate for record in run.journal if (rate := number(record.get("images_per_s"))) is not None]
    waits = [wait for record in run.journal if (wait := number(record.get("wait"))) is not None]
    loss = number(last.get("loss"))
    facts = [
        ("Method", _name(config.get("method"))),
        ("Hard examples", " + ".join(map(_name, _listed(config.get("hard")))) or ("none" if "hard" in config else "")),
        ("Backbone", _name(config.get("backbone"))),
        ("Size", f"{_integer(config['size'])} px" if number(config.get("size")) else ""),
        ("Images", _integer(data.get("images"))),
        ("Steps", _integer(last.get("step"))),
        ("Time", duration(number(last.get("seconds")))),
        ("Images per second", f"{_integer(statistics.median(rates))} (median)" if rates else ""),
        ("Waiting for data", f"{100 * statistics.fmean(waits):.0f} % of the time" if waits else ""),
        ("Last loss", f"{loss:.4g}" if loss is not None else ""),
        ("Device", str(run.about.get("device") or "")),
        ("Seed", str(run.about.get("seed", ""))),
        ("Outcome", {"done": "finished", "running": "not finished"}.get(str(run.about.get("outcome")), "")
         or str(run.about.get("outcome") or "unknown")),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


# Curves

Value = Callable[[Mapping[str, Any]], object]  # record -> what was logged; None = not measured at that step


def _losses(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    """One run: all parts in one chart. Several: a chart a part, a curve a run."""
    parts = list(dict.fromkeys(part for run in runs for record in run.journal for part in _inner(record, "losses")))
    parts = parts if len(parts) > 1 else []  # a single part is the whole
    if len(runs) == 1:
        series = [_series(runs[0], "all" if parts else "", "loss", 0, _logged("loss"))]
        series += [_series(runs[0], p, f"{p} loss", i + 1, _logged("losses", p)) for i, p in enumerate(parts)]
        return _present(chart("Loss", series, note="What training makes smaller" + (", and its parts." if parts else ".")))
    return _present(
        _overlaid(
            "Loss", runs, letters, _logged("loss"), note="What training makes smaller. It compares only within a method."
        ),
        *(
            _overlaid(f"Loss, {part}", runs, letters, _logged("losses", part), note=f"Its part from {part} views.")
            for part in parts
        ),
    )


def _features(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    found = []
    for key, title, note, bounds in FEATURES:
        shown = [run if key != "knn" or run.labelled else None for run in runs]  # without labels: no accuracy
        found.append(_overlaid(title, shown, letters, _logged("features", key), note=note, bounds=bounds))
    return _present(*found)


def _speed(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    waiting = "Share of the time. Near 0 the device is the limit, near 1 the data are."
    rate = "Images trained on, measured over the steps since the last record."
    return _present(
        _overlaid("Images per second", runs, letters, _logged("images_per_s"), note=rate, bounds=(0.0, None)),
        _overlaid("Waiting for data", runs, letters, _logged("wait"), note=waiting, bounds=(0.0, 0.5)),
        _overlaid("Learning rate", runs, letters, _logged("lr"), note="Of the optimiser, at each step.", bounds=(0.0, None)),
    )


def _overlaid(
    title: str,
    runs: Sequence[Run | None],
    letters: Sequence[str],
    value: Value,
    *,
    note: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
) -> Chart | None:
    """A curve for each run (None: this run has no say here), labelled by the run's letter; a curve alone needs none."""
    alone = len(runs) == 1
    series = [
        _series(run, "" if alone else letter, title if alone else f"{letter} ({run.name})", i, value)
        for i, (run, letter) in enumerate(zip(runs, letters, strict=True))
        if run is not None
    ]
    return chart(title, series, note=note, bounds=bounds)


def _series(run: Run, label: str, name: str, colour: int, value: Value) -> Series:
    """A step that was not measured is no gap in the curve; a value that is no finite number is one."""
    taken = [(float(record["step"]), value(record)) for record in run.journal]
    measured = [(step, number(found)) for step, found in taken if found is not None]
    return Series(label=label, name=name, colour=colour, x=[x for x, _ in measured], y=[y for _, y in measured])


def _logged(key: str, inner: str | None = None) -> Value:
    if inner is None:
        return lambda record: record.get(key)
    return lambda record: _inner(record, key).get(inner)


def _inner(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _present(*found: Chart | None) -> list[Chart]:
    return [one for one in found if one is not None]


# Pictures


def _views(run: Run) -> dict[str, Any] | None:
    said = run.album.get("views")
    picture = embed(run.folder, "views.png")
    if picture is None:
        return None
    columns = _listed(said.get("columns")) if isinstance(said, dict) else []
    return {"src": picture, "columns": [str(column) for column in columns]}


def _hard(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for entry in _listed(run.album.get("hard")):
        if not isinstance(entry, dict):
            continue
        kind = str(entry.get("kind", "hard"))
        chain = [
            ("clean", "Clean", "clean view"),
            ("perturbation", "Perturbation", "perturbation, magnified around grey"),
            ("partner", "Mixed in", "view that is mixed in"),
            ("hard", kind.capitalize(), f"{kind} example made of it"),
        ]
        pictures = [
            {"src": picture, "label": label, "alt": f"{alt} of hard example {len(found) + 1}"}
            for key, label, alt in chain
            if (picture := embed(run.folder, entry.get(key))) is not None
        ]
        before, after = number(entry.get("loss_before")), number(entry.get("loss_after"))
        change = None
        if before is not None and after is not None:
            share = f" ({100 * (after - before) / abs(before):+.0f} %)" if before else ""
            word = "harder" if after > before else "easier" if after < before else "as hard as before"
            change = {"before": f"{before:.2f}", "after": f"{after:.2f}", "word": word + share.replace("-", "\u2212")}
        if pictures:
            found.append({"kind": kind, "pictures": pictures, "change": change, "note": _sentence(entry.get("note"))})
    return found


def _neighbours(run: Run) -> dict[str, Any] | None:
    said = run.album.get("neighbours")
    if not isinstance(said, dict):
        return None
    groups, pairs = [], []
    for i, group in enumerate(g for g in _listed(said.get("groups")) if isinstance(g, dict)):
        query = embed(run.folder, group.get("query"))
        labels, similarity = _listed(group.get("labels")), _listed(group.get("similarity"))
        near = []
        for rank, name in enumerate(_listed(group.get("neighbours"))):
            if (picture := embed(run.folder, name)) is None:
                continue
            label = str(labels[rank]) if run.labelled and rank < len(labels) else None
            cosine = number(similarity[rank]) if rank < len(similarity) else None
            same = None if label is None else label == str(group.get("label"))
            near.append({"src": picture, "label": label, "cosine": cosine, "same": same, "rank": rank + 1})
        label = str(group["label"]) if run.labelled and group.get("label") is not None else None
        if query and near:
            groups.append({"src": query, "label": label, "near": near, "number": i + 1})
            pairs += [one["same"] for one in near if one["same"] is not None]
    return {"groups": groups, "of": _integer(said.get("of")), "same": sum(pairs), "pairs": len(pairs)} if groups else None


def _map(run: Run) -> dict[str, Any] | None:
    """Points, legend and a sample of thumbnails of the map, in the coordinates of its SVG."""
    said = run.album.get("map")
    if not isinstance(said, dict):
        return None
    found = [p for p in _listed(said.get("points")) if isinstance(p, list) and len(p) == 2]
    places = [(x, y) for p in found if (x := number(p[0])) is not None and (y := number(p[1])) is not None]
    if not places or len(places) != len(_listed(said.get("points"))):
        return None
    width, height, margin, side = 640, 480, 24, 36
    labels = _listed(said.get("labels")) if run.labelled else []
    labels = [int(k) if number(k) is not None else -1 for k in labels] if len(labels) == len(places) else []
    classes = [str(name) for name in _listed(said.get("classes"))]
    inner_width, inner_height = width - 2 * margin, height - 2 * margin
    places = [(round(margin + x * inner_width, 1), round(margin + y * inner_height, 1)) for x, y in places]
    points = [{"x": x, "y": y, "k": labels[i] if labels else -1} for i, (x, y) in enumerate(places)]
    tile, columns = number(said.get("tile")), number(said.get("columns"))
    sprite = embed(run.folder, said.get("sprite")) if tile and columns else None
    counts = {k: labels.count(k) for k in sorted(set(labels))}
    return {
        "points": points,
        "width": width,
        "height": height,
        "side": side,
        "sprite": sprite,
        "tile": int(tile or 0),
        "columns": int(columns or 0),
        "rows": -(-len(points) // int(columns)) if columns else 0,
        "sample": _sample(places, side + 6) if sprite else [],
        "legend": [
            {"k": k, "name": _class_name(k, classes), "count": count} for k, count in counts.items() if len(counts) <= 64
        ],
        "names": {k: _class_name(k, classes) for k in counts},
        "of": number(said.get("of")),
        "method": str(said.get("method") or ""),
    }


def _sample(points: Sequence[tuple[float, float]], gap: float, most: int = 42) -> list[int]:
    """Positions of points whose thumbnails do not cover each other, taken in an order that is spread over the set."""
    stride = next(s for s in (7919, 7907, 7901) if len(points) % s)  # primes: a walk that meets every point once
    chosen: list[int] = []
    for i in ((k * stride) % len(points) for k in range(len(points))):
        x, y = points[i]
        if all(max(abs(x - points[j][0]), abs(y - points[j][1])) >= gap for j in chosen):
            chosen.append(i)
        if len(chosen) == most:
            break
    return chosen


def _class_name(k: int, classes: Sequence[str]) -> str:
    return "none or several" if k < 0 else classes[k] if k < len(classes) else f"class {k}"


def embed(folder: Path, name: object) -> str | None:
    """A picture of the album as a data URI; None where it is missing, outside of the album, or no picture."""
    if not isinstance(name, str) or Path(name).name != name:
        return None
    try:
        content = (folder / "album" / name).read_bytes()
        with Image.open(BytesIO(content)) as picture:
            kind = picture.format
            picture.load()  # a torn file would show as a hole in the page
    except (OSError, SyntaxError, ValueError):
        return None
    if kind not in ("PNG", "JPEG", "WEBP"):
        return None
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


# Facts


def _data(run: Run) -> dict[str, Any]:
    data = run.section("data")
    classes = data.get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    unreadable = [
        (str(entry[0]), str(entry[1])) if isinstance(entry, list | tuple) and len(entry) == 2 else (str(entry), "")
        for entry in _listed(data.get("unreadable"))
    ]
    count = number(classes) if not isinstance(classes, list) else len(names)
    split = {
        "given": "as the folders give it",
        "table": "as the table of labels gives it",
        "drawn": "drawn at random by the seed, class by class",
    }
    facts = [
        ("Folders", ", ".join(map(str, _listed(data.get("roots"))))),
        ("Images", _integer(data.get("images"))),
        ("For training", _integer(data.get("train"))),
        ("Held out", _integer(data.get("held_out"))),
        ("Split", split.get(str(data.get("split")), str(data.get("split") or ""))),
        ("Classes", _integer(count) if run.labelled and count else ""),
        ("Labels", ("yes" if run.labelled else "none, so this page shows no accuracy of training") if data else ""),
        ("Fingerprint", str(data.get("fingerprint") or "")[:16]),
    ]
    return {
        "facts": [(name, value) for name, value in facts if value],
        "classes": names if run.labelled else [],
        "unreadable": unreadable,
    }


def _lineage(run: Run) -> list[str]:
    """The stages that led to this backbone, first to last."""
    said = []
    for stage in _listed(run.about.get("lineage")):
        if isinstance(stage, dict):
            steps = f", {_integer(stage.get('steps'))} steps" if number(stage.get("steps")) is not None else ""
            init = _words_of(stage.get("init")) or "random initialisation"
            said.append(f"from {init}, on {_words_of(stage.get('data')) or 'unnamed data'}{steps}")
    return said


def _commands(run: Run) -> list[str]:
    commands = [run.about.get("command"), *(evaluation.get("command") for evaluation in run.evaluations)]
    return list(dict.fromkeys(_words_of(command, shlex.join) for command in commands if command))


def _evaluate_command(run: Run) -> str:
    """What to type for a verdict, where there is none yet."""
    roots = [str(root) for root in _listed(run.section("data").get("roots"))]
    data = shlex.join(roots) if run.labelled and roots else "LABELLED_IMAGES"
    return f"selftaught evaluate {shlex.quote(str(run.folder))} --data {data} --protocol knn linear --against random init"


def _resume(run: Run) -> str:
    return f"selftaught pretrain --out {shlex.quote(str(run.folder))} --resume"


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The fields of the configuration in which the runs are not all equal: (field, a value a run)."""
    flat = [dict(flatten(run.section("config"))) for run in runs]
    keys = dict.fromkeys(key for fields in flat for key in fields)
    rows = [(key, [fields.get(key, "\u2014") for fields in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def flatten(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """A nested configuration as (dotted name, value in words)."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            found += flatten(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
            for i, part in enumerate(value):
                found += flatten(part, f"{name}.{i}.") if isinstance(part, dict) else [(f"{name}.{i}", _words_of(part))]
        else:
            found.append((name, _words_of(value)))
    return found


# Words


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _integer(value: object) -> str:
    found = number(value)
    return f"{found:,.0f}".replace(",", "\u202f") if found is not None else ""


def _sentence(value: object) -> str:
    text = str(value or "").strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _count(amount: int, noun: str) -> str:
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def _listed(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, a single value as a list of it."""
    return list(value) if isinstance(value, list | tuple) else [] if value in (None, "", {}) else [value]


def _words_of(value: Any, join: Callable[[list[str]], str] = ", ".join) -> str:
    if isinstance(value, list | tuple):
        return join([_words_of(part) for part in value])
    if isinstance(value, dict):
        return _name(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _name(value: Any) -> str:
    """What a part of the configuration is called: a name, or a table that holds one."""
    if isinstance(value, dict):
        return next((str(value[key]) for key in ("name", "kind", "type", "_type") if value.get(key)), "")
    return str(value) if value not in (None, "") else ""


def _letter(position: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (_letter(position // 26 - 1) if position >= 26 else "") + chr(ord("A") + position % 26)
