"""MLP heads, teachers, batch norms, and forward passes over views of several sizes."""

import copy
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from selftaught.hard import Adversarial, CutMix
from selftaught.hard.base import HardExample
from selftaught.methods import METHODS
from selftaught.models.batch_norm import batch_norms, frozen_statistics, swap_batch_norms
from selftaught.models.layers import Normalize, mlp, on_views
from selftaught.models.teacher import Teacher
from selftaught.optim import SGD
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import few
from tests.laws.toys import WITH_HARD, Toy, batch, build, rng


class Counting(nn.Module):
    """Records the shapes of its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return self.network(x)


def copied(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


# Heads


@few
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.booleans())
def test_mlp_has_the_widths_it_was_given(widths: list[int], batch_norm: bool) -> None:
    head = mlp(*widths, batch_norm=batch_norm)
    between = [nn.Linear, nn.BatchNorm1d, nn.ReLU] if batch_norm else [nn.Linear, nn.ReLU]
    assert [type(m) for m in head] == between * (len(widths) - 2) + [nn.Linear]
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == widths[:-1]
    assert [m.out_features for m in linear] == widths[1:]
    assert linear[-1].bias is not None
    # a batch norm has a bias of its own
    assert all((m.bias is None) == batch_norm for m in linear[:-1])


def test_normalize_gives_unit_length_at_full_precision() -> None:
    x = 100 * torch.randn(5, 16, generator=rng())
    torch.testing.assert_close(Normalize()(x).norm(dim=1), torch.ones(5))
    half = Normalize()(x.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(5))
    assert Normalize()(x.double()).dtype == torch.float64


# Teachers


@few
@given(st.floats(0, 1), st.integers(0, 2**31))
def test_a_teacher_is_a_moving_average(momentum: float, seed: int) -> None:
    torch.manual_seed(seed)
    student = mlp(4, 3, 2).double()
    teacher = Teacher(student)
    expected = [p.detach().clone() for p in student.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        teacher.follow(student, momentum)
        expected = [
            momentum * t + (1 - momentum) * s.detach()
            for t, s in zip(expected, student.parameters(), strict=True)
        ]
    for t, e in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(t, e)


def test_a_teacher_takes_no_gradient_and_shares_nothing() -> None:
    student = mlp(4, 3, 2)
    before, teacher = copied(student), Teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not teacher(torch.rand(5, 4, requires_grad=True)).requires_grad
    teacher.follow(student, 0.5)
    assert all(p.grad is None for p in student.parameters())
    with torch.no_grad():
        for p in teacher.parameters():
            p.zero_()
    assert same(before, student.state_dict())


# Views


@few
@given(st.lists(st.sampled_from([7, 9, 12]), min_size=1, max_size=6), st.integers(1, 3))
def test_on_views_is_a_pass_for_each_view(sizes: list[int], n: int) -> None:
    torch.manual_seed(0)
    network = Counting(Toy(norm=False).double())
    views = tuple(torch.rand(n, 3, size, size, dtype=torch.float64) for size in sizes)
    together = on_views(network, views)
    # one pass for those that follow each other at one size
    runs = [(size, n * len(list(group))) for size, group in groupby(sizes)]
    assert [(shape[-1], shape[0]) for shape in network.shapes] == runs
    assert len(together) == len(views)
    for output, view in zip(together, views, strict=True):
        torch.testing.assert_close(output, network(view))


# Batch norms


def test_frozen_statistics_remember_nothing() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4 * 36, momentum=None)
    )
    x, twin, before = (
        torch.rand(6, 3, 8, 8, generator=rng()),
        copy.deepcopy(network),
        copied(network),
    )
    with frozen_statistics(network):
        inside = network(x)
    assert same(before, network.state_dict())
    assert torch.equal(inside, twin(x))  # the batch's own statistics, as always in training
    network(x)
    assert same(network.state_dict(), twin.state_dict())  # they remember again


def test_frozen_synchronised_norms_restore_their_statistics() -> None:
    """Without running statistics the CUDA kernel of SyncBatchNorm refuses bfloat16."""
    norm, x = nn.SyncBatchNorm(3), torch.rand(6, 3, generator=rng())
    before, running_mean = copied(norm), norm.running_mean
    with frozen_statistics(norm):
        assert norm.track_running_stats
        inside = norm(x)
        assert not torch.equal(norm.running_mean, before["running_mean"])
    assert norm.running_mean is running_mean
    assert same(before, norm.state_dict())
    assert torch.equal(inside, norm(x))


def test_frozen_statistics_leave_other_norms_alone() -> None:
    """Norms in evaluation mode use running statistics; norms without any stay without."""
    used, bare = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3, track_running_stats=False)
    used.running_mean.fill_(5.0)
    x = torch.rand(4, 3, generator=rng())
    outside = used(x)
    both = nn.ModuleList([used, bare])
    with frozen_statistics(both):
        assert torch.equal(used(x), outside)
        bare(x)
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ZeroDivisionError), frozen_statistics(norm):
        raise ZeroDivisionError
    assert norm.track_running_stats
    assert used.track_running_stats
    assert not bare.track_running_stats


@pytest.mark.parametrize("name", METHODS)
def test_each_batch_norm_outside_a_teacher_is_met_once(name: str) -> None:
    method = build(name)
    teachers = {m for t in method.modules() if isinstance(t, Teacher) for m in t.modules()}
    norms = {m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    met = [norm for _, _, norm in batch_norms(method)]
    assert set(met) == norms - teachers
    assert len(met) == len(set(met))


def test_swapped_norms_stand_in_and_go() -> None:
    """Also after an error, and where there are too few of them."""
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3)))
    before = list(network.modules())
    others = nn.ModuleList(copy.deepcopy(norm) for _, _, norm in batch_norms(network))
    with swap_batch_norms(network, others):
        assert network[1] is others[0]
        assert network[2][0] is others[1]
        assert others[0].training
        assert list(network._modules) == ["0", "1", "2"]  # in their places
    assert list(network.modules()) == before
    network[1].eval()  # a norm that keeps its statistics has a stand-in that does
    with swap_batch_norms(network, others.train()):
        assert [norm.training for norm in others] == [False, True]
    with pytest.raises(ZeroDivisionError), swap_batch_norms(network, others):
        raise ZeroDivisionError
    assert list(network.modules()) == before
    with pytest.raises(ValueError, match="shorter"), swap_batch_norms(network, others[:1]):
        pass
    assert list(network.modules()) == before


# The second set of norms, for hard examples


@pytest.mark.parametrize("name", WITH_HARD)
@pytest.mark.parametrize(
    "hard", [Adversarial(eps=8, norm="auxiliary"), CutMix(norm="auxiliary")], ids=["attack", "mix"]
)
def test_hard_passes_go_through_the_second_set(name: str, hard: HardExample) -> None:
    plain, step = Step(build(name)), Step(build(name), (hard,))
    begun = copied(step.norms)
    plain(batch(), rng())
    outcome = step(batch(), rng())
    # the main statistics are those of clean images
    assert same(plain.method.state_dict(), step.method.state_dict())
    outcome.loss.backward()
    assert len(list(step.norms.parameters())) > 0
    for k, p in step.norms.named_parameters():
        assert p.grad is not None, k  # DDP waits for each of them
        assert p.grad.any(), k
    after = step.norms.state_dict()
    assert all(not torch.equal(after[k], begun[k]) for k in after if "running" in k)
    [(_, second)] = step.norms.items()
    assert [type(n) for n in second] == [type(n) for _, _, n in batch_norms(step.method)]


def test_the_second_set_learns_and_decays_like_the_first() -> None:
    step = Step(build("simclr"), (CutMix(norm="auxiliary"),))
    begun = copy.deepcopy(dict(step.norms.named_parameters()))
    optimizer = SGD(lr=0.1).build(step.named_parameters())
    decays, _ = optimizer.param_groups
    assert not {id(p) for p in step.norms.parameters()} & {id(p) for p in decays["params"]}
    loop = Loop(steps=2, steps_per_epoch=2, schedule=lambda p: 1.0)
    list(fit(step, step.method, lambda e, f: [batch()] * 2, optimizer, loop))
    assert all(not torch.equal(p, begun[k]) for k, p in step.norms.named_parameters())
