"""The sandbox of a case, what a trained run looks like, and what the page tells of each test."""

import contextlib
import os
from collections.abc import Callable, Iterator
from multiprocessing import util
from pathlib import Path

import pytest

from selftaught.visualize import snapshots
from tests.abuse.harness import SMALL, Sandbox, assert_done, copied, inside, photos

FSYNC = os.fsync  # before tests replace it

# The socket of the server that forks commands lies in this folder. Created later, it would lie in a
# sandbox: a stray file, with a path that can be too long for a socket.
util.get_temp_dir()


@pytest.fixture(scope="session", autouse=True)
def whole_runs(real_draw: Callable[..., None]) -> Iterator[None]:
    """Runs write all their files, and wait for the disk: here that is what is tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", FSYNC)
        patch.setattr(snapshots, "draw", real_draw)
        yield


@pytest.fixture
def sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Sandbox]:
    """An empty one. Its case is noted for the page."""
    with inside(tmp_path / "sandbox", monkeypatch) as box:
        case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
        if case is not None:
            group = " ".join((request.module.__doc__ or "").split("\n\n")[0].split())
            promise = f"{case.promise}{f': {case.right}' if case.right else ''}"
            box.report |= {"group": group, "id": case.id, "what": case.what, "promise": promise}
            request.node.user_properties.append(("abuse", box.report))
        yield box
        for folder, *_ in os.walk(tmp_path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o755)  # or pytest could not remove it


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on images of two classes, which lie beside it."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, inside(place, patch) as box:
        photos(place / "photos", ("a", "b"))
        words = [
            "pretrain",
            "--data",
            str(place / "photos"),
            "--out",
            "run",
            *SMALL,
            "--steps",
            "4",
            "--save-every",
            "0",
        ]
        assert_done(box.run(*words))
    return place


@pytest.fixture
def trained(sandbox: Sandbox, trained_once: Path) -> Sandbox:
    """A sandbox with `photos` and the `run` that was trained on a copy of these."""
    copied(trained_once / "photos", sandbox / "photos")
    copied(trained_once / "run", sandbox / "run")
    return sandbox
