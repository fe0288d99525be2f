"""Checkpoints and weights: --init of any file, and a run that goes on from a damaged checkpoint."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from selftaught.files import DRAFT
from tests.abuse.harness import (
    DONE,
    EITHER,
    REFUSED,
    SMALL,
    Case,
    Outcome,
    Sandbox,
    assert_refused,
    carry_out,
    encoded,
    learnt,
    network,
    rows,
    two_classes,
)

pytestmark = pytest.mark.abuse

RESUME = ("pretrain", "--out", "run", "--resume", "--workers", "0")


class Owner:
    """Pickled, it asks whoever opens it to make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


class Callback:
    """As training tools pickle beside their weights."""


def not_owned(sandbox: Sandbox, outcome: Outcome) -> None:
    assert not list(sandbox.path.rglob("owned")), "the pickle's code was run"


def init(
    id: str,
    what: str,
    make: Callable[[Path], object],
    promise: str = REFUSED,
    names: Sequence[str] = ("w.",),
    *,
    file: str = "w.pth",
    right: str = "",
    words: Sequence[str] = (),
) -> Case:
    def prepare(sandbox: Sandbox) -> None:
        two_classes(sandbox)
        make(sandbox / file)

    typed = words or (
        "pretrain",
        "--data",
        "photos",
        "--init",
        file,
        "--out",
        "out",
        *SMALL,
        "--steps",
        "0",
    )
    return Case(
        id=id,
        what=what,
        prepare=prepare,
        promise=promise,
        names=names,
        words=typed,
        then=not_owned,
        right=right,
    )


def holding(content: bytes | str) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content.encode() if isinstance(content, str) else content)


def torch_file(make: Callable[[], Any]) -> Callable[[Path], object]:
    return lambda file: torch.save(make(), file)


