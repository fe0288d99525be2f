"""A small network, a small batch and small configurations, for laws that run over every method."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.distributed import local_chunk
from selftaught.hard import Adversarial, CutMix, MixUp
from selftaught.hard.base import HardExample
from selftaught.method import Batch, Encoder, Method, Setup, image_seeds
from selftaught.methods import METHODS
from selftaught.models.batch_norm import batch_norms
from selftaught.models.layers import mlp

IMAGES, CLASSES = 64, 5
SMALL = {
    "hidden": 16,
    "dim": 8,
    "queue": 16,
    "negatives": 16,
    "clusters": 5,
    "prototypes": 6,
    "blocks": 1,
    "directions": 2,
    "bottleneck": 8,
    "width": 32,
    "depth": 1,
    "tile": 4,
}
HARD: dict[str, HardExample] = {
    "adversarial": Adversarial(eps=8),
    "adversarial-3": Adversarial(eps=8, steps=3, stride=4),
    "adversarial-random": Adversarial(eps=8, random_start=1.0),
    "cutmix": CutMix(),
    "mixup": MixUp(),
    "cutmix-all-auxiliary": CutMix(crops="all", norm="auxiliary"),
}


# Methods of two players take no hard examples.
TWO_PLAYER = [name for name, method in METHODS.items() if method.Config().two_player]
WITH_HARD = [name for name in METHODS if name not in TWO_PLAYER]
# The number of an attack's steps and its start are the same code for every method: these differ in
# what an attack meets (compared samples, a queue, small views, tiles, masks).
ATTACKED = ("simclr", "moco-v2", "swav", "jigsaw", "mae")
PAIRS = [
    (name, hard)
    for name in WITH_HARD
    for hard in HARD
    if name in ATTACKED or hard not in ("adversarial-3", "adversarial-random")
]


def hards(*names: str) -> tuple[HardExample, ...]:
    return tuple(HARD[name] for name in names)


def hards_of(method: str, *names: str) -> tuple[HardExample, ...]:
    """The hard examples, or none for a method that takes none."""
    return hards(*names) if method in WITH_HARD else ()


class Toy(Encoder):
    """A smooth backbone (no kinks, for numerical gradients), with batch norm or without."""

    features = channels = 6

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()

    def forward(self, x: Tensor, mapped: bool = False) -> Any:
        result = self.map(x)
        pooled = result.mean(dim=(2, 3))
        return (pooled, result) if mapped else pooled

    def map(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x)))


class Coarse(Toy):
    """The same with a map of fewer places and wider features."""

    features = channels = 9

    def __init__(self, norm: bool) -> None:
        super().__init__(norm)
        self.down = nn.Conv2d(6, 9, 3, 2)

    def map(self, x: Tensor) -> Tensor:
        return torch.tanh(self.down(super().map(x)))


class Deep(Toy):
    """The same with two blocks more, which are sharded each for itself."""

    def __init__(self, norm: bool) -> None:
        super().__init__(norm)
        self.blocks = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1))

    def map(self, x: Tensor) -> Tensor:
        return torch.tanh(self.blocks(super().map(x)))


class Tokens(Toy):
    """The same with patches and positions, for methods that mask patches; each sees the others."""

    patch_size = (4, 4)

    def __init__(self, norm: bool) -> None:
        super().__init__(norm)
        self.conv = nn.Conv2d(3, 6, 4, 4)
        self.context = nn.Linear(6, 6)

    def forward(self, x: Tensor, mapped: bool = False, tokens: Any = None) -> Any:
        mask, token, keep = tokens or (None, None, None)
        patches = self.norm(self.conv(x))
        h, w = patches.shape[2:]
        if mask is not None:
            patches = torch.where(mask.view(-1, 1, h, w), token[:, None, None], patches)
        rows, columns = torch.arange(1, h + 1), torch.arange(1, w + 1)
        position = torch.sin(rows[:, None] * torch.arange(1, 7)[:, None, None] + 2 * columns)
        patches = (patches + position.to(patches)).flatten(2).transpose(1, 2)
        if keep is not None:
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, 6))
        context = self.context(torch.tanh(patches).mean(1, keepdim=True))
        patches = self.deepen(torch.tanh(patches + context))
        if tokens is not None:
            return patches.mean(1), patches
        result = patches.transpose(1, 2).unflatten(2, (h, w))
        return (patches.mean(1), result) if mapped else patches.mean(1)

    def tokens(
        self,
        pixels: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        features, patches = self(pixels, tokens=(mask, mask_token, keep))
        return features, patches

    def deepen(self, patches: Tensor) -> Tensor:
        return patches


class DeepTokens(Tokens):
    """The same with two blocks more, which are sharded each for itself."""

    def __init__(self, norm: bool) -> None:
        super().__init__(norm)
        self.blocks = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

    def deepen(self, patches: Tensor) -> Tensor:
        return torch.tanh(self.blocks(patches))


MASKED = {"ibot", "dinov2", "mae"}  # methods that need patches
WITH_PATCHES: dict[type[Toy], type[Toy]] = {Toy: Tokens, Deep: DeepTokens}


def backbone_of(name: str, norm: bool, toy: type[Toy] = Toy) -> Toy:
    """The toy, with patches for a method that needs them."""
    return (WITH_PATCHES[toy] if name in MASKED else toy)(norm)


def config(name: str) -> Method.Config:
    default = METHODS[name].Config()
    fields = {f.name for f in dataclasses.fields(default)}
    return dataclasses.replace(default, **{k: v for k, v in SMALL.items() if k in fields})


def build(
    name: str,
    *,
    seed: int = 0,
    norm: bool = True,
    dtype: torch.dtype = torch.float32,
    toy: type[Toy] = Toy,
) -> Method:
    """A method that has begun its first epoch. Without `norm` no batch norm is left anywhere."""
    torch.manual_seed(seed)
    method = METHODS[name](config(name), setup(name, backbone_of(name, norm, toy)))
    if not norm:
        for module in list(method.modules()):
            for holder, child, _ in list(batch_norms(module)):
                setattr(holder, child, nn.Identity())
    method = method.to(dtype)
    method.progress = 0.5
    torch.manual_seed(seed + 1)
    method.before_epoch([mine(batch(n=16, seed=s, first=16 * s, dtype=dtype)) for s in range(4)])
    return method


def setup(name: str, backbone: Encoder | None = None, images: int = IMAGES) -> Setup:
    """What a method is built on; the network of a previous run for one that cannot do without."""
    backbone = backbone or backbone_of(name, norm=True)
    previous: nn.Sequential | Encoder | None = None
    if name == "distillation":
        previous = nn.Sequential(Toy(norm=True), mlp(6, 16, CLASSES))
    if name == "feature-distillation":
        previous = Coarse(norm=True)
    return Setup(backbone, images, CLASSES, previous)


def mine(whole: Batch) -> Batch:
    """This process's share of a global batch."""
    return whole.map(local_chunk)


def batch(
    n: int = 8, seed: int = 1, first: int = 0, dtype: torch.dtype = torch.float32, size: int = 16
) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    views = tuple(
        torch.rand(n, 3, size, size, generator=rng, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    label = torch.randint(5, (n,), generator=rng)
    return Batch(views, torch.arange(first, first + n), label, image_seeds(seed, first, n))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
