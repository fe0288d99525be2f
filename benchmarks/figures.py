"""A picture for each method's page: its views, and what it makes of them. `python -m
benchmarks.figures [METHOD ...]`

Sixteen photographs that come along (`selftaught.data.demo_images`), the method's own `inputs`, and
its own predictions and targets after a hundred steps of a tiny network on these very photographs: a
picture of what is learnt, and no measurement. Over 200 lines: what there is to see differs from
method to method, and each kind is a function here.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from PIL import Image
from torch import Tensor, nn

from selftaught.config import defaults
from selftaught.data.demo_images import photographs
from selftaught.data.loading.images import Images
from selftaught.losses import most_similar, standardize
from selftaught.method import Batch, Method, Setting, Setup, image_seeds, leaves
from selftaught.methods import METHODS
from selftaught.methods.parts.reconstruction import measure_avoided_error
from selftaught.models import backbone as backbone_module
from selftaught.models.layers import resize
from selftaught.optim import AdamW, Cosine
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from selftaught.views.augment import Augment, centre
from selftaught.views.spec import Views

OUT = Path(__file__).parents[1] / "docs" / "figures" / "methods"
LARGEST = 60_000  # bytes of a picture
STEPS = 120
# inches: of a picture, of a photograph's row, of a matrix
WIDTH, HEIGHT, TILE, TALL = (8.0, 2.75, 0.81, 1.9)
CANVAS = 128
# pixels of a view, where there are parts of it to see; else SIZE
SIZES = {"cpc": 96, "densecl": 96, "feature-distillation": 128, "mae": 128}
SIZE = 64
SHOWN = ("cat", "coffee", "pagoda")  # the photographs whose views are drawn
NETWORK = "test_resnet"
SMALL = {
    "queue": 8,
    "negatives": 16,
    "clusters": 5,
    "prototypes": 5,
    "clusterings": 2,
    "classes": 16,
    "hidden": 64,
    "orders": 8,
    "dim": 24,
    "autoencoder_share": 0.5,
}
# views of each photograph in a batch: statistics need many, and so do hard questions
TOGETHER = {"barlow-twins": 8, "context-prediction": 2, "jigsaw": 4, "vicreg": 8}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A matrix to look at."""

    title: str
    values: Tensor
    rows: str
    columns: str
    marks: tuple[tuple[int, int], ...] = ()  # what should be high, a (row, column) each
    line: int | None = None  # before this column something else begins
    signed: bool = False  # around 0


class Photographs:
    """The sixteen photographs as a training set: batches of all of them."""

    def __init__(self, name: str) -> None:
        files = photographs()
        self.names = list(files)
        sizes = torch.tensor([Image.open(file).size[::-1] for file in files.values()])
        images = Images(list(files.values()), sizes, CANVAS)
        self.pixels, self.aspect = (
            torch.stack([images[i] for i in range(len(images))]),
            images.aspect,
        )
        self.size = SIZES.get(name, SIZE)
        method = METHODS[name]
        small = 2 if method.multi_crop else 0
        setting = Setting(images=len(self.names), batch=len(self.names), steps=STEPS, features=64)
        own = method.Config().defaults(setting).views
        views = defaults.views_for(method, own, self.size, Views(small=small))
        self.augment = Augment(views, self.size)
        self.times = TOGETHER.get(name, 1)

    def batch(self, seed: int) -> Batch:
        rng = torch.Generator().manual_seed(seed)
        index = torch.arange(len(self.names)).repeat(self.times)
        views = self.augment(self.pixels[index], self.aspect[index], rng)
        return Batch(views, index, index, image_seeds(seed, 0, len(index)))

    def plain(self) -> Tensor:
        return centre(self.pixels, self.aspect, CANVAS)


