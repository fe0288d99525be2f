"""Teacher networks: moving averages of a network, and frozen ones."""

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of `student` that is updated by exponential moving average."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor | None) -> Any:
        return self.network(*inputs)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Update in place: teacher = momentum * teacher + (1 - momentum) * student."""
        # pyrefly: ignore[no-matching-overload]
        torch._foreach_lerp_(
            list(self.network.parameters()), list(student.parameters()), 1 - momentum
        )


def teacher_momentum(published: float, steps: int, memories: int = 50) -> float:
    """The teacher's momentum for a training of `steps` steps, at most the `published` one.

    A short training needs a faster teacher. Its time constant is steps / memories, but at least
    `memories` steps.
    """
    return min(max(1 - memories / max(steps, 1), 1 - 1 / memories), published)


def schedule_momentum(momentum: float, progress: float) -> float:
    """Raise `momentum` to 1 along a cosine, for a progress of training from 0 to 1."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


class FrozenTeacher(Teacher):
    """A teacher that is not updated and stays in evaluation mode (running statistics)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)
