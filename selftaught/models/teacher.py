"""Teachers: slow copies of a network, and networks that stay as they are."""

import copy
import math
from typing import Self, cast

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of `student` that follows it by exponential moving average."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.network(x))

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        torch._foreach_lerp_(
            list(self.network.parameters()), list(student.parameters()), 1 - momentum
        )


def teacher_momentum(published: float, steps: int, memories: int = 50) -> float:
    """A short training needs a teacher that follows sooner: one that forgets `memories` times
    within it, yet remembers as many steps; so a training of fewer than `memories` squared steps
    sees it forget less often.
    """
    return min(max(1 - memories / max(steps, 1), 1 - 1 / memories), published)


def rising(momentum: float, progress: float) -> float:
    """From `momentum` to 1 along a cosine, as training goes from 0 to 1."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


class FrozenTeacher(Teacher):
    """A teacher that learns no more: it always judges by what its batch norms remember."""

    def __init__(self, taught: nn.Module) -> None:
        super().__init__(taught)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)