def trained(name: str, data: Photographs) -> Method:
    """The method after a brief training, in training mode as its loss sees it."""
    torch.manual_seed(0)
    backbone = backbone_module.create(
        "test_vit" if METHODS[name].masks_patches else NETWORK, image_size=data.size
    )
    batch = len(data.names) * data.times
    config_of_paper = METHODS[name].Config()
    fitting = {k: v for k, v in SMALL.items() if hasattr(config_of_paper, k)}
    setting = Setting(images=len(data.names), batch=batch, steps=STEPS, features=backbone.features)
    config = dataclasses.replace(config_of_paper.defaults(setting).config, **fitting)
    previous: Any = None
    if name == "distillation":
        # such that more than one class is to be seen
        config = dataclasses.replace(config, temperature=4.0)
        teacher = trained("supervised", data)
        previous = nn.Sequential(teacher.backbone, teacher.head)
    if name == "feature-distillation":
        previous = trained("supervised", data).backbone
    method = METHODS[name](config, Setup(backbone, len(data.names), len(data.names), previous))
    step = Step(method).train()
    optimizer = AdamW(lr=2e-3, weight_decay=0.0).build(step.named_parameters())
    loop = Loop(steps=STEPS, steps_per_epoch=20, schedule=Cosine())

    def epochs(number: int, first: int) -> Iterator[Batch]:
        return (data.batch(1 + 20 * number + i) for i in range(first, 20))

    for _ in fit(step, method, epochs, optimizer, loop):
        pass
    return method


# ------------------------------------------------------------------------------------------------
# what is learnt


def alike(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=1) @ F.normalize(y.float(), dim=1).T


def diagonal(n: int) -> tuple[tuple[int, int], ...]:
    return tuple((i, i) for i in range(n))


