"""The losses of one training step, clean and hard, as one module that DDP can wrap."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selftaught.distributed import is_sharded, world_size
from selftaught.errors import UserError
from selftaught.hard.base import HardExample, objective, part_name
from selftaught.method import Batch, GroupOptions, Method, Tensors, detach, leaves, map_tensors
from selftaught.models.anchor import AnchorLoss
from selftaught.models.batch_norm import batch_norms, frozen_statistics, swap_batch_norms


@dataclass(frozen=True)
class Outcome:
    """The losses and the outputs of one forward pass."""

    loss: Tensor  # scalar, to minimise
    # losses of "clean", "anchor", "adversarial", ...: unweighted, detached
    parts: dict[str, Tensor]
    predictions: Tensors  # of the clean views, detached
    targets: Tensors  # detached


class Step(nn.Module):
    """Computes the loss of a method on clean views and on hard examples.

    `combine="mean"` divides the weighted sum by the sum of the weights. So hard examples change
    the direction of a step and not its length. `anchor` adds the distance of the backbone from its
    start on the clean views. Raises UserError for two hard examples of one kind, and for a delayed
    second set of batch norms in several processes.
    """

    def __init__(
        self,
        method: Method,
        hard: tuple[HardExample, ...] = (),
        combine: Literal["mean", "sum"] = "mean",
        anchor: AnchorLoss | None = None,
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
        self.anchor = anchor
        # a second set of batch norms for each hard example with norm="auxiliary"
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
        """The method's parameter groups; their names have the prefix "method."."""
        groups = self.method.parameter_groups()
        return {f"method.{part}": options for part, options in groups.items()}

    def forward(self, batch: Batch, rng: torch.Generator) -> Outcome:
        """Compute the loss of a batch. `rng` must be in the same state on every rank."""
        method = self.method
        hard = [h for h in self.hard if method.progress >= h.start]
        inputs = method.inputs(batch)
        learning = bool(hard) and torch.is_grad_enabled()
        # The gradient of the clean pass holds for the same batch norms only.
        reusing = [h for h in hard if learning and h.reuses_gradient and h.norm == "shared"]
        if reusing:
            inputs = map_tensors(lambda x: x.detach().requires_grad_(), inputs)
        anchored = torch.is_grad_enabled() and not method.backbone_is_idle
        anchor = self.anchor if anchored else None
        with anchor.record(method.backbone) if anchor else nullcontext([]) as calls:
            predictions = method.predict(inputs)
        targets = method.targets(batch, predictions)
        aim = clean = objective(method, predictions, targets)
        losses, weights = {"clean": clean.detach()}, [1.0, *(h.weight for h in hard)]
        divisor = sum(weights) if self.combine == "mean" else 1.0
        if anchor:
            distance = anchor.distance(method.backbone, calls)
            losses["anchor"] = distance.detach()
            # Its weight does not depend on the number of hard examples.
            clean = clean + divisor * anchor.weight * distance
        input_grad = None
        if learning:
            if reusing and any(target.requires_grad for target in leaves(targets)):
                # An attack treats the targets as constant.
                aim = objective(method, predictions, detach(targets))
            clean, input_grad = differentiate(clean, method, inputs, aim)
        predictions, targets, inputs = detach(predictions), detach(targets), detach(inputs)
        terms = [clean]
        for h in hard:
            with self._norms_of(h):
                crops = select_crops(method, h, inputs)
                crops_grad = select_crops(method, h, input_grad if h in reusing else None)
                part = h.loss(method, crops, targets, rng, crops_grad)
                terms.append(differentiate(part, method)[0] if learning else part)
            losses[part_name(h)] = terms[-1].detach()
        loss = torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()
        return Outcome(loss / divisor, losses, predictions, targets)

    @contextmanager
    def _norms_of(self, hard: HardExample) -> Iterator[None]:
        """Inside, the method uses the batch norms of a hard pass.

        The running statistics of the clean pass do not change.
        """
        if hard.norm == "auxiliary":
            # pyrefly: ignore[bad-argument-type]
            with swap_batch_norms(self.method, self.norms[part_name(hard)]):
                yield
        else:
            with frozen_statistics(self.method):
                yield


def select_crops(method: Method, hard: HardExample, inputs: Tensors | None) -> Tensors | None:
    """The inputs that a hard example uses: the large crops alone, or all."""
    if inputs is not None and method.multi_crop and hard.crops == "large":
        return inputs[: method.views]
    return inputs


def differentiate(
    loss: Tensor, method: Method, inputs: Tensors = (), aim: Tensor | None = None
) -> tuple[Tensor, Tensors | None]:
    """Compute the gradients of the loss, and free its graph.

    Returns the loss with a graph of one node, which passes the gradients on to the parameters; and
    the gradient of `aim` with respect to the inputs, or None if no input requires it. If `aim` is
    the loss, one backward pass computes both. Any other aim takes a second pass over the same
    graph, to the inputs only. So peak memory is one graph and these gradients, for any number of
    hard examples. FSDP reduces gradients in `backward` only. There the graph remains, and the
    inputs' gradient takes a second pass.
    """
    points = [x for x in leaves(inputs) if x.requires_grad]
    sharded = is_sharded(method.parameters())
    if not loss.requires_grad:
        return loss, None
    slopes: Sequence[Tensor | None] = ()
    if points and aim is not None and (sharded or aim is not loss):
        slopes = torch.autograd.grad(aim, points, allow_unused=True, retain_graph=True)
    if not sharded:
        remaining = points[len(slopes) :]
        parameters = [p for p in method.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [*remaining, *parameters], allow_unused=True)
        slopes = slopes or gradients[: len(remaining)]
        pairs = [
            (p, g)
            for p, g in zip(parameters, gradients[len(remaining) :], strict=True)
            if g is not None
        ]
        loss = _PrecomputedLoss.apply(loss.detach(), [g for _, g in pairs], *(p for p, _ in pairs))
    dense_slopes = iter(
        [torch.zeros_like(x) if g is None else g for x, g in zip(points, slopes, strict=True)]
    )
    return loss, map_tensors(lambda _: next(dense_slopes), inputs) if points else None


class _PrecomputedLoss(torch.autograd.Function):
    """A loss whose gradients are computed already.

    It keeps one graph over all losses, so that DDP reduces each gradient once.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grads[0])
