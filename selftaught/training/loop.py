"""The training loop: a generator, so logging, monitoring and saving are outside of it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.distributed import full_tensor, no_sync, rank
from selftaught.errors import Diverged
from selftaught.method import Batch, Method, Tensors, zip_tensors
from selftaught.models.batch_norm import frozen_statistics, running_statistics
from selftaught.seeding import key
from selftaught.training.prefetch import Prefetcher
from selftaught.training.step import Outcome

MOST_SKIPS = 10  # steps in a row whose gradients are not finite, before training stops


@dataclass(frozen=True)
class Report:
    """The result of one step."""

    step: int  # counted from 0
    epoch: int
    loss: Tensor  # scalar on the device, so reading it synchronises
    losses: dict[str, Tensor]
    lr: float
    skipped: bool  # the gradients were not finite, so the weights were not updated


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The settings of `fit`."""

    steps: int
    steps_per_epoch: int
    schedule: Callable[[float], float]
    accumulate: int = 1  # batches in a step
    clip: float = 0.0  # maximum norm of the gradients; 0 turns clipping off
    bf16: bool = False
    seed: int = 0


def fit(
    step: nn.Module,
    method: Method,
    epochs: Callable[[int, int], Iterable[Batch]],
    optimizer: torch.optim.Optimizer,
    loop: Loop,
    start: int = 0,
    overview: Callable[[int], Iterable[Batch]] | None = None,
) -> Iterator[Report]:
    """Train from step `start` on; yield a report after each step.

    `step` is a `Step` of `method`, possibly wrapped by DDP. `epochs(number, first)` yields the
    batches of an epoch from its step `first` on. `overview(number)` yields the same images in
    other views; the method makes pseudo-labels of them before the epoch. Without `overview` it
    takes the batches of the epoch. The random numbers of a step depend on (seed, step, rank) only,
    so a resumed run equals an uninterrupted one. Raises Diverged after MOST_SKIPS skipped steps in
    a row.
    """
    number, skips = start, 0
    statistics = running_statistics(step)
    device = next(method.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=loop.bf16)
    while number < loop.steps:
        epoch, first = divmod(number, loop.steps_per_epoch)
        method.progress = number / loop.steps
        if first == 0:
            _seed(device, key(loop.seed, "epoch", epoch))
            with autocast, frozen_statistics(method):
                method.before_epoch(overview(epoch) if overview else epochs(epoch, 0))
        batches = Prefetcher(epochs(epoch, first), device)
        for number in range(number, min((epoch + 1) * loop.steps_per_epoch, loop.steps)):  # noqa: B020
            method.progress = number / loop.steps
            # The middle of the step, so that the learning rate is never 0.
            lr_factor = loop.schedule((number + 0.5) / loop.steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (1.0 if group.get("steady") else lr_factor)
            _seed(device, key(loop.seed, "step", number, rank()))
            # Every rank draws the same numbers.
            rng = torch.Generator().manual_seed(key(loop.seed, "hard", number))
            optimizer.zero_grad(set_to_none=True)
            before = [s.clone() for s in statistics]
            parts = list(islice(batches, loop.accumulate))
            results = backward(step, parts, rng, autocast, batches.prepare)
            method.after_backward()
            norm = clip_gradients(list(step.parameters()), loop.clip)  # equal on every rank
            skips = 0 if torch.isfinite(norm) else skips + 1
            if skips:
                for statistic, old in zip(statistics, before, strict=True):
                    statistic.copy_(old)  # a running mean would stay NaN
            else:
                optimizer.step()
                method.after_step(*join_results(results))
            outcomes = [outcome for _, outcome in results]
            losses = {k: mean([o.parts[k] for o in outcomes]) for k in outcomes[0].parts}
            loss = mean([o.loss.detach() for o in outcomes])
            yield Report(number, epoch, loss, losses, optimizer.param_groups[0]["lr"], bool(skips))
            if skips >= MOST_SKIPS:
                peak = optimizer.param_groups[0]["peak"]
                raise Diverged(
                    f"the loss has not been finite for {skips} steps (at step {number}): the"
                    f" learning rate is too high (peak {peak:g}); try --optimizer.lr {peak / 10:g}"
                )
        number += 1


def clip_gradients(parameters: list[nn.Parameter], clip: float) -> Tensor:
    """Clip the gradients to the norm `clip`, unless it is 0; return their norm before."""
    if clip:
        return full_tensor(nn.utils.clip_grad_norm_(parameters, clip))
    return full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


Results = list[tuple[Batch, Outcome]]


def _seed(device: torch.device, seed: int) -> None:
    """Seed what torch draws on a device. `torch.manual_seed` formats a traceback for each kind of
    device that is absent, which takes half as long as a small network's step.
    """
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)


def backward(
    step: nn.Module,
    batches: list[Batch],
    rng: torch.Generator,
    autocast: contextlib.AbstractContextManager[Any],
    meanwhile: Callable[[], None],
) -> Results:
    """Accumulate the mean gradient of several batches; the processes exchange gradients once.

    `meanwhile` is called after each backward pass, while the device still computes it.
    """
    results: Results = []
    for i, batch in enumerate(batches):
        with no_sync(step, i < len(batches) - 1):
            with autocast:
                outcome = step(batch, rng)
            loss = outcome.loss / len(batches)
            # Gradients tell every rank whether to skip the step, and those of an absolute value are
            # finite where the loss is not.
            loss.backward(torch.where(loss.isfinite(), 1.0, torch.nan).to(loss))
        meanwhile()
        results.append((batch, outcome))
    return results


def join_results(results: Results) -> tuple[Batch, Tensors, Tensors]:
    """Join the batches of one step: (batch, predictions, targets)."""
    if len(results) == 1:
        batch, outcome = results[0]
        return batch, outcome.predictions, outcome.targets

    def cat(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    batches, outcomes = zip(*results, strict=True)
    return (
        join_batches(batches),
        zip_tensors(cat, *(o.predictions for o in outcomes)),
        zip_tensors(cat, *(o.targets for o in outcomes)),
    )


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Join batches into one, in their order."""

    def cat(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    views = zip_tensors(cat, *(b.views for b in batches))
    index, label, seed = (
        torch.cat([getattr(b, name) for b in batches]) for name in ("index", "label", "seed")
    )
    extras = {name: torch.cat([b.extras[name] for b in batches]) for name in batches[0].extras}
    return Batch(views, index, label, seed, extras)


def mean(values: list[Tensor]) -> Tensor:
    """The mean of scalar tensors."""
    return torch.stack(values).mean()
