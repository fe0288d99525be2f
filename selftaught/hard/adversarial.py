"""Adversarial views: small perturbations that increase the method's loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.errors import require
from selftaught.hard.base import HardExample, objective
from selftaught.method import Method, Tensors, detach, leaves, map_tensors, zip_tensors
from selftaught.models.batch_norm import frozen_statistics
from selftaught.ranges import Natural, NonNegative, Share


@dataclass(frozen=True, kw_only=True)
class Adversarial(HardExample):
    """Signed gradient ascent on the method's own loss, in the sup norm (Madry et al., 2018).

    With one step it is FGSM.
    """

    eps: NonNegative = 1.0  # radius, in grey levels of 255
    steps: Natural = 1
    stride: NonNegative = 1.0  # grey levels a step; eps / steps where that is more
    random_start: Share = 0.0  # probability that a batch starts at a random point of the ball

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 0 if self.random_start else 1  # a random start without steps is plain noise
        require(self.steps >= least, "--hard.adversarial.steps", f"{least} or more", self.steps)

    @property
    def reuses_gradient(self) -> bool:
        return self.random_start < 1  # the first step needs it where the attack starts at the view

    def loss(
        self,
        method: Method,
        inputs: Tensors,
        targets: Tensors,
        rng: torch.Generator,
        input_grad: Tensors | None,
    ) -> Tensor:
        attacked = self.attack(method, inputs, targets, rng, input_grad)
        return objective(method, method.predict(attacked), targets)

    def attack(
        self,
        method: Method,
        inputs: Tensors,
        targets: Tensors,
        rng: torch.Generator,
        input_grad: Tensors | None = None,
    ) -> Tensors:
        """inputs in [0, 1] -> inputs in [0, 1], each value at most eps / 255 away.

        Parameters get no gradient. `input_grad` is the loss's gradient at `inputs`, or None.
        """
        radius = self.eps / 255
        stride = max(self.stride, self.eps / max(self.steps, 1)) / 255

        def inside(moved: Tensor, x: Tensor) -> Tensor:
            return moved.clamp(x - radius, x + radius).clamp(0, 1)

        points = inputs
        if self.random_start and torch.rand((), generator=rng).item() < self.random_start:
            points = map_tensors(
                lambda x: inside(x + radius * (2 * torch.rand_like(x) - 1), x), inputs
            )
            input_grad = None
        for _ in range(self.steps):
            if input_grad is None:
                input_grad = self._input_grad(method, points, targets)
            moved = zip_tensors(lambda x, g: x + stride * g.sign(), points, input_grad)
            points, input_grad = zip_tensors(inside, moved, inputs), None
        return detach(points)

    @staticmethod
    @torch.enable_grad()
    def _input_grad(method: Method, points: Tensors, targets: Tensors) -> Tensors:
        points = map_tensors(lambda x: x.detach().requires_grad_(), points)
        trainable = [p for p in method.parameters() if p.requires_grad]
        for p in trainable:  # their gradients, unused here, cost a third of a backward pass
            p.requires_grad_(False)
        try:
            with frozen_statistics(method):
                loss = objective(method, method.predict(points), targets)
            grads = iter(
                torch.autograd.grad(loss, leaves(points), allow_unused=True, materialize_grads=True)
            )
        finally:
            for p in trainable:
                p.requires_grad_(True)
        return map_tensors(lambda _: next(grads), points)
