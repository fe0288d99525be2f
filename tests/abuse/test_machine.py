"""A machine that is unkind: workers that die, clocks that jump, networks that fail, two processes
on one folder.
"""

import errno
import http.server
import json
import os
import shutil
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch

from tests.abuse.harness import (
    DONE,
    EITHER,
    EVALUATE,
    REFUSED,
    SMALL,
    Case,
    Sandbox,
    assert_done,
    assert_no_harm,
    assert_refused,
    at_step,
    facts,
    filesystem,
    is_readable_checkpoint,
    learnt,
    network,
    photos,
    read_from_disk,
    rows,
    two_classes,
    wait_less,
)
from tests.abuse.processes import start

pytestmark = pytest.mark.abuse

TRAIN = (
    "pretrain",
    "--data",
    "photos",
    "--out",
    "out",
    *SMALL,
    "--steps",
    "6",
    "--save-every",
    "0",
)
RESUME = ("pretrain", "--out", "out", "--resume", "--workers", "0")


def row(id: str, what: str, promise: str, right: str = "", seconds: int = 60) -> Case:
    return Case(id=id, what=what, words=TRAIN, promise=promise, right=right, seconds=seconds)


# --------------------------------------------------------------------------------------------------
# workers


def children() -> list[int]:
    """The processes that this one has started, and that live."""
    result = []
    for task in Path("/proc/self/task").iterdir():
        result += [int(pid) for pid in (task / "children").read_text().split()]
    return [
        pid
        for pid in result
        if "forkserver" not in (name := _name(pid)) and "resource_tracker" not in name
    ]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "forkserver"


WORKERS = [
    row(
        "one-killed",
        "a worker that reads images is killed, as by the system when memory runs out",
        EITHER,
        "then --resume comes to the same end",
        120,
    ),
    row("all-killed", "all workers are killed", EITHER, "then --resume comes to the same end", 120),
    row(
        "one-terminated",
        "a worker gets SIGTERM",
        EITHER,
        "then --resume comes to the same end",
        120,
    ),
]


