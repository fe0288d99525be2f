"""Scores of evaluations, grouped and described, for the page and for the terminal.

Only this module decides which scores are comparable and which differences are distinguishable.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selftaught.features.protocol import TITLES
from selftaught.runs.folder import resolve_run
from selftaught.runs.reader import RunContent, number

Effect = Literal["better", "worse", "unclear"]

METRICS = {"balanced_accuracy": "Balanced accuracy", "auroc": "AUROC"}
BASELINES = {"random": "random initialisation", "init": "starting weights"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The conditions of a score; two scores are comparable only in equal settings."""

    metric: str
    protocol: str
    labels: str
    layer: str = ""  # a stage of the backbones, or "best"; empty for the final features

    @property
    def words(self) -> str:
        title = TITLES.get(self.protocol, self.protocol)
        title = title if title == "kNN" else title.capitalize()
        words = f"{title}, {labels_words(self.labels)}"
        if self.layer == "best":
            return f"{words}, best stage of each"
        return f"{words}, {self.layer}" if self.layer else words

    @property
    def metric_words(self) -> str:
        return METRICS.get(self.metric, self.metric.replace("_", " "))

    @property
    def order(self) -> tuple[int, int, int, float, str, str]:
        """Balanced accuracy before AUROC, few labels before many."""
        metric = list(METRICS).index(self.metric) if self.metric in METRICS else len(METRICS)
        protocol = list(TITLES).index(self.protocol) if self.protocol in TITLES else len(TITLES)
        kind, _, amount = self.labels.rpartition(":")
        count = float(amount) if amount.isdigit() else float("inf")
        size = 2 if amount == "all" else 1 if kind else 0
        layer = re.sub(r"\d+", lambda digits: digits[0].zfill(4), self.layer)  # blocks.2 before .10
        return metric, protocol, size, count, self.labels, layer


@dataclass(frozen=True, kw_only=True)
class Score:
    """A share (0..1) with its 95 % interval; for a difference of two of them, -1..1."""

    mean: float
    low: float
    high: float
    draws: int | None = None
    stage: str = ""  # of the backbone, chosen as the best

    @property
    def effect(self) -> Effect:
        """The effect of a difference: unclear unless the whole interval is on one side of 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One backbone in one setting."""

    name: str
    letter: str  # of the run that trained it; "" for a baseline
    score: Score
    # name of a baseline -> trained minus baseline, on the same draws and images
    gains: Mapping[str, Score]
    best: bool  # distinguishably above every other line of its setting


@dataclass(frozen=True, kw_only=True)
class Group:
    """All backbones in one setting."""

    setting: Setting
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All scores on one labelled data set."""

    data: str
    groups: tuple[Group, ...]
    baselines: tuple[str, ...]  # names of the baselines of all gains
    low: float  # the range of the axis of intervals
    high: float
    left_out: int  # number of invalid rows


def labels_words(labels: str) -> str:
    """The number of labels of a setting as text."""
    if labels == "own":
        return "as it was trained"
    if labels == "all":
        return "all labels"
    kind, _, amount = labels.rpartition(":")
    if kind == "total":
        return f"{amount} labels in all"
    return f"{labels} label{'' if labels == '1' else 's'} a class"


def backbone_words(name: str) -> str:
    """The name of a backbone or baseline as text."""
    return BASELINES.get(name, name)


def effect_words(effect: Effect) -> str:
    """An effect as text, with a sign that needs no colour."""
    return {"better": "▲ better", "worse": "▼ worse", "unclear": "≈ not distinguishable"}[effect]


def points(value: float) -> str:
    """A difference of shares as points with a true minus sign: +12.1, −0.4."""
    text = f"{100 * value:+.1f}"
    return text.replace("-", "\u2212")


def percent(value: float) -> str:
    """A share as per cent, without the sign %."""
    return f"{100 * value:.1f}".replace("-", "\u2212")


def interval(score: Score, *, signed: bool = False) -> str:
    """The interval of a score in per cent, or of a difference in points if `signed`."""
    show = points if signed else percent
    return f"{show(score.low)} to {show(score.high)}"


def read_score(row: Mapping[str, Any]) -> tuple[Setting, Score] | None:
    """Read a row or a difference; None if a field is missing."""
    mean, low, high = (number(row.get(key)) for key in ("mean", "low", "high"))
    words = [row.get(key) for key in ("metric", "protocol", "labels")]
    if mean is None or low is None or high is None or None in words:
        return None
    draws = number(row.get("draws"))
    metric, protocol, labels = map(str, words)
    layer, stage = (str(row.get(key) or "") for key in ("layer", "stage"))
    count = None if draws is None else int(draws)
    score = Score(mean=mean, low=low, high=high, draws=count, stage=stage)
    return Setting(metric=metric, protocol=protocol, labels=labels, layer=layer), score


def rows_of(evaluation: Mapping[str, Any], key: str = "rows") -> list[Mapping[str, Any]]:
    """The rows (or differences) of an evaluation; empty if they are missing."""
    rows = evaluation.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def trained_name(evaluation: Mapping[str, Any]) -> str | None:
    """The name of the evaluated backbone: that of the differences, or else of the first row."""
    for row in (*rows_of(evaluation, "differences"), *rows_of(evaluation)):
        if row.get("backbone") is not None:
            return str(row["backbone"])
    return None


def data_key(evaluation: Mapping[str, Any]) -> str:
    """The key of the data set of an evaluation: its fingerprint, or else its name."""
    return str(evaluation.get("fingerprint") or data_words(evaluation))


def data_words(evaluation: Mapping[str, Any]) -> str:
    """The data of an evaluation as text."""
    data = evaluation.get("data")
    if isinstance(data, list):
        return ", ".join(map(str, data))
    return str(data) if data else "unnamed data"


def tables(runs: Sequence[RunContent], letters: Sequence[str]) -> tuple[Table, ...]:
    """One table for each labelled data set, with the backbones of all runs and their baselines.

    If a run was evaluated twice in the same setting on the same data, the later result counts.
    """
    keys = dict.fromkeys(data_key(e) for run in runs for e in run.evaluations if rows_of(e))
    return tuple(_table(key, runs, letters) for key in keys)


def latest(evaluations: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The last evaluation on each data set, in the order of the first ones."""
    return tuple({data_key(e): e for e in evaluations}.values())


