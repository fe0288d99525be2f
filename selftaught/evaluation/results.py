"""Results of an evaluation: rows, paired differences, JSON, and a summary in sentences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from selftaught.features.protocol import TITLES

# a difference that enough test images can distinguish from 0
GAP = 0.1
NAMES: Mapping[str, str] = {"random": "random initialisation", "init": "the starting weights"}
# sentences on weights that equal those of the evaluated backbone
SAME: Mapping[str, str] = {
    "random": "these are the random weights, nothing was learnt",
    "init": "these are the starting weights",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One result: the mean over draws and its 95 % interval; metrics lie in [0, 1]."""

    backbone: str
    protocol: str
    labels: str
    metric: str
    mean: float
    low: float
    high: float
    draws: int
    layer: str = ""  # a stage of the backbone, or "best"; empty for the final features
    stage: str = ""  # of "best": the stage that was chosen


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`backbone` minus `against`, on the same draws and test images, with its 95 % interval."""

    backbone: str
    against: str
    protocol: str
    labels: str
    metric: str
    mean: float
    low: float
    high: float
    # approximate number of test images that a difference of GAP requires; 0 if there are enough
    needed: int = 0
    layer: str = ""  # as in Row

    @property
    def worse(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high < 0

    @property
    def better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a protocol chose on the training images, such as a penalty, for each draw of labels."""

    backbone: str
    protocol: str
    labels: str
    chosen: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All rows of an evaluation, the differences of its first backbone, remarks, and choices."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    def __add__(self, other: "Results") -> "Results":
        return Results(
            rows=self.rows + other.rows,
            differences=self.differences + other.differences,
            notes=tuple(dict.fromkeys(self.notes + other.notes)),
            choices=self.choices + other.choices,
        )

    def to_json(self) -> str:
        """An object {"rows": [...], "differences": [...], "notes": [...], "choices": [...]}."""
        record = {
            "rows": [to_fields(row) for row in self.rows],
            "differences": [to_fields(difference) for difference in self.differences],
            "notes": self.notes,
            "choices": [asdict(choice) for choice in self.choices],
        }
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Read the text of `to_json`."""
        fields = json.loads(text)
        return cls(
            rows=tuple(Row(**row) for row in fields["rows"]),
            differences=tuple(Difference(**difference) for difference in fields["differences"]),
            notes=tuple(fields.get("notes", ())),
            choices=tuple(
                # pyrefly: ignore[bad-argument-type]
                Choice(**{**choice, "chosen": tuple(choice["chosen"])})
                for choice in fields.get("choices", ())
            ),
        )


def to_fields(record: Row | Difference) -> dict[str, Any]:
    """Return the fields by name; `layer` and `stage` only where they say something."""
    fields = asdict(record)
    return {key: fields[key] for key in fields if key not in ("layer", "stage") or fields[key]}


def verdict(
    results: Results,
    names: Mapping[str, str] = NAMES,
    same: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Summarise the differences, one sentence for each other backbone, worse results first.

    For example: "+12.1 points over random initialisation with 5 labels a class (95 % interval +9.8
    to +14.2)." A difference whose interval contains zero is "not distinguishable". If the test
    images are too few for a difference of GAP, the sentence states how many are needed. AUROC is
    used only if there is no accuracy. Stages are used only if the final features were not scored.

    names: texts for names of backbones. same: backbones with the weights of the evaluated one, each
    with a text on other differences.
    """
    differences = [d for d in results.differences if not d.layer] or list(results.differences)
    differences = [d for d in differences if d.metric == "balanced_accuracy"] or differences
    if not differences and not same:
        return "Nothing to compare with: only one backbone was evaluated."
    against = list(dict.fromkeys(d.against for d in differences))
    parts = [
        _Comparison(names.get(name, name), [d for d in differences if d.against == name])
        for name in against
    ]

    sentences = [
        SAME.get(name, f"{names.get(name, name)} has the same weights") + but
        for name, but in same.items()
    ]
    sentences += (
        [p.worse() for p in parts] + [p.better() for p in parts] + [p.same() for p in parts]
    )
    return " ".join(s[0].upper() + s[1:] + "." for s in sentences if s)


@dataclass(frozen=True)
class _Comparison:
    """The differences to one other backbone, as sentences; empty ones are omitted."""

    name: str
    differences: Sequence[Difference]

    def worse(self) -> str:
        worse = [d for d in self.differences if d.worse]
        return f"worse than {self.name}: {self._numbers(worse)}" if worse else ""

    def better(self) -> str:
        better = [d for d in self.differences if d.better]
        if len(better) == 1:
            return (
                f"{_points(better[0])} over {self.name} {self._condition(better[0])}"
                f" {_interval(better[0])}"
            )
        return f"better than {self.name}: {self._numbers(better)}" if better else ""

    def same(self) -> str:
        same = [d for d in self.differences if not d.worse and not d.better]
        if not same:
            return ""
        where = ""
        if len(same) < len(self.differences):
            where = " " + ", ".join(self._condition(d) for d in same)
        needed = max(d.needed for d in same)
        few = (
            f": too few test images to tell, {100 * GAP:.0f} points take about {needed:,}"
            if needed
            else ""
        )
        return f"not distinguishable from {self.name}{where}{few}"

    def _numbers(self, differences: Sequence[Difference]) -> str:
        return "; ".join(f"{_points(d)} {self._condition(d)} {_interval(d)}" for d in differences)

    def _condition(self, difference: Difference) -> str:
        several = len({d.protocol for d in self.differences}) > 1
        protocol = TITLES.get(difference.protocol, difference.protocol)
        if difference.protocol in ("linear", "classifier"):
            protocol = f"the {protocol}"
        stage = " at the best stage" if difference.layer == "best" else f" at {difference.layer}"
        return (
            _labels(difference.labels)
            + (f" by {protocol}" if several else "")
            + (stage if difference.layer else "")
        )


def _points(difference: Difference) -> str:
    of = "" if difference.metric == "balanced_accuracy" else f" of {difference.metric.upper()}"
    return f"{100 * difference.mean:+.1f} points{of}"


def _interval(difference: Difference) -> str:
    return f"(95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _labels(labels: str) -> str:
    if labels == "own":
        return "as they are"
    if labels == "all":
        return "with all labels"
    if labels.startswith("total:"):
        return f"with {labels.removeprefix('total:')} labels in all"
    return f"with {labels} label{'' if labels == '1' else 's'} a class"
