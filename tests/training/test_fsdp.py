"""Networks that several processes share out: training, checkpoints of every kind, and
evaluation.
"""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selftaught.cli.main import main
from selftaught.distributed import full_tensor, wait_for_rank0
from selftaught.loggers import jsonl
from selftaught.optim import SGD, AdamW, Optimizer
from selftaught.runs import folder as run_folder
from selftaught.training import checkpoint, fsdp
from selftaught.training.step import Step
from tests.commands import argv
from tests.fixtures import Places
from tests.laws.toys import Deep, batch, build, mine, rng
from tests.pictures import folder
from tests.several import begin, kill, run_command, spawned, together

SMALL = argv("--backbone test_vit --size 32 --batch 16 --precision fp32 --workers 0")
TRAINING = [
    *argv("--method byol --hard cutmix --steps 12 --keep best --accumulate 2 --clip 1"),
    # a low rate, as rounding grows with each step; AdamW makes whole steps of gradients near zero
    *argv("--optimizer sgd --optimizer.lr 0.004"),
]


# ---------------------------------------------------------------------------------------------
# checkpoints


def trained(
    seed: int, steps: int, sharded: bool, asked: Optimizer
) -> tuple[Step, torch.optim.Optimizer]:
    step = Step(build("byol", seed=seed, norm=False, toy=Deep))
    if sharded:
        fsdp.shard(step, torch.device("cpu"))
    optimizer = asked.build(step.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    for number in range(steps):
        learn(step, optimizer, number)
    return step, optimizer


def learn(step: Step, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    step(mine(batch(8, seed=number)), rng()).loss.backward()
    optimizer.step()


def everything(step: Step, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Weights, buffers and what the optimizer remembers, brought together, in an order of their
    own.
    """
    names = {p: name for name, p in step.named_parameters()}
    moments = {names[p]: of for p, of in optimizer.state.items()}

    def whole(values: dict[str, Any]) -> dict[str, Any]:
        return {name: full_tensor(value).clone() for name, value in sorted(values.items())}

    other = ("params", "fused", "foreach")
    groups = [{k: v for k, v in g.items() if k not in other} for g in optimizer.param_groups]
    return [whole(step.state_dict()), {k: whole(v) for k, v in sorted(moments.items())}, groups]


def saved_and_restored(place: Path, plain: dict[str, Any], asked: Optimizer) -> list[Any]:
    """A trained network; another that its shards were restored into; and one that took a whole
    checkpoint, and goes on.
    """
    step, optimizer = trained(0, 2, True, asked)
    was = everything(step, optimizer)
    file = place / "last.pt"
    fsdp.save(step, optimizer, {"next": 2}, file)
    wait_for_rank0()  # until rank 0 has written it
    again = trained(1, 0, True, asked)
    fsdp.restore(*again, checkpoint.load_checkpoint(file), place)
    other = trained(1, 1, True, asked)
    # theirs lies in memory that is shared
    fsdp.restore(*other, {"step": was[0], "optimizer": copy.deepcopy(plain)}, place)
    restored = everything(*other)
    learn(*other, 2)
    return [was, everything(*again), restored]


ADAMW = pytest.param(AdamW(lr=0.01), marks=pytest.mark.slow, id="adamw")


@pytest.mark.parametrize("asked", [ADAMW, pytest.param(SGD(lr=0.01), id="sgd")])
def test_shards_and_whole_checkpoints_become_each_other(asked: Optimizer, tmp_path: Path) -> None:
    alone = trained(0, 2, False, asked)
    result = spawned(saved_and_restored, tmp_path, tmp_path, alone[1].state_dict(), asked)
    for was, again, other in result:
        torch.testing.assert_close(was, everything(*alone), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again, was, rtol=0, atol=0)
        torch.testing.assert_close(other[0], was[0], rtol=0, atol=0)
        torch.testing.assert_close(other[1:], everything(*alone)[1:], rtol=0, atol=0)
    back = trained(1, 1, False, asked)
    fsdp.restore(*back, checkpoint.load_checkpoint(tmp_path / "last.pt"), tmp_path)
    torch.testing.assert_close(everything(*back), result[0][0], rtol=0, atol=0)


def waited_and_restored(place: Path) -> float:
    """The largest difference of weights after two more steps, from a checkpoint of a time at which
    the backbone had no gradient yet.
    """

    def made(seed: int) -> tuple[Step, torch.optim.Optimizer]:
        step = Step(build("dinov2", seed=seed, norm=False, toy=Deep))
        fsdp.shard(step, torch.device("cpu"))
        optimizer = AdamW(lr=0.01).build(step.named_parameters(), step.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] = group["peak"]
        return step, optimizer

    def go(step: Step, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        step(mine(batch(8, seed=number)), rng()).loss.backward()
        for p in step.method.backbone.parameters() if number == 0 else ():
            p.grad = None
        optimizer.step()

    one, two = made(0), made(1)
    go(*one, 0)
    fsdp.save(*one, {"next": 1}, place / "last.pt")
    wait_for_rank0()
    fsdp.restore(*two, checkpoint.load_checkpoint(place / "last.pt"), place)
    for number in (1, 2):
        go(*one, number), go(*two, number)
    pairs = zip(one[0].parameters(), two[0].parameters(), strict=True)
    return max(float((full_tensor(p) - full_tensor(q)).abs().max()) for p, q in pairs)


@pytest.mark.slow
def test_shards_of_a_network_that_waits_are_restored(tmp_path: Path) -> None:
    assert spawned(waited_and_restored, tmp_path, tmp_path) == [0.0, 0.0]


# -------------------------------------------------------------------------------------------------
# as a user


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"), each=16)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "backbone.safetensors")


@pytest.fixture(scope="module")
def shared_out(images: Path, tmp_path_factory: Places) -> Path:
    out = tmp_path_factory.mktemp("shards") / "run"
    log = out.with_suffix(".log")
    words = argv(f"pretrain --data {images} --out {out} --fsdp", *TRAINING, *SMALL)
    assert run_command(log, *words) == [0, 0]
    assert "Warning" not in log.read_text()
    return out


def test_shared_out_or_not_it_is_the_same_training(
    images: Path, shared_out: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    words = ["pretrain", "--data", str(images), *TRAINING, *SMALL, "--out", str(out)]
    assert run_command(tmp_path / "log", *words) == [0, 0]
    torch.testing.assert_close(weights(shared_out), weights(out), rtol=1e-4, atol=1e-6)
    kept = [run_folder.read_run(folder).facts["choice"] for folder in (shared_out, out)]
    assert kept[0]["kept"] == kept[1]["kept"]
    assert {f.is_dir() for f in (shared_out / "checkpoints").glob("last-*")} == {True}
    assert not list((out / "checkpoints").glob("last-*"))


@pytest.mark.slow
def test_killed_while_shared_out_and_resumed_it_ends_the_same(
    images: Path, shared_out: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "parts", tmp_path / "log"
    words = ["pretrain", "--out", str(out), "--fsdp", "--workers", "0", "--save-every", "0"]
    victim = begin(log, *words, "--data", str(images), *TRAINING, *SMALL)
    while (
        victim.poll() is None and len(jsonl.read_journal(out / "journal.jsonl")) < 10
    ):  # shards are saved at every eighth step
        time.sleep(0.05)
    assert victim.poll() is None, log.read_text()
    kill(victim, out)
    assert checkpoint.load_checkpoint(out / "checkpoints" / "last.pt")["next"] == 8
    together(log, *words, "--resume")
    torch.testing.assert_close(weights(out), weights(shared_out), rtol=0, atol=0)
    # those of before are gone
    assert [f.name for f in (out / "checkpoints").glob("last-*")] == ["last-12"]


@pytest.mark.slow
def test_evaluated_by_several_processes_it_scores_the_same(
    shared_out: Path, tmp_path: Path
) -> None:
    words = ["evaluate", str(shared_out), "--labels", "all", "--json", "--workers", "0"]
    text = together(tmp_path / "log", *words)
    assert len(run_evaluations(shared_out)) == 1
    for file in (shared_out / "features").iterdir():
        file.unlink()
    assert main(words) == 0
    together_, alone = run_evaluations(shared_out)
    assert [row["mean"] for row in together_["rows"]] == pytest.approx(
        [row["mean"] for row in alone["rows"]], abs=1e-6
    )
    assert text.count('[{"backbone"') == 1


def run_evaluations(out: Path) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads((out / "evaluation.json").read_text())
    return result


def test_compiled_it_is_not_shared_out(images: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = argv(f"pretrain --data {images} --out {tmp_path}/run --steps 2", *SMALL)
    assert 0 not in run_command(log, *words, "--fsdp", "--compile")
    assert "--compile and --fsdp do not go together" in log.read_text()