def pickled(make: Callable[[], Any]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(pickle.dumps(make()))


def tensors(
    change: Callable[[dict[str, torch.Tensor]], object] = lambda w: None, **metadata: str
) -> Callable[[Path], object]:
    """A safetensors file of the network, with a change."""

    def make(file: Path) -> None:
        weights = network()
        change(weights)
        safetensors.torch.save_file(weights, file, metadata or None)

    return make


def changed(
    change: Callable[[dict[str, torch.Tensor]], object],
) -> Callable[[], dict[str, torch.Tensor]]:
    def make() -> dict[str, torch.Tensor]:
        weights = network()
        change(weights)
        return weights

    return make


def first(weights: dict[str, torch.Tensor]) -> str:
    return next(key for key, value in weights.items() if value.is_floating_point())


def spoil(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights[first(weights)].view(-1)[0].fill_(value)


def reshape(weights: dict[str, torch.Tensor]) -> None:
    weights[first(weights)] = weights[first(weights)][..., :1].clone()


def cut(make: Callable[[Path], object], share: float = 0.5) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        make(file)
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

    return change


def script(file: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))


def archive(file: Path) -> None:
    with tarfile.open(file, "w") as tar:
        member = tarfile.TarInfo("../../owned")
        tar.addfile(member, io.BytesIO())


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../owned", b"x")


def nested(levels: int) -> dict[str, Any]:
    result: dict[str, Any] = {"weight": torch.zeros(2)}
    for _ in range(levels):
        result = {"model": result}
    return result


def circle() -> dict[str, Any]:
    result: dict[str, Any] = {}
    result["model"] = result
    return result


def header(said: Any, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file with a header of one's own."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


OURS = {
    "name": "test_resnet",
    "stem": "imagenet",
    "mean": "[0.5, 0.5, 0.5]",
    "std": "[0.2, 0.2, 0.2]",
    "image_size": "32",
}
EVALUATE = (
    "evaluate",
    "w.safetensors",
    "--data",
    "photos",
    "--protocol",
    "knn",
    "--labels",
    "all",
    "--against",
    "random",
    "--workers",
    "0",
)

WEIGHTS = [
    init("missing", "a file that is not there", lambda file: None),
    init("empty", "an empty file", holding(b"")),
    init("text", "a text", holding("these are no weights")),
    init("random", "random bytes", holding(np.random.default_rng(0).bytes(5000))),
    init(
        "html",
        "a web page, as a failed download leaves",
        holding("<!DOCTYPE html><html>404</html>"),
    ),
    init(
        "lfs-pointer",
        "a pointer of Git LFS",
        holding("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46830571\n"),
        names=("w.pth", "lfs"),
    ),
    init("image", "a PNG", holding(encoded())),
    init("cut-off", "weights cut off in the middle", cut(torch_file(network))),
    init("cut-off-end", "weights without their last hundredth", cut(torch_file(network), 0.99)),
    init("zip", "a zip archive of something else", zipped),
    init("tar", "a tar archive", archive),
    init(
        "numpy",
        "an archive of numpy's",
        lambda file: np.savez(file.open("wb"), x=np.zeros(3)),
        file="w.npz",
    ),
    init("torchscript", "a TorchScript archive, which is code", script),
    init("code", "a pickle that asks for a program to be run", pickled(Owner)),
    init(
        "code-in-torch",
        "the same within a file of torch",
        torch_file(lambda: {"state_dict": Owner()}),
    ),
    init(
        "code-beside",
        "good weights beside a pickle that asks for a program to be run",
        torch_file(lambda: {"state_dict": network(), "args": Owner()}),
        DONE,
        right="its code is not run",
    ),
    init(
        "objects-beside",
        "good weights beside pickled objects",
        torch_file(lambda: {"state_dict": network(), "callback": Callback()}),
        DONE,
    ),
    init("list", "a list", torch_file(lambda: [1, 2, 3])),
    init("tensor", "a single tensor", torch_file(lambda: torch.zeros(3))),
    init("nothing", "an empty dict", torch_file(dict)),
    init(
        "no-tensors",
        "a dict of words",
        torch_file(lambda: {"state_dict": {"conv1.weight": "words"}}),
    ),
    init(
        "optimizer",
        "the state of an optimizer alone",
        torch_file(
            lambda: {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}}
        ),
    ),
    init("nested", "a dict within a dict, 300 times", torch_file(lambda: nested(300))),
    init("circle", "a dict that holds itself", torch_file(circle)),
    init(
        "keys-numbers",
        "tensors whose names are numbers",
        torch_file(lambda: dict(enumerate(network().values()))),
    ),
    init("other-network", "weights of another network", torch_file(lambda: network("test_vit"))),
    init(
        "missing-tensor",
        "weights with a tensor missing",
        torch_file(changed(lambda w: w.pop(first(w)))),
    ),
    init(
        "one-too-many",
        "weights with a tensor too many",
        torch_file(changed(lambda w: w.update({"stages.9.weight": torch.zeros(3)}))),
    ),
    init("other-shape", "a tensor of another shape", torch_file(changed(reshape))),
    init("nan", "weights with a number that is none", torch_file(changed(spoil(float("nan"))))),
    init("infinite", "weights with an infinite number", torch_file(changed(spoil(float("inf"))))),
    init(
        "complex",
        "complex numbers",
        torch_file(changed(lambda w: w.update({first(w): w[first(w)].to(torch.complex64)}))),
    ),
    init(
        "sparse",
        "a sparse tensor",
        torch_file(changed(lambda w: w.update({first(w): w[first(w)].to_sparse()}))),
        EITHER,
    ),
    init(
        "half",
        "half precision",
        torch_file(
            lambda: {k: v.half() if v.is_floating_point() else v for k, v in network().items()}
        ),
        DONE,
    ),
    init(
        "double",
        "double precision",
        torch_file(
            lambda: {k: v.double() if v.is_floating_point() else v for k, v in network().items()}
        ),
        DONE,
    ),
    init(
        "ema-alone",
        "averaged weights alone, under state_dict_ema",
        torch_file(lambda: {"epoch": 3, "state_dict_ema": network()}),
        EITHER,
        names=("state_dict_ema",),
    ),
    init(
        "wrapped",
        "weights wrapped by DataParallel within a model",
        torch_file(
            lambda: {
                "model": {
                    **{f"encoder.module.{k}": v for k, v in network().items()},
                    "head.weight": torch.zeros(2, 2),
                }
            }
        ),
        DONE,
    ),
    init("fifo", "a named pipe", os.mkfifo),
    init(
        "folder",
        "a folder without a run",
        lambda file: file.mkdir(),
        names=("run",),
        file="w.folder",
    ),
    init("link-loop", "a link to itself", lambda file: file.symlink_to(file.name)),
    init("device", "/dev/zero", lambda file: file.symlink_to("/dev/zero")),
    init("safetensors-empty", "an empty .safetensors", holding(b""), file="w.safetensors"),
    init("safetensors-cut-off", "a .safetensors cut off", cut(tensors()), file="w.safetensors"),
    init(
        "safetensors-text",
        "a text called .safetensors",
        holding("these are no weights"),
        file="w.safetensors",
    ),
    init(
        "safetensors-long-header",
        "a .safetensors whose header claims 2^60 bytes",
        holding(header({}, 2**60)),
        file="w.safetensors",
    ),
    init(
        "safetensors-no-json",
        "a .safetensors whose header is no JSON",
        holding(header(b"{{{{")),
        file="w.safetensors",
    ),
    init(
        "safetensors-list",
        "a .safetensors whose header is a list",
        holding(header([1])),
        file="w.safetensors",
    ),
    init(
        "safetensors-outside",
        "a .safetensors with a tensor beyond its end",
        holding(
            header({"x": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 324]}}, data=b"1234")
        ),
        file="w.safetensors",
    ),
    init(
        "safetensors-nan",
        "a .safetensors with a number that is none",
        tensors(spoil(float("nan"))),
        file="w.safetensors",
    ),
    init("safetensors-pth", "a .safetensors called .pth", tensors(), EITHER),
    init(
        "pth-safetensors",
        "a .pth called .safetensors",
        torch_file(network),
        EITHER,
        file="w.safetensors",
    ),
    init(
        "says-other",
        "a file of ours that says resnet18",
        tensors(**{**OURS, "name": "resnet18"}),
        file="w.safetensors",
    ),
    init(
        "says-none",
        "a file of ours that says a network that is none",
        tensors(**{**OURS, "name": "nonet"}),
        file="w.safetensors",
        words=EVALUATE,
    ),
    init(
        "mean-words",
        "a file of ours whose mean is words",
        tensors(**{**OURS, "mean": "grey"}),
        file="w.safetensors",
    ),
    init(
        "std-zero",
        "a file of ours whose deviation is 0",
        tensors(**{**OURS, "std": "[0, 0, 0]"}),
        file="w.safetensors",
    ),
    init(
        "std-nan",
        "a file of ours whose deviation is no number",
        tensors(**{**OURS, "std": "[NaN, NaN, NaN]"}),
        file="w.safetensors",
    ),
    init(
        "size-words",
        "a file of ours whose size is a word",
        tensors(**{**OURS, "image_size": "big"}),
        EITHER,
        file="w.safetensors",
    ),
    init(
        "evaluate-foreign",
        "`evaluate` of weights that do not say their network",
        torch_file(network),
        words=("evaluate", "w.pth", *EVALUATE[2:]),
    ),
    init(
        "evaluate-against",
        "`evaluate --against` a text",
        lambda file: (tensors(**OURS)(file), file.with_name("x.pth").write_text("words")),
        file="w.safetensors",
        words=(*EVALUATE[:-4], "--against", "x.pth", "--workers", "0"),
        names=("x.pth",),
    ),
]


