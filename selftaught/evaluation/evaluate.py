"""Evaluation of a run on labelled images, against random, starting and other weights."""

import datetime
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selftaught import files
from selftaught.config.stage import Data
from selftaught.data.alike import refuse_alike
from selftaught.data.index.build import Index
from selftaught.data.loading.images import Images, default_canvas
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import rank
from selftaught.errors import FileError, UserError, require
from selftaught.evaluation.compare import NothingToScore, refusal, score_protocol
from selftaught.evaluation.layer_choice import LAST, at_layers
from selftaught.evaluation.results import Results, to_fields, verdict
from selftaught.features.extract import extract, load_or_make
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.protocol import FeatureExtractor, LabelledImages, Protocol, Subject
from selftaught.loggers.logger import Logger, Loggers, RunFacts, build_loggers
from selftaught.loggers.terminal import Progress
from selftaught.models.backbone import Backbone, refuse_size
from selftaught.models.stages import StageFeatures, stage_widths
from selftaught.models.weights import weight_files
from selftaught.runs import folder as run_folder

PROTOCOLS: tuple[Protocol, ...] = (KNN(), LinearProbe())
LABELS = ("5", "20", "all")
AGAINST = ("random", "init")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation, and their summary."""

    results: Results
    verdict: str  # the differences as sentences

    @property
    def rows(self) -> list[dict[str, Any]]:
        """{backbone, protocol, labels, metric, mean, low, high, draws} for each result.

        At stages also layer, and of the best ones stage.
        """
        return [to_fields(row) for row in self.results.rows]


def evaluate_run(
    learnt: str | Path,
    data: Sequence[str | Path] = (),
    *,
    labels_from: str = "auto",
    max_pixels: int | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
    labels: Sequence[str] = LABELS,
    against: Sequence[str] = AGAINST,
    layers: str = LAST,
    size: int | None = None,
    draws: int = 5,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 2,
    progress: Progress | None = None,
    command: str = "",
) -> Evaluation:
    """Score the run's folder or the file of weights `learnt` on labelled images.

    data: by default the images that the run was trained on. layers: "last" (the final features),
    "all" (every stage, too), "best" (of each backbone, chosen on training images), or the name of a
    stage; the features of a stage are its map, averaged over all places. Labels are drawn from the
    training side of the split. Scores are of the held-out side, which no run on the same folders is
    trained on. Values of more than 8 bits are scaled as in training. A run's results are added to
    its evaluation.json. Raises UserError if there are no images or no labels.
    """
    progress = progress or Progress(show=False)
    learnt = weight_files.folder_of(Path(learnt))
    own = run_folder.read_run(learnt) if run_folder.is_run(learnt) else None
    if own and own.doubt:
        log.info(f"{learnt}: {own.doubt}")
    compared = load_backbones(learnt, own, against, progress)
    protocols = at_layers(protocols, layers, compared, seed)
    pixel_range = compared[str(learnt)].pixel_range if own is None else own.pixel_range
    index = build_labelled_index(
        own, [str(root) for root in data], labels_from, max_pixels, seed, pixel_range, progress
    )
    width = size
    if width is None:
        width = own.stage.size if own else compared[str(learnt)].usual_size
    require(width >= 8, "--size", "8 pixels or more", width)
    for name, backbone in compared.items():
        refuse_size(backbone, name, width)
    log.info(f"images of {width} pixels")
    images = Images(
        index.paths,
        index.sizes,
        default_canvas(index.sizes, width),
        groups=index.groups,
        pixel_range=index.pixel_range,
        strict=True,
        on_progress=progress.of("loading"),
    )
    precision = own.stage.precision if own else "fp32"
    labelled = index.labelled
    train, test = (positions[labelled[positions]] for positions in (index.train, index.held_out))
    assert index.labels is not None
    reason = refusal(index.labels[train], index.labels[test]) if len(train) and len(test) else None
    if reason and all(p.learns for p in protocols):
        raise UserError(reason)  # before images are loaded
    refuse_alike(images, torch.cat([train, test]), log.info)
    digests = {name: digest(backbone) for name, backbone in compared.items()}
    same = same_weights(compared, digests)
    subjects = build_subjects(
        compared,
        digests,
        images,
        index,
        (train, test),
        own.folder / "features" if own else None,
        size=width,
        device=device,
        precision=precision,
        workers=workers,
        progress=progress,
        staged=layers != LAST,
    )
    train_images, test_images = (LabelledImages(p, index.labels[p]) for p in (train, test))
    results, reasons = Results(rows=()), []
    for protocol in protocols:
        words = (protocol.name, protocol.layer)
        try:
            scored = score_protocol(
                protocol,
                subjects,
                train_images,
                test_images,
                labels=labels,
                draws=draws,
                seed=seed,
                on_progress=progress.of(f"evaluating by {' at '.join(filter(None, words))}"),
            )
        except NothingToScore as error:
            reasons.append(str(error))
            continue
        if protocol.learns:  # equal weights can have different classifiers
            differences = tuple(d for d in scored.differences if same.get(d.against) != "")
            scored = replace(scored, differences=differences)
        results += scored
    if reasons and not results.rows:
        raise UserError(reasons[0])
    results += Results(rows=(), notes=tuple(dict.fromkeys(reasons)))
    evaluation = Evaluation(results=results, verdict=verdict(results, same=same))
    if own and rank() == 0:
        log_scores(own, evaluation, str(learnt))
        try:
            save_evaluation(
                own.folder,
                evaluation,
                index,
                [str(r) for r in data] or list(own.stage.data.roots),
                command,
            )
        except FileError as error:
            log.info(f"the scores are not kept in the run's folder: {error}")
    return evaluation


def build_subjects(
    compared: dict[str, Backbone],
    digests: dict[str, str],
    images: Images,
    index: Index,
    sets: tuple[Tensor, ...],
    folder: Path | None,
    *,
    size: int,
    device: str,
    precision: Literal["fp32", "bf16"],
    workers: int,
    progress: Progress,
    staged: bool = False,
) -> list[Subject]:
    """Build the subjects of the protocols. `folder` caches the features of `sets` of positions.

    staged: with the features of every stage.
    """
    reported: set[str] = set()

    def warn(text: str) -> None:
        """Log the first warning of each kind."""
        if (kind := text.partition(":")[0]) not in reported:
            reported.add(kind)
            log.warning(text)

    def extractor(name: str, network: nn.Module, *layers: str) -> Callable[[Tensor], Tensor]:
        def extract_features(positions: Tensor) -> Tensor:
            return extract(
                network,
                images,
                positions,
                size=size,
                device=device,
                precision=precision,
                workers=workers,
                on_progress=progress.of(f"features of {name}"),
            )

        def extract_cached(positions: Tensor) -> Tensor:
            if folder is None:
                return extract_features(positions)
            parts = (digests[name], index.fingerprint, digest(positions), str(size))
            key = "/".join([*parts, precision, device, *layers])
            return load_or_make(
                folder, key, lambda: extract_features(positions), len(positions), warn
            )

        return extract_cached

    def build_readers(name: str, backbone: Backbone) -> dict[str, Callable[[Tensor], Tensor]]:
        """The final features, and those of each stage if `staged`; one pass computes them all."""
        if not staged:
            return {LAST: FeatureExtractor(extractor(name, backbone), *sets)}
        network = StageFeatures(backbone, stage_widths(backbone), final=True)
        names = [*network.widths, LAST]
        together = FeatureExtractor(extractor(name, network, *names), *sets)
        ends = list(accumulate([*network.widths.values(), backbone.features], initial=0))
        return {
            stage: partial(together, columns=slice(*columns))
            for stage, columns in zip(names, pairwise(ends), strict=True)
        }

    readers = {name: build_readers(name, backbone) for name, backbone in compared.items()}
    return [
        Subject(
            name=name,
            backbone=backbone.to(device).to(memory_format=torch.channels_last),
            images=images,
            size=size,
            device=device,
            precision=precision,
            features=readers[name][LAST],
            layers={stage: read for stage, read in readers[name].items() if stage != LAST},
            workers=workers,
            classes=index.classes,
            first=number == 0,
        )
        for number, (name, backbone) in enumerate(compared.items())
    ]


def build_labelled_index(
    own: run_folder.Run | None,
    roots: list[str],
    labels_from: str,
    max_pixels: int | None,
    seed: int,
    pixel_range: PixelRange | None,
    progress: Progress,
) -> Index:
    """Build the index of the labelled images, with the split of the run's training.

    Raises UserError if there are no images or no labels.
    """
    if own:
        if not roots:
            own.refuse_missing(labels=labels_from == "auto")
        # Images outside of the run's subset can have labels too.
        data = replace(own.stage.data, subset="all")
        if roots:  # a run without held-out images can be evaluated on other images
            data = replace(data, roots=tuple(roots), holdout=data.holdout or Data.holdout)
        data = replace(data, labels=labels_from) if labels_from != "auto" or roots else data
        seed = own.stage.seed
    elif roots:
        data = Data(roots=tuple(roots), labels=labels_from)
    else:
        raise UserError("no images: give labelled folders with --data")
    data = data if max_pixels is None else replace(data, max_pixels=max_pixels)
    index = data.index(seed, progress.of("reading images"), pixel_range)
    log.info(index.describe())
    if index.labels is None:
        raise UserError(
            "these images have no labels: put them into class folders, or write a labels.csv"
        )
    return index


def load_backbones(
    learnt: Path, own: run_folder.Run | None, against: Sequence[str], progress: Progress
) -> dict[str, Backbone]:
    """Load the evaluated backbone, and those that it is compared with, by name."""
    backbones = {str(learnt): run_folder.open_backbone(learnt)}
    for name in against:
        if name == "random":
            backbones[name] = (
                own.random() if own else run_folder.random_like(backbones[str(learnt)], seed=0)
            )
        elif name == "init":
            try:
                start = own.start() if own else None
            except UserError as error:
                if tuple(against) != AGAINST:
                    raise
                log.info(f"the starting weights are omitted: {error}")
                continue
            if start is not None:
                backbones[name] = start
            elif tuple(against) != AGAINST:  # the user named it
                log.info(
                    "there are no starting weights: 'init' is omitted (training started from random"
                    " ones)"
                )
        elif not Path(name).exists() and (near := get_close_matches(name, AGAINST)):
            raise UserError(f"--against {name}: there is no such run; did you mean {near[0]}?")
        else:
            backbones[str(Path(name))] = run_folder.open_backbone(Path(name))
    return backbones


def same_weights(compared: dict[str, Backbone], digests: dict[str, str]) -> dict[str, str]:
    """The backbones with the weights of the first one, each with a text on other differences."""
    first, *others = compared
    network = digest(compared[first].network)
    return {
        name: (
            ""
            if digests[name] == digests[first]
            else ", except for the mean and std that normalise pixels"
        )
        for name in others
        if digest(compared[name].network) == network
    }


def save_evaluation(
    folder: Path, evaluation: Evaluation, index: Index, roots: list[str], command: str
) -> None:
    """Add an evaluation to a run's evaluation.json; two processes may do so at once.

    A damaged file is renamed. Raises FileError if the file cannot be written.
    """
    file = folder / run_folder.EVALUATIONS
    now = {
        "data": roots,
        "fingerprint": index.fingerprint,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **json.loads(evaluation.results.to_json()),
        "verdict": evaluation.verdict,
    }
    with files.locked(file.with_suffix(".lock"), log=log.warning):
        try:
            earlier = run_folder.evaluations(folder)
        except FileError:
            earlier, aside = [], file.with_name(f"{file.name}.damaged")
            with files.convert_write_errors(aside):
                file.rename(aside)
            log.warning(
                f"{file} cannot be read: it is renamed to {aside.name}, and a new one is written"
            )
        files.write_json(file, [*earlier, now])


def log_scores(run: run_folder.Run, evaluation: Evaluation, name: str) -> None:
    """Send the scores to the loggers that the run was trained with.

    name: that of the run's backbone in the rows.
    """
    built: list[Logger] = []
    for logger in run_folder.loggers_of(run.facts):
        try:
            built += build_loggers([logger])
        except UserError as error:
            log.warning(f"the scores are not logged: {error}")
    if not built:
        return
    steps, rows = run.stage.steps, evaluation.rows
    loggers = Loggers(built)
    config = run.facts["config"]
    loggers.begin(RunFacts(folder=run.folder, steps=steps, step=steps, resumed=True, config=config))
    loggers.scores([{**row, "backbone": "run"} if row["backbone"] == name else row for row in rows])
    loggers.finish(run.facts["outcome"])


def digest(of: nn.Module | Tensor) -> str:
    """A hash of the weights of a module, or of a tensor."""
    tensors = of.state_dict().values() if isinstance(of, nn.Module) else [of]
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()[:16]
