"""Hard examples: views whose pseudo-labels are difficult to predict (HEXA, Li et al., 2020).

Each hard example computes one more loss from the inputs and targets of any method.
"""

from selftaught.hard.adversarial import Adversarial
from selftaught.hard.base import HardExample
from selftaught.hard.mixed import CutMix, MixUp

HARD: dict[str, type[HardExample]] = {"adversarial": Adversarial, "cutmix": CutMix, "mixup": MixUp}

__all__ = ["HARD", "Adversarial", "CutMix", "MixUp"]