@pytest.mark.parametrize("case", rows(WEIGHTS))
def test_weights_are_taken_or_refused(case: Case, sandbox: Sandbox) -> None:
    carry_out(case, sandbox)


def locked_weights(sandbox: Sandbox) -> None:
    two_classes(sandbox)
    torch.save(network(), sandbox / "w.pth")
    (sandbox / "w.pth").chmod(0)


UNKIND = [
    Case(
        id="init-unreadable",
        what="weights without the permission to read them",
        prepare=locked_weights,
        permissions=True,
        promise=REFUSED,
        names=("w.pth",),
        words=(
            "pretrain",
            "--data",
            "photos",
            "--init",
            "w.pth",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "0",
        ),
    )
]


@pytest.mark.parametrize("case", rows(UNKIND))
def test_weights_that_cannot_be_read(case: Case, sandbox: Sandbox) -> None:
    carry_out(case, sandbox)


def test_the_hub_that_cannot_be_reached(trained: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named weights of timm's without a network."""
    import timm.models._builder as builder

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Max retries exceeded")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", fail)
    monkeypatch.setattr(builder, "load_custom_from_hf", fail)
    words = (
        "pretrain",
        "--data",
        "photos",
        "--init",
        "test_resnet.r160_in1k",
        "--out",
        "out",
        *SMALL,
        "--steps",
        "0",
    )
    assert_refused(trained.run(*words), "test_resnet.r160_in1k")


# ------------------------------------------------------------------------------------------- to go
# on from


def checkpoint(
    id: str,
    what: str,
    change: Callable[[Path], object],
    promise: str = EITHER,
    names: Sequence[str] = ("last.pt",),
) -> Case:
    """A run that was killed after its second of four steps, whose last checkpoint is another now:
    named, or done without.
    """

    def prepare(sandbox: Sandbox) -> None:
        written = json.loads((sandbox / "run" / "run.json").read_text())
        sandbox.write(
            "run/run.json", json.dumps({**written, "outcome": "running", "finished": False})
        )
        last = sandbox / "run" / "checkpoints" / "last.pt"
        replaced(lambda state: {**state, "next": 2})(last)
        change(last)

    def check(sandbox: Sandbox, outcome: Outcome) -> None:
        not_owned(sandbox, outcome)
        assert learnt(sandbox / "run")

    return Case(
        id=id,
        what=what,
        prepare=prepare,
        promise=promise,
        words=RESUME,
        names=names,
        then=check,
        writes=("run",),
    )


