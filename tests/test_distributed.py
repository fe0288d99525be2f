"""Synchronised batch norm, and waiting for rank 0."""

import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught import distributed
from selftaught.distributed import synchronise_norms
from selftaught.method import Setup
from selftaught.methods.contrastive.simclr import SimCLR
from selftaught.models import backbone as backbone_module
from selftaught.training.step import Step
from tests.laws.toys import build
from tests.several import spawned


def test_synchronised_norms_keep_the_activations_of_a_backbone_held_twice() -> None:
    """The second visit took timm's synchronised norms for plain ones, and their activations
    away.
    """
    backbone = backbone_module.create("test_efficientnet", image_size=32)
    method = SimCLR(SimCLR.Config(hidden=16, dim=8), Setup(backbone, 64))
    step, pixels = Step(method).eval(), torch.rand(2, 3, 32, 32)
    names = set(step.state_dict())
    with torch.no_grad():
        before = backbone(pixels)
        synchronise_norms(step, torch.device("cuda"))
        torch.testing.assert_close(backbone(pixels), before)
    plain = [
        m
        for m in step.modules()
        if isinstance(m, _BatchNorm) and not isinstance(m, torch.nn.SyncBatchNorm)
    ]
    assert not plain
    assert set(step.state_dict()) == names


def test_norms_stay_apart_where_keys_are_dealt_to_other_company() -> None:
    """Synchronised ones gave query and key one batch's statistics: what dealing is to prevent."""
    for name in ("moco-v2", "densecl", "pcl", "infomin", "simclr"):
        step = Step(build(name, norm=True))
        synchronise_norms(step, torch.device("cuda"))
        synced = [m for m in step.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
        assert bool(synced) == (name == "simclr")


def measure_wait() -> float:
    """With collectives that may take two seconds, once all have joined, while rank 0 takes four."""
    dist.barrier()
    two = timedelta(seconds=2)
    getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)(two)
    dist.distributed_c10d._get_default_store().set_timeout(two)
    began = time.perf_counter()
    if dist.get_rank() == 0:
        time.sleep(4)
    distributed.wait_for_rank0()
    return time.perf_counter() - began


def test_others_wait_for_rank_0_as_long_as_it_takes(tmp_path: Path) -> None:
    """While it looks through a large set, or waits for another job; ten minutes were the end of
    that.
    """
    assert min(spawned(measure_wait, tmp_path)) > 2.5