def overall(evaluation: Mapping[str, Any]) -> Effect | None:
    """The worst effect of all differences except "unclear", which counts only if all are.

    As in the verdict, stages count only if the final features were not scored.
    """
    rows = rows_of(evaluation, "differences")
    pairs = [read_score(row) for row in [r for r in rows if not r.get("layer")] or rows]
    effects = {pair[1].effect for pair in pairs if pair}
    order: tuple[Effect, ...] = ("worse", "better", "unclear")
    return next((effect for effect in order if effect in effects), None)


def between(
    runs: Sequence[RunContent], letters: Sequence[str], tables: Sequence[Table]
) -> tuple[str, ...]:
    """Compare the runs with each other: a sentence for each pair of evaluated runs.

    If one run was evaluated against the other, the paired difference counts. Otherwise only
    intervals that do not overlap count, which is stricter than a test of the difference.
    """
    sentences = []
    scored = {line.letter for table in tables for group in table.groups for line in group.lines}
    evaluated = [letter for letter in letters if letter in scored]
    names = dict(zip(letters, (run.name for run in runs), strict=True))
    for i, first in enumerate(evaluated):
        for second in evaluated[i + 1 :]:
            above: dict[str, list[str]] = {first: [], second: []}
            shared = 0
            for table in tables:
                for group in table.groups:
                    own = {line.letter: line for line in group.lines if line.letter}
                    if first not in own or second not in own:
                        continue
                    shared += 1
                    effect = _effect(own[first], own[second], names)
                    if effect != "unclear":
                        above[first if effect == "better" else second].append(
                            _place(group.setting, tables, table)
                        )
            sentences.append(_sentence(first, second, runs, letters, above, shared))
    return tuple(sentences)


def _effect(first: Line, second: Line, names: Mapping[str, str]) -> Effect:
    """The effect of the first line's run over the second's."""
    if gain := first.gains.get(names[second.letter]):
        return gain.effect
    if gain := second.gains.get(names[first.letter]):
        opposite: dict[Effect, Effect] = {
            "better": "worse",
            "worse": "better",
            "unclear": "unclear",
        }
        return opposite[gain.effect]
    if first.score.low > second.score.high:
        return "better"
    return "worse" if second.score.low > first.score.high else "unclear"


def _place(setting: Setting, tables: Sequence[Table], table: Table) -> str:
    """A setting as text; metric and data set are named only if there are several."""
    metrics = {group.setting.metric for one in tables for group in one.groups}
    words = f"{setting.words} ({setting.metric_words})" if len(metrics) > 1 else setting.words
    return f"{words}, on {table.data}" if len(tables) > 1 else words


def _sentence(
    first: str,
    second: str,
    runs: Sequence[RunContent],
    letters: Sequence[str],
    above: dict[str, list[str]],
    shared: int,
) -> str:
    """One sentence about two runs; `above`: for each letter, the settings in which it is better."""
    names = {letter: f"{letter} ({run.name})" for letter, run in zip(letters, runs, strict=True)}
    if not shared:
        return (
            f"{names[first]} and {names[second]} were not evaluated in the same setting on the same"
            " data."
        )
    for a, b in ((first, second), (second, first)):
        if len(above[a]) == shared:
            settings = "the one setting" if shared == 1 else f"all {shared} settings"
            return f"{names[a]} is above {names[b]} in {settings} that they share."
    parts = [
        f"{names[a]} is above {names[b]} in {len(above[a])} of {shared} settings:"
        f" {'; '.join(above[a])}"
        for a, b in ((first, second), (second, first))
        if above[a]
    ]
    if not parts:
        settings = f"any of the {shared} settings they share"
        if shared == 1:
            settings = "the one setting they share"
        return f"{names[first]} and {names[second]} are not distinguishable in {settings}."
    rest = shared - len(above[first]) - len(above[second])
    end = f". In the other {rest} they are not distinguishable." if rest else "."
    return ". ".join(parts) + end


