"""One step's losses, clean and hard, as a single module: what DDP wraps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selftaught.distributed import is_sharded, world_size
from selftaught.errors import UserError
from selftaught.hard.base import HardExample, objective, part_name
from selftaught.method import Batch, GroupOptions, Method, Tensors, detach, leaves, map_tensors
from selftaught.models.batch_norm import batch_norms, frozen_statistics, swapped


@dataclass(frozen=True)
class Outcome:
    loss: Tensor  # what to minimise
    parts: dict[str, Tensor]  # "clean", "adversarial", ...: each unweighted, detached
    predictions: Tensors  # of the clean views, detached
    targets: Tensors  # detached


class Step(nn.Module):
    """`combine="mean"` divides by the sum of the weights: hard examples then turn a step and do not
    lengthen it.
    """

    def __init__(
        self,
        method: Method,
        hard: tuple[HardExample, ...] = (),
        combine: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        hard = tuple(h for h in hard if h.weight)
        for h in hard:
            if [part_name(other) for other in hard].count(part_name(h)) > 1:
                raise UserError(f"two hard examples are called {part_name(h)}: give each kind once")
            if h.norm == "auxiliary" and h.start > 0 and world_size() > 1:
                raise UserError(
                    f"{part_name(h)}: in several processes a second set of batch norms must be used"
                    " from the first step on: leave out its start, or take the shared norms"
                )
        self.method = method
        self.hard = hard
        self.combine = combine
        # a second set of batch norms for each kind of hard example that asks for one
        self.norms = nn.ModuleDict(
            {
                part_name(h): nn.ModuleList(
                    copy.deepcopy(norm) for _, _, norm in batch_norms(method)
                )
                for h in hard
                if h.norm == "auxiliary"
            }
        )

    def parameter_groups(self) -> dict[str, GroupOptions]:
        """The method's, by the names that its parameters have here."""
        return {f"method.{part}": own for part, own in self.method.parameter_groups().items()}

    def forward(self, batch: Batch, rng: torch.Generator) -> Outcome:
        """`rng` is in the same state on every rank."""
        method = self.method
        hard = [h for h in self.hard if method.progress >= h.start]
        inputs = method.inputs(batch)
        learning = bool(hard) and torch.is_grad_enabled()
        # other norms, other gradients
        reusing = [h for h in hard if learning and h.reuses_gradient and h.norm == "shared"]
        if reusing:
            inputs = map_tensors(lambda x: x.detach().requires_grad_(), inputs)
        predictions = method.predict(inputs)
        targets = method.targets(batch, predictions)
        clean = objective(method, predictions, targets)
        slope = None
        if learning:
            aim = clean
            if reusing and any(target.requires_grad for target in leaves(targets)):
                # an attack holds targets fixed
                aim = objective(method, predictions, detach(targets))
            clean, slope = differentiated(clean, method, inputs, aim)
        predictions, targets, inputs = detach(predictions), detach(targets), detach(inputs)
        losses, weights = {"clean": clean}, [1.0]
        for h in hard:
            with self._norms_of(h):
                few, slope_few = (
                    first_crops(method, h, inputs),
                    first_crops(method, h, slope if h in reusing else None),
                )
                part = h.loss(method, few, targets, rng, slope_few)
                losses[part_name(h)] = differentiated(part, method)[0] if learning else part
            weights.append(h.weight)
        loss = torch.stack(
            [w * part for w, part in zip(weights, losses.values(), strict=True)]
        ).sum()
        if self.combine == "mean":
            loss = loss / sum(weights)
        return Outcome(
            loss, {name: part.detach() for name, part in losses.items()}, predictions, targets
        )

    @contextmanager
    def _norms_of(self, hard: HardExample) -> Iterator[None]:
        """The batch norms of a hard pass; the running statistics stay those of clean images
        alone.
        """
        if hard.norm == "auxiliary":
            with swapped(self.method, self.norms[part_name(hard)]):  # type: ignore[arg-type]
                yield
        else:
            with frozen_statistics(self.method):
                yield


def first_crops(method: Method, hard: HardExample, inputs: Tensors | None) -> Tensors | None:
    return (
        inputs[: method.views]
        if inputs is not None and method.multi_crop and hard.crops == "large"
        else inputs
    )


def differentiated(
    loss: Tensor, method: Method, inputs: Tensors = (), aim: Tensor | None = None
) -> tuple[Tensor, Tensors | None]:
    """The loss, whose own backward pass will hand out the parameters' gradients, found here
    already; and the gradient of `aim` at the inputs, if they require one.

    Where the aim is the loss itself, one backward pass finds both; another aim takes one more over
    the same graph, to the inputs alone. The graph behind is freed: peak memory is one pass and
    these gradients, whatever hard examples follow. FSDP gathers gradients in `backward` alone:
    there graphs stay, and the inputs' gradient costs a backward pass of its own.
    """
    points = [x for x in leaves(inputs) if x.requires_grad]
    sharded = is_sharded(method.parameters())
    if not loss.requires_grad:
        return loss, None
    slopes: Sequence[Tensor | None] = ()
    if points and aim is not None and (sharded or aim is not loss):
        slopes = torch.autograd.grad(aim, points, allow_unused=True, retain_graph=True)
    if not sharded:
        wanted = points[len(slopes) :]
        parameters = [p for p in method.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [*wanted, *parameters], allow_unused=True)
        slopes = slopes or found[: len(wanted)]
        known = [
            (p, g) for p, g in zip(parameters, found[len(wanted) :], strict=True) if g is not None
        ]
        loss = _Known.apply(loss.detach(), [g for _, g in known], *(p for p, _ in known))
    filled = iter(
        [torch.zeros_like(x) if g is None else g for x, g in zip(points, slopes, strict=True)]
    )
    return loss, map_tensors(lambda _: next(filled), inputs) if points else None


class _Known(torch.autograd.Function):
    """A loss whose gradients are known. (Backward inside forward, and yet one graph: DDP sees each
    gradient once.)
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grads[0])
