"""Batches made ahead on a GPU: the same ones, in order, each waited for and its memory kept; told
by a stand-in for one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.method import Batch
from selftaught.training import loop, prefetch, session
from selftaught.training.prefetch import Prefetcher, idle
from tests.commands import argv
from tests.fixtures import Patch
from tests.laws.toys import batch
from tests.pictures import folder
from tests.stopping import stopped_at

GPU = torch.device("cuda", 0)


class Streams:
    """Stands in for torch.cuda, and notes what is asked of it."""

    def __init__(self) -> None:
        self.main, self.now = "main", "main"
        self.told: list[Any] = []
        self.busy = False

    def Stream(self, device: torch.device) -> "Side":
        self.told.append("stream")
        return Side(self, "side")

    @contextmanager
    def stream(self, stream: "Side") -> Iterator[None]:
        before, self.now = self.now, stream.name
        yield
        self.now = before

    def current_stream(self, device: torch.device) -> "Side":
        return Side(self, self.now)

    def default_stream(self, device: torch.device) -> "Side":
        return Side(self, "main")

    def Event(self, enable_timing: bool) -> "Event":
        return Event(self)


class Side:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: "Side") -> None:
        self.streams.told.append((self.name, "waits for", other.name))


class Event:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def record(self, stream: Side) -> None:
        self.streams.told.append(("event on", stream.name))

    def query(self) -> bool:
        return not self.streams.busy

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "Event") -> float:
        return 250.0  # milliseconds


class Seen:
    """Stands in for a tensor."""

    def __init__(self, name: str, told: list[Any], device: str = "cuda") -> None:
        self.name, self.told, self.device = name, told, torch.device(device)

    def record_stream(self, stream: Side) -> None:
        self.told.append((self.name, "kept for", stream.name))


@pytest.fixture
def streams(monkeypatch: Patch) -> Iterator[Streams]:
    result = Streams()
    monkeypatch.setattr(prefetch, "streams", lambda device: result)
    prefetch.side.cache_clear()
    yield result
    prefetch.side.cache_clear()


def source(streams: Streams, n: int) -> Iterator[Batch]:
    for i in range(n):
        streams.told.append((f"batch {i} made on", streams.now))
        views: Any = (seen(streams, i, "a"), seen(streams, i, "b"))
        rest: Any = [seen(streams, i, part) for part in "cde"]
        yield Batch(views, *rest)


def seen(streams: Streams, i: int, part: str) -> Seen:
    return Seen(f"{i}{part}", streams.told, "cpu" if part == "e" else "cuda")


def used(i: int) -> list[Any]:
    """What must be told before batch `i` is used: those of its tensors that stay on the CPU have no
    stream.
    """
    return [("main", "waits for", "side"), *((f"{i}{part}", "kept for", "main") for part in "abcd")]


def test_each_batch_is_made_beside_waited_for_and_kept(streams: Streams) -> None:
    batches = Prefetcher(source(streams, 3), GPU)
    for i in range(3):
        assert next(batches).index.name == f"{i}c"
        streams.told.append(f"step {i}")
        batches.prepare()
    with pytest.raises(StopIteration):
        next(batches)
    events = [(f"batch {i} made on", "side") for i in range(3)]
    first = ["stream", events[0], *used(0), "step 0", events[1]]
    assert streams.told == [*first, *used(1), "step 1", events[2], *used(2), "step 2"]
    assert streams.now == "main"


def test_without_preparing_no_batch_is_made_before_it_is_asked_for(streams: Streams) -> None:
    batches = Prefetcher(source(streams, 3), GPU)
    for i in range(3):
        next(batches)
        assert [told for told in streams.told if "made on" in told[0]][-1] == (
            f"batch {i} made on",
            "side",
        )
    assert list(batches) == []


def test_one_stream_serves_every_epoch(streams: Streams) -> None:
    for _ in range(3):
        assert len(list(Prefetcher(source(streams, 2), GPU))) == 2
    assert streams.told.count("stream") == 1


def test_an_error_comes_in_its_turn(streams: Streams) -> None:
    def failing() -> Iterator[Batch]:
        yield batch(seed=0)
        raise UserError("nothing can be read any more")

    batches = Prefetcher(failing(), GPU)
    next(batches)
    batches.prepare()  # while the first one's step is under way, which is to come to its end
    assert streams.now == "main"
    with pytest.raises(UserError, match="read any more"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_on_a_cpu_nothing_is_made_before_it_is_asked_for() -> None:
    events = []

    def source() -> Iterator[Batch]:
        for i in range(3):
            events.append(i)
            yield batch(seed=i)

    batches = Prefetcher(source(), torch.device("cpu"))
    for i in range(3):
        assert torch.equal(next(batches).views[0], batch(seed=i).views[0])
        batches.prepare()
        assert events == list(range(i + 1))
    assert list(batches) == []


def test_waiting_counts_while_the_device_has_nothing_to_do(streams: Streams) -> None:
    with streams.stream(Side(streams, "side")):
        assert idle(GPU, lambda: "raw") == ("raw", 0.25)
        assert streams.told == [("event on", "main"), ("event on", "side")]
        streams.busy = True
        assert idle(GPU, lambda: "raw") == ("raw", 0.0)


SMALL = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --steps 7")


@pytest.mark.parametrize(
    "more", [["--workers", "2"], ["--workers", "0", "--accumulate", "2", "--views", "reference"]]
)
def test_a_run_is_the_same_bit_for_bit(
    more: list[str], streams: Streams, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Epochs of four steps; stopped in the middle of one, with a batch made that was not used
    yet.
    """
    images = folder(tmp_path / "images")
    words = argv(f"pretrain --data {images} --method byol", *SMALL, *more)
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    monkeypatch.setattr(loop, "Prefetcher", lambda batches, device: Prefetcher(batches, GPU))
    monkeypatch.setattr(session, "idle", lambda device, wait: idle(GPU, wait))
    with stopped_at(2):
        assert main([*words, "--out", str(tmp_path / "ahead")]) == 0
    assert main(["pretrain", "--out", str(tmp_path / "ahead"), "--resume", *more[:2]]) == 0
    assert ("main", "waits for", "side") in streams.told
    one, other = (
        load_file(tmp_path / name / "backbone.safetensors") for name in ("plain", "ahead")
    )
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_the_same() -> None:
    def source() -> Iterator[Batch]:
        for i in range(20):
            one = batch(64, seed=i, size=64)
            views = tuple(torch.relu(v.cuda() @ v.cuda().mT) for v in one.views)
            yield Batch(views, one.index.cuda(), one.label.cuda(), one.seed.cuda())

    device = torch.device("cuda", torch.cuda.current_device())
    batches, sums = Prefetcher(source(), device), []
    for one in batches:
        for _ in range(20):
            torch.rand(2048, 2048, device=device) @ torch.rand(2048, 2048, device=device)
        batches.prepare()
        sums.append(one.views[0].double().sum() + one.seed.double().sum())
        del one
    assert [s.item() for s in sums] == [
        (b.views[0].double().sum() + b.seed.double().sum()).item() for b in source()
    ]