TRAINED = ""  # the name of a run's own backbone among the scores of its evaluation


def _table(key: str, runs: Sequence[RunContent], letters: Sequence[str]) -> Table:
    """The table of the data set with this key."""
    scores: dict[Setting, dict[tuple[str, str], Score]] = {}  # {(letter, name): score}
    # {letter: score}, of runs in the evaluations of other runs
    borrowed: dict[Setting, dict[str, Score]] = {}
    gains: dict[Setting, dict[str, dict[str, Score]]] = {}  # {letter: {baseline: difference}}
    names = dict(zip(letters, (run.name for run in runs), strict=True))
    left_out, data = 0, ""
    for run, letter in zip(runs, letters, strict=True):
        for evaluation in run.evaluations:
            if data_key(evaluation) != key:
                continue
            data, trained = data_words(evaluation), trained_name(evaluation)
            for row in rows_of(evaluation):
                name = str(row.get("backbone"))
                of = letter if name == str(trained) else letter_of(name, runs, letters)
                if (pair := read_score(row)) is None:
                    left_out += 1
                elif name == str(trained) or of is None:
                    backbone = (letter, name if of is None else TRAINED)
                    scores.setdefault(pair[0], {})[backbone] = pair[1]
                elif of != letter:
                    borrowed.setdefault(pair[0], {})[of] = pair[1]
            for row in rows_of(evaluation, "differences"):
                of = letter_of(str(row.get("against")), runs, letters)
                if (pair := read_score(row)) is None:
                    left_out += 1
                elif of != letter:
                    against = backbone_words(str(row.get("against"))) if of is None else names[of]
                    gains.setdefault(pair[0], {}).setdefault(letter, {})[against] = pair[1]
    for setting, others in borrowed.items():
        for letter, score in others.items():
            # The run's own evaluation has precedence.
            scores.setdefault(setting, {}).setdefault((letter, TRAINED), score)
    groups = tuple(
        Group(setting=setting, lines=_lines(scores[setting], gains.get(setting, {}), names))
        for setting in sorted(scores, key=lambda setting: setting.order)
    )
    ends = [
        end for group in groups for line in group.lines for end in (line.score.low, line.score.high)
    ]
    low, high = _range(ends)
    baselines = dict.fromkeys(
        against
        for setting in sorted(gains, key=lambda s: s.order)
        for own in gains[setting].values()
        for against in own
    )
    return Table(
        data=data, groups=groups, baselines=tuple(baselines), low=low, high=high, left_out=left_out
    )


def letter_of(name: str, runs: Sequence[RunContent], letters: Sequence[str]) -> str | None:
    """The letter of the run whose folder is `name`; None if no run, or several, have it.

    The path may be relative to another folder, so its end is compared too.
    """
    if name in BASELINES:
        return None
    place = Path(name)
    here = resolve_run(place).resolve() if place.exists() else place
    pairs = list(zip(runs, letters, strict=True))
    matches = [letter for run, letter in pairs if run.folder == here]
    parts = place.parts
    if not matches and parts and ".." not in parts:
        matches = [letter for run, letter in pairs if run.folder.parts[-len(parts) :] == parts]
    return matches[0] if len(matches) == 1 else None


def _lines(
    scores: Mapping[tuple[str, str], Score],
    gains: Mapping[str, Mapping[str, Score]],
    names: Mapping[str, str],
) -> tuple[Line, ...]:
    """The lines of one setting: trained backbones by run, then baselines.

    A baseline with equal scores in several runs is one line.
    """
    rows: list[tuple[str, str, Score]] = []  # name, letter, score
    for (letter, backbone), score in scores.items():
        if backbone == TRAINED:
            rows.append((names[letter], letter, score))
    rows.sort(key=lambda row: list(names).index(row[1]))
    for (letter, backbone), score in scores.items():
        if backbone == TRAINED:
            continue
        name = backbone_words(backbone)
        same_name = {other for (_, b), other in scores.items() if b == backbone}
        name = name if len(same_name) == 1 else f"{name} ({letter})"
        if (name, "", score) not in rows:
            rows.append((name, "", score))
    lines = []
    for name, letter, score in rows:
        own = dict(gains.get(letter, {})) if letter else {}
        others = [(n, s) for n, le, s in rows if (n, le) != (name, letter)]
        # A paired difference decides, if there is one.
        paired = all(s.low > 0 for s in own.values())
        apart = all(
            score.low > s.high for n, s in others if n.removesuffix(f" ({letter})") not in own
        )
        best = bool(others) and paired and apart
        lines.append(Line(name=name, letter=letter, score=score, gains=own, best=best))
    return tuple(lines)


def _range(ends: Sequence[float]) -> tuple[float, float]:
    """The range of the axis of intervals, rounded outwards to tenths."""
    if not ends:
        return 0.0, 1.0
    low = int(min(ends) * 10 + 1e-9) / 10
    high = -int(-max(ends) * 10 + 1e-9) / 10
    high = high if high >= max(ends) else high + 0.1
    return low, max(high, low + 0.1)
