"""What a method's training step costs beside the bare network: forward and backward of the very
same view passes.

    python -m benchmarks.step [--networks resnet18:32:64 resnet50:96:16] [--only moco-v2 byol]
    [--rounds 7]

A step is all that `fit` does for a batch: views already made, forward, loss, backward, optimizer,
teacher, queue, memory. The bare network is every call that the step made of its backbone and its
teacher's, replayed with the same shapes: forward, and backward where gradients were asked for.
Interleaved; prints the ratio's median [least, most] and the memory of a step on a GPU, and writes
results/step.json. `network:pixels:batch`. `simclr+pooled`: with an anchor of that kind, whose pass
counts among those of the network. A teacher of features is another network of the same kind.

With --compile: a step, compiled, beside the same step as it is (on a CPU in CPU time: give it one
thread), and how long the first two took; in results/compile_bf16.json (or _fp32).
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import format_ratio, interleaved, ratios, spread, write
from selftaught.config.defaults import defaults_for, views_for
from selftaught.hard.base import HardExample
from selftaught.method import Batch, Method, Setting, Setup, image_seeds
from selftaught.methods import METHODS
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.models import backbone as backbone_module
from selftaught.models.anchor import Anchor, AnchorLoss
from selftaught.optim import SGD, Cosine
from selftaught.training.compile import compile_backbones
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from selftaught.views.augment import Augment
from selftaught.views.spec import Views

IMAGES = 50_000  # that the method is told of: the sizes of queues and memories
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Trained:
    """A method in training, a step at a time, on one batch of views."""

    def __init__(
        self,
        name: str,
        network: str,
        size: int,
        batch: int,
        bf16: bool,
        hard: tuple[HardExample, ...] = (),
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        name, _, anchor = name.partition("+")
        kind = METHODS[name]
        self.bf16 = bf16
        stem: Any = "cifar" if size <= 40 and network.startswith("resnet") else "imagenet"
        backbone = backbone_module.create(network, stem=stem, image_size=size)
        setting = Setting(images=IMAGES, batch=batch, steps=10_000, features=backbone.features)
        own = defaults_for(kind, setting)
        teaches = issubclass(kind.Config, TeacherConfig) and kind.Config.part == "backbone"
        setup = Setup(backbone, IMAGES, 10, copy.deepcopy(backbone) if teaches else None)
        step = Step(kind(own.config, setup), hard)
        self.step = step.to(DEVICE).to(memory_format=torch.channels_last).train()
        if anchor:
            self.step.anchor = AnchorLoss(Anchor(kind=anchor), self.method.backbone)
        if compiled:
            compile_backbones(self.step, DEVICE)
        views = views_for(kind, own.views, size, Views())
        pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
        made = Augment(views, size)(pixels, torch.ones(batch), torch.Generator().manual_seed(0))
        index = torch.randperm(IMAGES)[:batch].to(DEVICE)
        label = index % 10 if kind.labels == "required" else torch.full_like(index, -1)
        self.batch = Batch(made, index, label, image_seeds(0, 0, batch).to(DEVICE))
        optimizer = SGD(lr=1e-4).build(self.step.named_parameters())
        loop = Loop(steps=10**6, steps_per_epoch=10**6, schedule=Cosine(), bf16=bf16)
        method = self.method
        method.before_epoch = lambda batches: None  # clustering an epoch is no part of a step
        self.running = fit(self.step, method, lambda number, first: self.forever(), optimizer, loop)

    @property
    def method(self) -> Method:
        return self.step.method

    def forever(self) -> Iterator[Batch]:
        while True:
            yield self.batch

    def once(self) -> None:
        next(self.running)


Call = tuple[nn.Module, tuple[int, ...], bool]  # module, shape, whether gradients are wanted


@contextmanager
def calls(module: nn.Module, into: list[Call]) -> Iterator[None]:
    """Note each call of a backbone within `module`, its teacher's among them."""

    def note(called: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        into.append((called, tuple(arguments[0].shape), torch.is_grad_enabled()))

    kept = [
        m.register_forward_pre_hook(note)
        for m in module.modules()
        if isinstance(m, backbone_module.Backbone)
    ]
    try:
        yield
    finally:
        for hook in kept:
            hook.remove()


def bare(trained: Trained) -> Callable[[], None]:
    """The same passes of the network alone."""
    result: list[Call] = []
    anchor = trained.step.anchor
    networks = nn.ModuleList([trained.step, *([anchor.start] if anchor else [])])
    with calls(networks, result):
        trained.once()
    assert result, "the method never called its backbone"
    images = [
        torch.rand(shape, device=DEVICE).contiguous(memory_format=torch.channels_last)
        for _, shape, _ in result
    ]

    def replay() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=trained.bf16):
            total: Any = 0.0
            for (module, _, grad), x in zip(result, images, strict=True):
                with torch.set_grad_enabled(grad):
                    out = module(x)
                total = total + out.float().mean() if grad else total
        total.backward()
        trained.step.zero_grad(set_to_none=True)

    return replay


def beside_compiled(made: Callable[..., Trained], rounds: int) -> dict[str, Any]:
    """A compiled step's seconds to those of the same step as it is."""
    plain, compiled = made(), made(compiled=True)
    began = time.perf_counter()
    for _ in range(2):
        compiled.once()
    first = time.perf_counter() - began
    # of a CPU that others use, too
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    times = interleaved({"plain": plain.once, "compiled": compiled.once}, rounds, clock=clock)
    return {
        "ratio": ratios(times, "compiled", "plain"),
        "seconds": spread(times["compiled"]),
        "plain": spread(times["plain"]),
        "first": first,
    }


def parsed(text: str) -> tuple[str, int, int]:
    name, size, batch = text.split(":")
    return name, int(size), int(batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=["resnet18:32:64", "resnet50:96:16"])
    parser.add_argument(
        "--only", nargs="*", default=[name for name, m in METHODS.items() if m.labels != "required"]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    for network in args.networks:
        beside = "the same not compiled" if args.compile else "its network passes alone"
        print(f"{network}, {args.precision}: a step's seconds / those of {beside}")
        for name in args.only:
            made = partial(Trained, name, *parsed(network), args.precision == "bf16")
            if args.compile:
                result.setdefault(network, {})[name] = one = beside_compiled(made, args.rounds)
                print(
                    f"  {name:24} {format_ratio(one['ratio'])}"
                    f"  {1e3 * one['seconds']['median']:8.0f} ms, first {one['first']:.0f} s"
                )
                continue
            try:
                trained = made()
                times = interleaved({"step": trained.once, "bare": bare(trained)}, args.rounds)
            except Exception as error:  # such as DenseCL's places, of which 32 pixels leave none
                print(f"  {name:24} not done: {' '.join(str(error).split())[:80]}")
                continue
            ratio = ratios(times, "step", "bare")
            result.setdefault(network, {})[name] = {
                "ratio": ratio,
                "seconds": spread(times["step"]),
            }
            print(
                f"  {name:24} {format_ratio(ratio)} "
                f" {1e3 * result[network][name]['seconds']['median']:8.0f} ms",
                flush=True,
            )
    write(f"compile_{args.precision}" if args.compile else "step", {"results": result})