def others(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """Each view among the other views of the batch."""
    values = alike(said[0], targets[0])
    return [
        Panel(
            title="cosine similarity",
            values=values,
            rows="view 1",
            columns="view 2",
            marks=diagonal(len(values)),
        )
    ]


def teachers(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """What is predicted, and what a teacher says of the other view."""
    # SimSiam: beside it what it was made of
    first = said[0][0] if isinstance(said[0], tuple) else said[0]
    values = alike(first, targets[0])
    columns = (
        "teacher's embedding of view 2"
        if hasattr(method, "teacher")
        else "embedding of view 2, no gradient"
    )
    return [
        Panel(
            title="cosine similarity",
            values=values,
            rows="prediction from view 1",
            columns=columns,
            marks=diagonal(len(values)),
        )
    ]


def directpred(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    panels = teachers(method, (said[0] @ method.predictor,), targets, batch)
    return [
        *panels,
        Panel(
            title="predictor, set not learnt",
            values=method.predictor,
            rows="dimension",
            columns="dimension",
            signed=True,
        ),
    ]


def queued(
    moco: Any, query: Tensor, key: Tensor, title: str = "cosine similarity", rows: str = "query"
) -> Panel:
    values = alike(query, torch.cat([key, moco.queue]))
    return Panel(
        title=title,
        values=values,
        rows=rows,
        columns="keys of the batch | queue",
        marks=diagonal(len(query)),
        line=len(key),
    )


def moco(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    return [queued(method, said[0], targets[0])]


def infomin(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    pieces = queued(method.moco, said[-1], targets[0], "from shuffled pieces", "query")
    return [queued(method.moco, said[0], targets[0], "from the whole view"), pieces]


def densecl(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    (query, places, result), (key, key_places, key_found) = said[0], targets[0]
    match = most_similar(result, key_found)[0]
    marks = tuple(enumerate(match.tolist()))
    side = int(places.shape[2] ** 0.5)
    return [
        queued(method, query, key, "whole views"),
        Panel(
            title="places of one image",
            values=alike(places[0].T, key_places[0].T),
            marks=marks,
            rows=f"{side} x {side} places of view 1",
            columns="places of view 2",
        ),
    ]


def memory(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """Embeddings beside the rows that are remembered."""

    def panel(title: str, x: Tensor, of: Any, rows: str, columns: str = "remembered rows") -> Panel:
        return Panel(
            title=title,
            values=alike(x, of.rows),
            rows=rows,
            columns=columns,
            marks=diagonal(len(x)),
        )

    if hasattr(method, "memory"):
        if isinstance(said, tuple):
            return [
                panel("whole view", said[0], method.memory, "view 1"),
                panel("shuffled pieces", said[1], method.memory, "pieces of view 2"),
            ]
        return [panel("cosine similarity", said, method.memory, "view")]
    marks = [(int(i), int(i)) for i in targets if i >= 0]
    lights = panel("colour asks lightness", said[1], method.lights, "ab", "remembered L")
    colours = panel("lightness asks colour", said[0], method.colours, "L", "remembered ab")
    return [dataclasses.replace(p, marks=tuple(marks)) for p in (colours, lights)]


def assigned(title: str, logits: Tensor, labels: Tensor, rows: str = "view 1") -> Panel:
    marks = tuple((i, int(c)) for i, c in enumerate(labels) if c >= 0)
    return Panel(title=title, values=logits.softmax(1), rows=rows, columns="clusters", marks=marks)


def deepcluster(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    return [assigned("predicted; marked: k-means", said[0], targets)]


def deepcluster_v2(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    return [
        assigned(
            f"clustering {h + 1}",
            said[0] @ method.prototypes[h].T / method.config.temperature,
            targets[:, h],
        )
        for h in range(len(method.prototypes))
    ]


def swav(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    guess = (method.scores(said[0]) / method.config.temperature).softmax(1)
    words = {"columns": "prototypes"}
    return [
        Panel(title="predicted", values=guess, rows="view 1", **words),
        Panel(title="target: balanced code", values=targets[1], rows="view 2", **words),
    ]


def dino(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    words = {"columns": "prototypes"}
    guess = (said[0] / method.config.temperature).softmax(1)
    return [
        Panel(title="predicted", values=guess, rows="view 1", **words),
        Panel(title="target: the teacher's", values=targets[1].exp(), rows="view 2", **words),
    ]


def ibot(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """The masked patches of the image that has most of them."""
    image = int(targets[3].sum(1).argmax())
    masked = targets[3][image] > 0
    guess = (said[1][image][masked] / method.config.temperature).softmax(1)
    words = {"rows": "masked patch", "columns": "prototypes"}
    return [
        Panel(title="patches, predicted", values=guess, **words),
        Panel(title="their targets", values=targets[1][image][masked].exp(), **words),
    ]


def pcl(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    keys, clusters = targets
    own = slice(0, method.sizes[0])
    logits = said[0] @ method.prototypes[own].T / method.concentrations[own]
    return [
        queued(method.moco, said[0], keys[0]),
        assigned("its prototype", logits, clusters[:, 0], "query"),
    ]


def barlow(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    values = standardize(said[0]).T @ standardize(targets[0]) / len(said[0])
    return [
        Panel(
            title="cross-correlation",
            values=values,
            rows="dimension, view 1",
            columns="dimension, view 2",
            marks=(),
            signed=True,
        )
    ]


def vicreg(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    z = said[0] - said[0].mean(0)
    return [
        *others(method, [x[:16] for x in said], [x[:16] for x in targets], batch),
        Panel(
            title="covariance, view 1",
            values=z.T @ z / (len(z) - 1),
            rows="dimension",
            columns="dimension",
            signed=True,
        ),
    ]


def cpc(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """Of two photographs: what is said of patches from above, among their patches."""
    nearest, rows = method.config.nearest, targets.shape[1]
    guess = said[0][:2, 0, 0, : rows - nearest].flatten(0, 2)
    place = torch.arange(2 * rows * rows).view(2, rows, rows)[:, nearest:].flatten()
    return [
        Panel(
            title="cosine similarity, two photographs",
            values=alike(guess, targets[:2].flatten(0, 2)),
            rows=f"said from {nearest} rows above",
            columns="patches, row by row",
            line=rows * rows,
            marks=tuple(enumerate(place.tolist())),
        )
    ]


def supervised(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    return [
        Panel(
            title="predicted probability",
            values=said.softmax(1),
            rows="view",
            columns="classes",
            marks=tuple(enumerate(targets.tolist())),
        )
    ]


def context_prediction(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """Every neighbour of a patch asks for its place."""
    return [
        Panel(
            title="predicted probability",
            values=said.flatten(0, 1)[:32].softmax(1),
            rows="8 neighbours of 4 patches",
            columns="places",
            marks=tuple(enumerate(targets.flatten()[:32].tolist())),
        )
    ]


def jigsaw(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    return [
        Panel(
            title="predicted probability",
            values=said.softmax(1),
            rows="photograph in pieces",
            columns="orders",
            marks=tuple(enumerate(targets.tolist())),
        )
    ]


def rotation(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """Every copy of an image asks for its angle."""
    return [
        Panel(
            title="predicted probability",
            values=said.flatten(0, 1)[:32].softmax(1),
            rows="copies of 8 photographs",
            columns="angles",
            marks=tuple(enumerate(targets.flatten()[:32].tolist())),
        )
    ]


def colorization(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """The colours of all photographs together, which a mean of colours would pull to grey."""
    places = (method.bins.centres / 10 + 11).long()

    def plane(title: str, shares: Tensor) -> Panel:
        values = torch.zeros(23, 23)
        values[22 - places[:, 1], places[:, 0]] = shares.mean((0, 2, 3)).sqrt()
        return Panel(title=title, values=values, rows="b, to yellow", columns="a, to red")

    codes = targets / targets.sum(1, keepdim=True).clamp_min(1e-9)
    return [plane("predicted shares, square root", said.softmax(1)), plane("true shares", codes)]


def rebuilt(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """What each picture explains of every view, where that view was damaged."""
    avoided = []
    for own in zip(*targets, strict=True):
        avoided.append(
            measure_avoided_error(said, tuple(x.expand(len(said), -1, -1, -1) for x in own))
        )
    return [avoided_errors(torch.stack(avoided, 1))]


def masked(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """What each prediction explains of the masked pixels of every view, in the same places."""
    view, hidden = targets
    explained = []
    for own, place in zip(said, hidden, strict=True):
        of_all = (view, place.expand(len(view), -1, -1, -1))
        guess = method.image_errors(method.guess(*of_all), of_all)
        explained.append(1 - method.image_errors(own.expand_as(view), of_all) / guess)
    return [avoided_errors(torch.stack(explained))]


def avoided_errors(shares: Tensor) -> Panel:
    """The share of the error that each prediction avoids of each view, [N, N]."""
    return Panel(
        title="share of the error that is avoided",
        values=shares.clamp(-1, 1),
        rows="prediction",
        columns="true view",
        marks=diagonal(len(shares)),
        signed=True,
    )


def reconstructed(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """How near each G(E(x)) is to every view."""
    distances = torch.cdist(said[4].flatten(1), targets.flatten(1))
    return [
        Panel(
            title="distance of pixels, negative",
            values=-distances / targets[0].numel() ** 0.5,
            rows="G(E(x))",
            columns="view",
            marks=diagonal(len(targets)),
        )
    ]


def spotting(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    """Where each code was damaged, and where the network thinks it was."""
    words = {"rows": "photograph", "columns": "places of the code"}
    return [
        Panel(title="damage", values=1 - targets[1].flatten(1), **words),
        Panel(title="predicted", values=1 - said[2][:, 1].sigmoid().flatten(1), **words),
    ]


def distillation(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    guess = (said / method.temperature).softmax(1)
    return [
        Panel(title="teacher's probability", values=targets, rows="view", columns="classes"),
        Panel(title="student's", values=guess, rows="view", columns="classes"),
    ]


def features(method: Any, said: Any, targets: Any, batch: Batch) -> list[Panel]:
    side = targets[1].shape[2:]
    places = [resize(x, side)[0].flatten(1).T for x in (said[1], targets[1])]
    return [
        Panel(
            title="whole views",
            values=alike(said[0], targets[0]),
            rows="student's prediction",
            columns="teacher's features",
            marks=diagonal(len(said[0])),
        ),
        Panel(
            title="places of one view",
            values=alike(*places),
            rows=f"student's {side[0]} x {side[1]} places",
            columns="teacher's places",
            marks=diagonal(len(places[0])),
        ),
    ]


SEEN: dict[str, Callable[[Any, Any, Any, Batch], list[Panel]]] = {
    "barlow-twins": barlow,
    "bigan": reconstructed,
    "bigbigan": reconstructed,
    "byol": teachers,
    "cmc": memory,
    "colorization": colorization,
    "context-encoder": rebuilt,
    "context-prediction": context_prediction,
    "cpc": cpc,
    "deepcluster": deepcluster,
    "deepcluster-v2": deepcluster_v2,
    "denoising-autoencoder": rebuilt,
    "densecl": densecl,
    "dino": dino,
    "dinov2": ibot,
    "directpred": directpred,
    "distillation": distillation,
    "feature-distillation": features,
    "ibot": ibot,
    "infomin": infomin,
    "instance-discrimination": memory,
    "jigsaw": jigsaw,
    "mae": masked,
    "margin-contrastive": others,
    "moco-v1": moco,
    "moco-v2": moco,
    "moco-v3": teachers,
    "pcl": pcl,
    "pirl": memory,
    "rotation": rotation,
    "simclr": others,
    "simclr-v2": others,
    "simmim": masked,
    "simsiam": teachers,
    "spotting-artifacts": spotting,
    "supervised": supervised,
    "swav": swav,
    "triplet": others,
    "vicreg": vicreg,
}


# --------------------------------------------------------------------------------------------------
# what is seen


def pictures(method: Method, batch: Batch, said: Any, targets: Any) -> list[tuple[str, Tensor]]:
    """Titles and pictures [B, 3, H, W] of what the network gets, parts side by side; then of what a
    key encoder gets. Where answers are pictures: those of the method.
    """
    answers = method.illustrate(batch, said, targets)
    if answers and len(answers[0].pictures) > 1:
        titles = answers[0].pictures
        return [(title, torch.stack([one.pictures[title] for one in answers])) for title in titles]
    seen = leaves(method.inputs(batch))
    keys = hasattr(method, "queue") or hasattr(method, "moco")
    alone = [view for view in batch.views if keys and not any(view is one for one in seen)]
    if hasattr(method, "draw_masks"):
        masks = method.draw_masks(batch)
        seen[:2] = [hide(x, mask, method) for x, mask in zip(seen, masks, strict=False)]
    result = []
    for x in [*seen, *alone]:
        if x.ndim == 6:
            result.append(
                (f"{x.shape[1]} x {x.shape[2]} patches", mosaic(x.flatten(1, 2), x.shape[1]))
            )
        elif x.ndim == 5 and x.shape[1] == 4:
            result.append(("four turns", mosaic(x, 2)))
        elif x.ndim == 5:
            kind = "patches" if hasattr(method, "draw_places") else "shuffled pieces"
            result.append((kind, mosaic(x, 3)))
        elif type(method).__name__ == "CMC":
            result.append(("L" if not result else "ab", x))
        else:
            small = x.shape[-1] < batch.views[0].shape[-1]
            kind = (
                "small view"
                if small
                else "key's view"
                if any(x is one for one in alone)
                else "view"
            )
            result.append((kind, x))
    kinds = [kind for kind, _ in result]
    return [
        (f"{kind} {kinds[: i + 1].count(kind)}" if kinds.count(kind) > 1 else kind, x)
        for i, (kind, x) in enumerate(result)
    ]


def hide(view: Tensor, mask: Tensor, method: Any) -> Tensor:
    """Grey in place of the patches that are masked."""
    high, wide = method.patch_size
    grid = mask.unflatten(1, (view.shape[2] // high, view.shape[3] // wide)).float()
    hidden = F.interpolate(grid[:, None], size=view.shape[2:]) > 0
    return torch.where(hidden, torch.full_like(view, 0.5), view)


def mosaic(parts: Tensor, columns: int) -> Tensor:
    """[B, n, 3, s, s] -> [B, 3, H, W], with white between."""
    side, gap = parts.shape[-1], max(parts.shape[-1] // 8, 1)
    rows = parts.shape[1] // columns
    sheet = torch.ones(len(parts), 3, rows * (side + gap) - gap, columns * (side + gap) - gap)
    for i in range(parts.shape[1]):
        y, x = i // columns * (side + gap), i % columns * (side + gap)
        sheet[:, :, y : y + side, x : x + side] = parts[:, i]
    return sheet


def draw(name: str, out: Path = OUT) -> Path:
    data = Photographs(name)
    method = trained(name, data)
    batch = data.batch(0)
    if METHODS[name].Config().two_player:
        method.eval()  # which makes reconstructions
    with torch.no_grad():
        said = method.predict(method.inputs(batch))
        targets = method.targets(batch, said)
        panels = SEEN[name](method, said, targets, batch)
        seen = [("photograph", data.plain()), *pictures(method, batch, said, targets)]
    # inches; what is seen takes this much, what is learnt the rest
    left = min(TILE * len(seen), 0.55 * WIDTH)
    figure = pyplot.figure(figsize=(WIDTH, HEIGHT), dpi=100)

    def place(x: float, y: float, wide: float, high: float) -> Any:
        return figure.add_axes((x / WIDTH, y / HEIGHT, wide / WIDTH, high / HEIGHT))

    side = 0.92 * left / len(seen)
    for column, (title, x) in enumerate(seen):
        extent = side * (0.5 if title.startswith("small") else 1.0)
        for row, photograph in enumerate(SHOWN):
            axis = place(
                0.05 + column * left / len(seen), HEIGHT - 0.32 - row * TILE - side, extent, extent
            )
            axis.imshow(
                x[data.names.index(photograph)].permute(1, 2, 0).clamp(0, 1).numpy(),
                interpolation="antialiased",
            )
            axis.axis("off")
            if row == 0:
                middle = 0.05 + column * left / len(seen) + extent / 2
                lines = title.replace(" ", "\n") if len(seen) > 6 else title  # narrow pictures
                height = 1 - 0.22 / HEIGHT
                figure.text(middle / WIDTH, height, lines, ha="center", va="center", fontsize=7)
    room = (WIDTH - left - 0.2) / len(panels)
    for i, panel in enumerate(panels):
        rows, columns = panel.values.shape
        # square, unless that would be too narrow to see
        cell = min(TALL / rows, (room - 0.8) / columns)
        wide, high = max(cell * columns, 0.6), TALL if columns < rows else max(cell * rows, 0.9)
        x, y = left + 0.2 + (i + 0.5) * room - wide / 2 - 0.05, 0.4 + (TALL - high) / 2
        axis = place(x, y, wide, high)
        most = float(panel.values.abs().max()) if panel.signed else None
        shown = axis.imshow(
            panel.values.numpy(),
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu_r" if panel.signed else "viridis",
            vmin=None if most is None else -most,
            vmax=most,
        )
        for row, column in panel.marks:
            axis.add_patch(
                pyplot.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#ff2d2d", lw=0.9)
            )
        if panel.line is not None:
            axis.axvline(panel.line - 0.5, color="white", lw=2)
        axis.set(xticks=[], yticks=[])
        axis.set_title(panel.title, fontsize=8)
        axis.set_xlabel(panel.columns, fontsize=7)
        axis.set_ylabel(panel.rows, fontsize=7)
        figure.colorbar(shown, cax=place(x + wide + 0.05, y, 0.06, high)).ax.tick_params(
            labelsize=6, length=2, pad=1
        )
    return save(figure, out / f"{name}.png")


def save(figure: Any, file: Path) -> Path:
    """A PNG of so few colours that it stays small."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        figure.savefig(whole)
        pyplot.close(figure)
        picture = Image.open(whole).convert("RGB")
    for colours in (256, 192, 128, 96, 64):
        picture.quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
        if file.stat().st_size <= LARGEST:
            break
    return file


def main(names: list[str]) -> None:
    for name in names or METHODS:
        print(draw(name), flush=True)


if __name__ == "__main__":
    pyplot.switch_backend("Agg")
    main(sys.argv[1:])
