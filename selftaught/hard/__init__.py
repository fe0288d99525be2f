"""Hard examples: views whose pseudo-labels are difficult to predict (HEXA, Li et al., 2020).

Each one turns (inputs, targets) of *any* method into one more loss.
"""

from selftaught.hard.adversarial import Adversarial
from selftaught.hard.base import HardExample
from selftaught.hard.mixed import CutMix, MixUp

HARD: dict[str, type[HardExample]] = {"adversarial": Adversarial, "cutmix": CutMix, "mixup": MixUp}

__all__ = ["HARD", "Adversarial", "CutMix", "MixUp"]
