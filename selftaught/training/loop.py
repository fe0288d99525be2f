"""The one training loop: a generator, so that logging, watching and saving stay outside it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

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
    """What one step did."""

    step: int  # counted from 0
    epoch: int
    loss: Tensor  # on the device: reading it synchronises
    losses: dict[str, Tensor]
    lr: float
    skipped: bool  # the gradients were not finite: nothing was learnt from this step


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long and how: what `fit` needs beside the network and the data."""

    steps: int
    steps_per_epoch: int
    schedule: Callable[[float], float]
    accumulate: int = 1  # batches a step
    clip: float = 0.0  # norm at which gradients are clipped; 0 = not at all
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
    """Train from step `start` on. `step` is a `Step` of `method`, bare or wrapped by DDP.

    `epochs(number, first)` yields the batches of an epoch from its step `first` on;
    `overview(number)` its images in other views, from which pseudo-labels are made before it
    (without it, in the same views). All randomness of a step is keyed by (seed, step, rank), so
    that a resumed run goes on exactly as the uninterrupted one.
    """
    number, skips = start, 0
    statistics = running_statistics(step)
    device = next(method.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=loop.bf16)
    while number < loop.steps:
        epoch, first = divmod(number, loop.steps_per_epoch)
        method.progress = number / loop.steps
        if first == 0:
            torch.manual_seed(key(loop.seed, "epoch", epoch))
            with autocast, frozen_statistics(method):
                method.before_epoch(overview(epoch) if overview else epochs(epoch, 0))
        batches = Prefetcher(epochs(epoch, first), device)
        for number in range(number, min((epoch + 1) * loop.steps_per_epoch, loop.steps)):  # noqa: B020
            method.progress = number / loop.steps
            # in the middle of the step: never quite 0
            lr_factor = loop.schedule((number + 0.5) / loop.steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (1.0 if group.get("steady") else lr_factor)
            torch.manual_seed(key(loop.seed, "step", number, rank()))
            # the same on every rank
            rng = torch.Generator().manual_seed(key(loop.seed, "hard", number))
            optimizer.zero_grad(set_to_none=True)
            before = [s.clone() for s in statistics]
            done = backward(
                step, list(islice(batches, loop.accumulate)), rng, autocast, batches.prepare
            )
            method.after_backward()
            norm = clipped_norm(list(step.parameters()), loop.clip)  # the same on every rank
            skips = 0 if torch.isfinite(norm) else skips + 1
            if skips:
                for seen, was in zip(statistics, before, strict=True):
                    seen.copy_(was)  # what is not finite would stay in a running mean for good
            else:
                optimizer.step()
                method.after_step(*joined(done))
            outcomes = [outcome for _, outcome in done]
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


def clipped_norm(parameters: list[nn.Parameter], clip: float) -> Tensor:
    """The gradients' norm, before they are clipped to `clip`; 0 leaves them as they are (and costs
    no pass over them).
    """
    if clip:
        return full_tensor(nn.utils.clip_grad_norm_(parameters, clip))
    return full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


Done = list[tuple[Batch, Outcome]]


def backward(
    step: nn.Module,
    batches: list[Batch],
    rng: torch.Generator,
    autocast: contextlib.AbstractContextManager[None],
    meanwhile: Callable[[], None],
) -> Done:
    """Accumulate the mean gradient of several batches; they are sent to the other processes once.

    `meanwhile` is called for each when it is on its way, and nothing has waited for it yet.
    """
    done: Done = []
    for i, batch in enumerate(batches):
        with no_sync(step, i < len(batches) - 1):
            with autocast:
                outcome = step(batch, rng)
            (outcome.loss / len(batches)).backward()
        meanwhile()
        done.append((batch, outcome))
    return done


def joined(done: Done) -> tuple[Batch, Tensors, Tensors]:
    """The batches that made one step, as one."""
    if len(done) == 1:
        return done[0][0], done[0][1].predictions, done[0][1].targets

    def cat(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    batches, outcomes = zip(*done, strict=True)
    return (
        join_batches(batches),
        zip_tensors(cat, *(o.predictions for o in outcomes)),
        zip_tensors(cat, *(o.targets for o in outcomes)),
    )


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Batches as one, in their order."""

    def cat(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    views = zip_tensors(cat, *(b.views for b in batches))
    index, label, seed = (
        torch.cat([getattr(b, name) for b in batches]) for name in ("index", "label", "seed")
    )
    extras = {name: torch.cat([b.extras[name] for b in batches]) for name in batches[0].extras}
    return Batch(views, index, label, seed, extras)


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
