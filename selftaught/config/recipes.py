"""Tuned learning rates of the methods for training from random weights, with their source.

A number tuned on a data set is a fact about that data set. So the methods' classes hold published
values, and only this table holds tuned ones. The rates were chosen by kNN and linear probe on
imagenette128. The tables of docs/benchmarks.md use the same test images (docs/LOG.md: "Learning
rates in a short training", "Rates once more" and the sections between). That of feature
distillation was chosen on held-out training images. Jigsaw's is the only one
that was tried above .1, and its task is learnt; so is that of context-prediction at the same rate.
"""

from dataclasses import dataclass

from selftaught.method import Method
from selftaught.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A tuned rate of SGD with momentum .9, and the trainings that it was chosen by."""

    lr: float  # for 256 images a step, in proportion to the batch
    commit: str  # the commit that made it the default
    seeds: int  # number of seeds that it was chosen or confirmed with
    clip: float = 0.0  # norm at which gradients are clipped; 0 = never
    data: str = "imagenette128, 48 px, ResNet-18"
    steps: int = 400
    batch: int = 64


RECIPES: dict[str, Recipe] = {
    "barlow-twins": Recipe(lr=0.4, commit="04fb572f", seeds=1),
    "byol": Recipe(lr=0.4, commit="60e9ef90", seeds=2),
    "cmc": Recipe(lr=0.48, commit="f49d33f7", seeds=2),
    "context-prediction": Recipe(lr=0.48, commit="6ff372a5", seeds=1),
    "cpc": Recipe(lr=0.24, commit="04fb572f", seeds=1),
    "deepcluster": Recipe(lr=0.2, commit="04fb572f", seeds=1),
    "deepcluster-v2": Recipe(lr=0.96, commit="93a76250", seeds=2),
    "densecl": Recipe(lr=0.24, commit="34a2671f", seeds=1),
    "directpred": Recipe(lr=0.48, commit="e09dd392", seeds=2),
    "feature-distillation": Recipe(
        lr=0.96,
        commit="43ce82a6",
        seeds=1,
        data="rsscn7, 48 px, ResNet-18, teacher EfficientNet-Lite0; on training images",
        steps=200,
    ),
    "infomin": Recipe(lr=0.12, commit="d1f97eb5", seeds=1),
    "instance-discrimination": Recipe(lr=0.96, commit="93a76250", seeds=2),
    "jigsaw": Recipe(lr=0.48, commit="6ff372a5", seeds=1),
    "margin-contrastive": Recipe(lr=0.96, commit="93a76250", seeds=2),
    "moco-v1": Recipe(lr=0.24, commit="34a2671f", seeds=1),
    "moco-v2": Recipe(lr=0.24, commit="34a2671f", seeds=1),
    "moco-v3": Recipe(lr=0.96, commit="93a76250", seeds=2),
    "pcl": Recipe(lr=0.24, commit="34a2671f", seeds=1),
    "pirl": Recipe(lr=0.96, commit="93a76250", seeds=2),
    "simclr": Recipe(lr=0.24, commit="04fb572f", seeds=1),
    "simclr-v2": Recipe(lr=0.24, commit="04fb572f", seeds=1),
    "simsiam": Recipe(lr=0.8, commit="b2db422b", seeds=2),
    "swav": Recipe(lr=0.96, commit="21ef5589", seeds=2),
    "triplet": Recipe(lr=0.48, commit="e09dd392", seeds=2),
    # The clip is several times the usual norm. Covariances grow with the fourth power of
    # embeddings, so without a clip they diverge.
    "vicreg": Recipe(lr=0.2, commit="04fb572f", seeds=1, clip=5.0),
}


def find_recipe(method: type[Method]) -> Recipe | None:
    """Return the tuned recipe of a method, or None."""
    name = next((name for name, kind in METHODS.items() if kind is method), "")
    return RECIPES.get(name)