@pytest.mark.parametrize("case", rows(WORKERS))
def test_a_worker_that_dies(case: Case, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(sandbox)
    read_from_disk(monkeypatch)
    words = [*TRAIN[:-4], "--steps", "6", "--save-every", "0", "--workers", "2"]
    words[words.index("--workers") + 1] = "2"
    whole = [w if w != "out" else "whole" for w in words]
    assert_done(sandbox.run(*whole))
    before = set(children())

    def strike() -> None:
        workers = [pid for pid in children() if pid not in before]
        assert workers, "no worker reads images"
        for pid in workers if case.id == "all-killed" else workers[:1]:
            os.kill(pid, signal.SIGTERM if case.id == "one-terminated" else signal.SIGKILL)
        time.sleep(0.2)

    with at_step(3, strike):
        outcome = sandbox.run(*words)
    if outcome.code:
        assert_no_harm(outcome)
        assert outcome.code == 2, outcome.err
        assert_done(sandbox.run(*RESUME))
    else:
        assert_done(outcome)
    assert learnt(sandbox / "out") == learnt(sandbox / "whole")


DYING = [
    row(
        "evaluate-one-killed",
        "a worker of `evaluate` is killed",
        EITHER,
        "then the same command shows the scores",
        120,
    )
]


@pytest.mark.parametrize("case", rows(DYING))
def test_a_worker_of_an_evaluation_dies(
    case: Case, trained: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_from_disk(monkeypatch)
    struck, ended = list[int](), threading.Event()
    before = set(children())

    def strike() -> None:
        while not struck and not ended.is_set():
            for pid in children():
                if pid not in before and not struck:
                    os.kill(pid, signal.SIGKILL)
                    struck.append(pid)

    striker = threading.Thread(target=strike)
    striker.start()
    outcome = trained.run(*EVALUATE[:-1], "2", writes=("run",))
    ended.set()
    striker.join()
    assert_no_harm(outcome)
    assert outcome.code in (0, 2), outcome.err
    assert_done(trained.run(*EVALUATE, writes=("run",)))


# --------------------------------------------------------------------------------------------------
# clocks

CLOCKS: dict[str, tuple[str, Callable[[int], float]]] = {
    "backwards": ("goes backwards by an hour a look", lambda n: 1.8e9 - 3600 * n),
    "forward": ("jumps forward by ten years", lambda n: 1.8e9 + (3e8 if n > 5 else 0)),
    "back-and-forth": ("jumps back and forth by a day", lambda n: 1.8e9 + 86_400 * (-1) ** n),
    "still": ("stands still", lambda n: 1.8e9),
    "epoch": ("stands at the beginning of 1970", lambda n: 0.0),
}


@pytest.mark.parametrize(
    "case", rows([row(id, f"a clock that {what}", DONE) for id, (what, _) in CLOCKS.items()])
)
def test_a_clock_that_jumps(case: Case, trained: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, clock = list[int](), CLOCKS[case.id][1]

    def now() -> float:
        looks.append(1)
        return clock(len(looks))

    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now() * 1e9))
    assert_done(trained.run(*TRAIN))
    assert_done(trained.run(*EVALUATE, writes=("run",)))
    assert_done(trained.run("pack", "photos", "--out", "photos.pack"))
    monkeypatch.undo()


TIMES: dict[str, tuple[str, float]] = {
    "images-future": ("images of the year 2100", 4.1e9),
    "images-1970": ("images of the beginning of 1970", 0.0),
    "images-before": ("images from before 1970", -1e6),
}


@pytest.mark.parametrize("case", rows([row(id, what, DONE) for id, (what, _) in TIMES.items()]))
def test_files_of_another_time(case: Case, sandbox: Sandbox) -> None:
    two_classes(sandbox)
    when = TIMES[case.id][1]
    for file in [
        *(sandbox / "photos").rglob("*.png"),
        sandbox / "photos" / "a",
        sandbox / "photos",
    ]:
        os.utime(file, (when, when))
    assert_done(sandbox.run(*TRAIN))
    assert_done(sandbox.run(*[w if w != "out" else "second" for w in TRAIN]))


# -------------------------------------------------------------------------------------------------
# networks


class Shaky(fsspec.AbstractFileSystem):
    """A server whose calls fail by a plan: files of this machine at shaky:///path."""

    protocol = "shaky"
    cachable = False
    calls: ClassVar[int] = 0
    # an error, "short", or None
    plan: ClassVar[Callable[[int], object]] = staticmethod(lambda call: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """Paths are absolute, as those of fsspec's file systems without hosts are."""
        return "/" + super()._strip_protocol(path).lstrip("/")

    def _call(self) -> object:
        Shaky.calls += 1
        happens = Shaky.plan(Shaky.calls)
        if isinstance(happens, BaseException):
            raise happens
        return happens

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._call()
        status = os.stat(path)
        kind = "directory" if os.path.isdir(path) else "file"
        return {"name": path, "size": status.st_size, "type": kind, "mtime": status.st_mtime_ns}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self._call()
        names = [f"{path}/{name}" for name in sorted(os.listdir(path))]
        return (
            [{"name": name, "size": os.stat(name).st_size, "type": "file"} for name in names]
            if detail
            else names
        )

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        happens = self._call()
        data = Path(path).read_bytes()[start:end]
        return data[: len(data) // 2] if happens == "short" else data


@pytest.fixture
def shaky(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A pack at shaky:///.../photos.pack, and a way to train on it."""
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    wait_less(monkeypatch)
    monkeypatch.setattr(Shaky, "calls", 0)
    photos(sandbox / "photos", ("a", "b"))
    assert_done(sandbox.run("pack", "photos", "--out", "photos.pack"))
    return sandbox


def remote(sandbox: Sandbox, out: str = "out") -> tuple[str, ...]:
    return (
        "pretrain",
        "--data",
        f"shaky://{sandbox.path}/photos.pack",
        "--out",
        out,
        *SMALL,
        "--steps",
        "6",
        "--save-every",
        "0",
    )


NETWORKS: dict[str, tuple[Case, Callable[[int], object]]] = {
    case.id: (case, plan)
    for case, plan in [
        (
            row("all-time-out", "a network file system that times out always", REFUSED),
            lambda n: TimeoutError("timed out"),
        ),
        (
            row("third-times-out", "one that times out every third time", DONE),
            lambda n: TimeoutError("timed out") if n % 3 == 0 else None,
        ),
        (
            row("first-four", "one that times out four times, and then works", DONE),
            lambda n: TimeoutError("timed out") if n <= 4 else None,
        ),
        (
            row("reset", "connections that are reset every second time", DONE),
            lambda n: (
                ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
                if n % 2
                else None
            ),
        ),
        (
            row("short", "half of the bytes every third time", DONE),
            lambda n: "short" if n % 3 == 0 else None,
        ),
        (
            row("forbidden", "credentials that are wrong", REFUSED),
            lambda n: PermissionError(errno.EACCES, "Forbidden"),
        ),
        (
            row("gone", "a bucket that is not there", REFUSED),
            lambda n: FileNotFoundError("no such bucket"),
        ),
        (
            row("unknown", "an error that nobody has heard of", REFUSED),
            lambda n: RuntimeError("what\nis\nthis"),
        ),
        (
            row("stale", "a stale handle of NFS", REFUSED),
            lambda n: OSError(errno.ESTALE, "Stale file handle"),
        ),
    ]
}


@pytest.mark.parametrize("case", rows([case for case, _ in NETWORKS.values()]))
def test_a_network_that_fails(case: Case, shaky: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shaky, "plan", staticmethod(NETWORKS[case.id][1]))
    outcome = shaky.run(*remote(shaky))
    if case.promise == REFUSED:
        assert_refused(outcome, "shaky://")
        monkeypatch.setattr(Shaky, "plan", staticmethod(lambda n: None))
        assert_done(shaky.run(*remote(shaky)))
    else:
        assert_done(outcome)
        assert facts(shaky)["images"] == 16
    if case.id == "forbidden":
        assert Shaky.calls < 100


BREAKS = [
    row(
        "breaks-in-training",
        "a network that is gone in the middle of training",
        EITHER,
        "then --resume comes to the same end",
        120,
    )
]


@pytest.mark.parametrize("case", rows(BREAKS))
def test_a_network_that_is_gone_in_training(
    case: Case, shaky: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_from_disk(monkeypatch)
    assert_done(shaky.run(*remote(shaky, "whole")))
    down = list[bool]()
    monkeypatch.setattr(
        Shaky, "plan", staticmethod(lambda n: TimeoutError("timed out") if down else None)
    )
    with at_step(3, lambda: down.append(True)):
        outcome = shaky.run(*remote(shaky))
    assert_no_harm(outcome)
    assert outcome.code in (0, 2), outcome.err
    down.clear()
    assert_done(shaky.run(*RESUME))
    assert learnt(shaky / "out") == learnt(shaky / "whole")


class Silent(http.server.BaseHTTPRequestHandler):
    """Takes what is asked, and never answers."""

    def do_GET(self) -> None:
        time.sleep(20)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


class Odd(Silent):
    """Answers everything with a page of an error that calls itself good, as of a hotel's
    network.
    """

    def do_GET(self) -> None:
        page = b"<!DOCTYPE html><html>please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET


class Failing(Silent):
    def do_GET(self) -> None:
        self.send_error(503)

    do_HEAD = do_GET


@contextmanager
def served(kind: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/photos.pack"
    finally:
        server.shutdown()
        server.server_close()


SERVERS: dict[str, tuple[str, type[http.server.BaseHTTPRequestHandler]]] = {
    "silent": ("a web server that never answers", Silent),
    "login-page": ("a web server that answers everything with a page to log in", Odd),
    "unavailable": ("a web server that is overloaded (503)", Failing),
}


@pytest.mark.parametrize(
    "case", rows([row(f"http-{id}", what, REFUSED) for id, (what, _) in SERVERS.items()])
)
def test_a_web_server_that_fails(
    case: Case, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_less(monkeypatch)
    monkeypatch.setattr(filesystem, "_TIMEOUT", 0.5)
    with served(SERVERS[case.id.removeprefix("http-")][1]) as url:
        assert_refused(sandbox.run("pretrain", "--data", url, "--out", "out", *SMALL), "127.0.0.1")


# ---------------------------------------------------------------------------------------- disks
# that go away


def dead_disk(monkeypatch: pytest.MonkeyPatch, dies: list[bool], number: int = errno.EIO) -> None:
    """Images below photos/ cannot be opened once `dies` holds something."""
    real = os.open

    def opened(path: Any, *more: Any, **options: Any) -> int:
        if dies and "photos" in os.fspath(path) and str(path).endswith(".png"):
            raise OSError(number, os.strerror(number), path)
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", opened)


DISKS = [
    row(
        "disk-dies",
        "the images' disk dies in the middle of training",
        EITHER,
        "then --resume comes to the same end",
    ),
    row(
        "nfs-stale",
        "the images' NFS goes stale in the middle of training",
        EITHER,
        "then --resume comes to the same end",
    ),
]


@pytest.mark.parametrize("case", rows(DISKS))
def test_a_disk_that_dies(case: Case, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(sandbox)
    read_from_disk(monkeypatch)
    assert_done(sandbox.run(*[w if w != "out" else "whole" for w in TRAIN]))
    dies = list[bool]()
    dead_disk(monkeypatch, dies, errno.ESTALE if case.id == "nfs-stale" else errno.EIO)
    with at_step(3, lambda: dies.append(True)):
        outcome = sandbox.run(*TRAIN)
    assert_refused(outcome)
    dies.clear()
    assert_done(sandbox.run(*RESUME))
    assert learnt(sandbox / "out") == learnt(sandbox / "whole")


GONE = [
    row(
        "images-deleted",
        "all images are deleted in the middle of training",
        REFUSED,
        "the run is kept",
    ),
    row("image-deleted", "one image is deleted in the middle of training", EITHER, "it is named"),
    row(
        "image-replaced",
        "one image is overwritten with text in the middle of training",
        EITHER,
        "it is named",
    ),
]


@pytest.mark.parametrize("case", rows(GONE))
def test_images_that_go_away(case: Case, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(sandbox / "photos", ("a", "b"), 16)
    read_from_disk(monkeypatch)

    def strike() -> None:
        if case.id == "images-deleted":
            shutil.rmtree(sandbox / "photos")
        elif case.id == "image-deleted":
            (sandbox / "photos/a/003.png").unlink()
        else:
            (sandbox / "photos/a/003.png").write_text("words")

    with at_step(2, strike):
        outcome = sandbox.run(*TRAIN[:-4], "--steps", "12", "--save-every", "0", writes=("photos",))
    rest = [name for name in outcome.lost if name.partition("/")[0] != "photos"]
    outcome = replace(outcome, lost=tuple(rest))  # the images are gone, as they should be
    assert_no_harm(outcome)
    if case.id == "images-deleted":
        assert_refused(outcome)
        assert is_readable_checkpoint(sandbox / "out" / "checkpoints" / "last.pt")
    else:
        assert outcome.code in (0, 2), outcome.err
        assert "003.png" in outcome.err + (sandbox / "out" / "run.json").read_text()


# ---------------------------------------------------------------------------------------- two of
# them at once

LONG = (*TRAIN[:-4], "--steps", "100000", "--save-every", "0")


def steps_written(sandbox: Sandbox, out: str = "out") -> list[int]:
    return [
        json.loads(line)["step"]
        for line in (sandbox / out / "journal.jsonl").read_text().splitlines()
    ]


TWO = [
    row(
        "two-begin",
        "two `pretrain` begin in one --out at the same time",
        EITHER,
        "one trains, the other waits or is refused",
        180,
    ),
    row(
        "two-resume",
        "two --resume of one run at the same time",
        EITHER,
        "one trains, the other waits or is refused",
        180,
    ),
    row(
        "resume-while-running",
        "--resume of a run that runs",
        EITHER,
        "it waits or is refused; the first run is not disturbed",
        180,
    ),
    row("two-caches", "two `pretrain` fill one empty cache at the same time", DONE, "", 180),
    row(
        "two-adapt",
        "two `adapt` in one --out at the same time",
        DONE,
        "every stage is trained once",
        180,
    ),
    row("two-pack", "two `pack` into one --out at the same time", DONE, "one pack, whole", 180),
    row(
        "two-evaluate",
        "two `evaluate` of one run at the same time",
        DONE,
        "both results are kept",
        180,
    ),
    row(
        "look-while-running",
        "`show`, `report` and `evaluate` of a run that runs",
        EITHER,
        "the run is not disturbed",
        180,
    ),
]


@pytest.mark.parametrize("case", rows(TWO[:3]))
def test_two_trainings_in_one_folder(case: Case, sandbox: Sandbox) -> None:
    two_classes(sandbox)
    words: tuple[str, ...] = (*TRAIN[:-4], "--steps", "12", "--save-every", "0")
    if case.id == "two-begin":
        pair = [start(sandbox, *words), start(sandbox, *words)]
        ended = [running.wait() for running in pair]
    elif case.id == "two-resume":
        first = start(sandbox, *LONG)
        first.wait_for(sandbox / "out" / "checkpoints" / "last.pt")
        first.signal(signal.SIGTERM)
        assert first.wait().code == 0
        pair = [start(sandbox, *RESUME), start(sandbox, *RESUME)]
        until = time.monotonic() + 60
        while not any("images/s" in running.said for running in pair):
            assert time.monotonic() < until, "neither goes on"
            time.sleep(0.1)
        for running in pair:
            running.signal(signal.SIGTERM)
        ended = [running.wait() for running in pair]
    else:
        first = start(sandbox, *LONG)
        first.wait_for(sandbox / "out" / "checkpoints" / "last.pt")
        second = start(sandbox, *RESUME)
        time.sleep(5)
        second.signal(signal.SIGTERM)
        first.signal(signal.SIGTERM)
        ended = [first.wait(), second.wait()]
        assert ended[0].code == 0
    for outcome in ended:
        assert "Traceback" not in outcome.err
        assert outcome.code in (0, 2, -signal.SIGTERM), outcome.err
    assert 0 in [outcome.code for outcome in ended]
    trained = [
        outcome
        for outcome in ended
        if any(f"step {k} of" in outcome.err.replace(",", "") for k in range(1, 100_000, 1))
        and "images/s" in outcome.err
    ]
    assert len(trained) <= 1, "both trained the same run"
    steps = steps_written(sandbox)
    assert steps == sorted(set(steps)), "two wrote into one journal"
    assert is_readable_checkpoint(sandbox / "out" / "checkpoints" / "last.pt")


@pytest.mark.parametrize("case", rows(TWO[3:4]))
def test_two_trainings_of_one_cache(case: Case, sandbox: Sandbox) -> None:
    two_classes(sandbox)
    pair = [
        start(sandbox, *[w if w != "out" else name for w in TRAIN]) for name in ("first", "second")
    ]
    for running in pair:
        outcome = running.wait(writes=("first", "second"))
        assert_done(outcome)
    assert learnt(sandbox / "first") == learnt(sandbox / "second")


@pytest.mark.parametrize("case", rows(TWO[4:7]))
def test_two_of_a_kind(case: Case, trained: Sandbox) -> None:
    torch.save(network(), trained / "w.pth")
    words = {
        "two-adapt": (
            "adapt",
            "--init",
            "w.pth",
            "--target",
            "photos",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "6",
        ),
        "two-pack": ("pack", "photos", "--out", "out"),
        "two-evaluate": EVALUATE,
    }[case.id]
    pair = [start(trained, *words), start(trained, *words)]
    for running in pair:
        assert_done(running.wait(writes=("run",)))
    if case.id == "two-pack":
        assert_done(trained.run("pack", "--verify", "out"))
    elif case.id == "two-evaluate":
        written = json.loads((trained / "run" / "evaluation.json").read_text())
        assert len(written) == 2
        assert written[0]["rows"] == written[1]["rows"]
    else:
        (place,) = (trained / "out" / "stages").glob("*/journal.jsonl")
        steps = [json.loads(line)["step"] for line in place.read_text().splitlines()]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("case", rows(TWO[7:]))
def test_looking_at_a_run_that_runs(case: Case, sandbox: Sandbox) -> None:
    two_classes(sandbox)
    running = start(sandbox, *LONG)
    running.wait_for(sandbox / "out" / "checkpoints" / "last.pt")
    looks = [
        ("show", "out"),
        ("report", "out", "--out", "page.html"),
        ("export", "out", "--to", "x.pth"),
        ("evaluate", "out", *EVALUATE[2:]),
    ]
    for words in looks:
        outcome = sandbox.run(*words, writes=("out",))
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.code in (0, 2), outcome.err
    assert not running.ended, running.said
    running.signal(signal.SIGTERM)
    assert running.wait(writes=("page.html", "x.pth")).code == 0
    assert is_readable_checkpoint(sandbox / "out" / "checkpoints" / "last.pt")