def replaced(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        torch.save(change(state), file)

    return make


def turned_into_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def no_folder(file: Path) -> None:
    for other in file.parent.iterdir():
        other.unlink()
    file.parent.rmdir()
    file.parent.write_bytes(b"")


def all_gone(file: Path) -> None:
    for other in file.parent.iterdir():
        other.unlink()


def drafts(file: Path) -> None:
    file.with_name(f".last.pt{DRAFT}abc123").write_bytes(b"half a checkpoint")
    file.parent.with_name(f".run.json{DRAFT}abc123").write_bytes(b"{")


def no_numbers(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, float("nan")) if value.is_floating_point() else value


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {k: v for k, v in state.items() if k != key}


CHECKPOINTS = [
    checkpoint(
        "last-cut-off", "a last.pt cut off", lambda file: file.write_bytes(file.read_bytes()[:1000])
    ),
    checkpoint(
        "last-cut-half",
        "a last.pt cut off in the middle",
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    ),
    checkpoint("last-empty", "an empty last.pt", holding(b"")),
    checkpoint(
        "last-random", "a last.pt of random bytes", holding(np.random.default_rng(0).bytes(5000))
    ),
    checkpoint("last-text", "a last.pt of text", holding("words")),
    checkpoint("last-code", "a last.pt that asks for a program to be run", pickled(Owner)),
    checkpoint("last-list", "a last.pt that holds a list", torch_file(lambda: [1])),
    checkpoint("last-nothing", "a last.pt that holds nothing", torch_file(dict)),
    checkpoint("last-no-step", "a last.pt without its network", replaced(without("step"))),
    checkpoint(
        "last-no-optimizer", "a last.pt without its optimizer", replaced(without("optimizer"))
    ),
    checkpoint(
        "last-other-network",
        "a last.pt of another network",
        replaced(lambda state: {**state, "step": network("test_vit")}),
    ),
    checkpoint(
        "last-nan",
        "a last.pt with numbers that are none",
        replaced(
            lambda state: {
                **state,
                "step": {key: no_numbers(value) for key, value in state["step"].items()},
            }
        ),
    ),
    checkpoint(
        "last-future",
        "a last.pt of step 1,000 of 4",
        replaced(lambda state: {**state, "next": 1000}),
    ),
    checkpoint(
        "last-words",
        "a last.pt whose step is a word",
        replaced(lambda state: {**state, "next": "two"}),
    ),
    checkpoint("last-folder", "a last.pt that is a folder", turned_into_folder),
    checkpoint("last-gone", "a last.pt that is gone", lambda file: file.unlink()),
    checkpoint("all-gone", "checkpoints/ that is empty", all_gone),
    checkpoint("no-folder", "a file where checkpoints/ was", no_folder, names=("checkpoints",)),
]


@pytest.mark.parametrize("case", rows(CHECKPOINTS))
def test_a_run_goes_on_from_a_damaged_checkpoint_or_names_it(case: Case, trained: Sandbox) -> None:
    carry_out(case, trained)


OWN = [
    Case(
        id="init-last",
        what="--init of a run's own last.pt",
        words=(
            "pretrain",
            "--data",
            "photos",
            "--init",
            "run/checkpoints/last.pt",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "0",
        ),
        promise=EITHER,
        names=("backbone.safetensors",),
    ),
    Case(
        id="init-run-json",
        what="--init of a run's run.json",
        words=(
            "pretrain",
            "--data",
            "photos",
            "--init",
            "run/run.json",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "0",
        ),
        promise=DONE,
        names=("run.json",),
    ),
    Case(
        id="init-head",
        what="--init of a run's head",
        words=(
            "pretrain",
            "--data",
            "photos",
            "--init",
            "run/head.safetensors",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "0",
        ),
        promise=REFUSED,
        names=("head.safetensors",),
    ),
    Case(
        id="evaluate-last",
        what="`evaluate` of a run's own last.pt",
        words=(
            "evaluate",
            "run/checkpoints/last.pt",
            "--data",
            "photos",
            "--protocol",
            "knn",
            "--labels",
            "all",
            "--against",
            "random",
            "--workers",
            "0",
        ),
        promise=EITHER,
        names=("last.pt",),
    ),
    Case(
        id="drafts",
        what="a run with the drafts that kill -9 left",
        prepare=lambda s: drafts(s / "run" / "checkpoints" / "last.pt"),
        words=RESUME,
        right="goes on, and removes them",
        then=lambda s, o: (
            not [*(s / "run").rglob(".*abc123")] or pytest.fail("the drafts are still there")
        ),
    ),
]


@pytest.mark.parametrize("case", rows(OWN))
def test_a_run_and_its_own_files(case: Case, trained: Sandbox) -> None:
    carry_out(case, trained)
