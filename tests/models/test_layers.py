"""MLP heads, teachers, batch norms, and forward passes over views of several sizes."""

import copy

import pytest
import torch
from hypothesis import given, settings
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
from tests.laws.toys import WITH_HARD, Toy, batch, build, rng

few = settings(max_examples=25, deadline=None)


class Counting(nn.Module):
    """Records the shapes of its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return self.network(x)


# Heads


@few
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.booleans())
def test_mlp_has_the_widths_it_was_given(widths: list[int], batch_norm: bool) -> None:
    head = mlp(*widths, batch_norm=batch_norm)
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == widths[:-1]
    assert [m.out_features for m in linear] == widths[1:]
    hidden = len(widths) - 2
    assert sum(isinstance(m, nn.BatchNorm1d) for m in head) == hidden * batch_norm
    assert sum(isinstance(m, nn.ReLU) for m in head) == hidden
    assert head[-1] is linear[-1]  # its end is linear
    assert linear[-1].bias is not None
    # a batch norm has a bias of its own
    assert all((m.bias is None) == batch_norm for m in linear[:-1])
    assert head(torch.rand(3, widths[0])).shape == (3, widths[-1])


def test_mlp_normalises_before_it_rectifies() -> None:
    assert [type(m) for m in mlp(4, 3, 2)] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


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
    before = copy.deepcopy(student.state_dict())
    teacher = Teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    x = torch.rand(5, 4, requires_grad=True)
    assert not teacher(x).requires_grad
    teacher.follow(student, 0.5)
    assert all(p.grad is None for p in student.parameters())
    with torch.no_grad():
        for p in teacher.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert not {p.data_ptr() for p in teacher.parameters()} & {
        p.data_ptr() for p in student.parameters()
    }


@pytest.mark.parametrize("name", ["byol", "moco-v2"])
def test_no_loss_pulls_at_a_teacher(name: str) -> None:
    step = Step(build(name), (Adversarial(eps=8),))
    step(batch(), rng()).loss.backward()
    assert all(p.grad is None for p in step.method.teacher.parameters())


# Views


@few
@given(st.lists(st.sampled_from([7, 9, 12]), min_size=1, max_size=6), st.integers(1, 3))
def test_on_views_is_a_pass_for_each_view(sizes: list[int], n: int) -> None:
    torch.manual_seed(0)
    network = Counting(Toy(norm=False).double())
    views = tuple(torch.rand(n, 3, size, size, dtype=torch.float64) for size in sizes)
    together = on_views(network, views)
    runs = [size for i, size in enumerate(sizes) if not i or size != sizes[i - 1]]
    assert [
        shape[-1] for shape in network.shapes
    ] == runs  # one pass for those that follow each other at one size
    assert sum(shape[0] for shape in network.shapes) == n * len(sizes)
    assert len(together) == len(views)
    for output, view in zip(together, views, strict=True):
        torch.testing.assert_close(output, network(view))


# Batch norms


def test_frozen_statistics_remember_nothing() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4 * 36, momentum=None)
    )
    x = torch.rand(6, 3, 8, 8, generator=rng())
    twin = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())
    with frozen_statistics(network):
        inside = network(x)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(inside, twin(x))  # the batch's own statistics, as always in training
    network(x)
    # they remember again
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in network.state_dict().items())


def test_frozen_synchronised_norms_restore_their_statistics() -> None:
    """Without running statistics the CUDA kernel of SyncBatchNorm refuses bfloat16."""
    norm = nn.SyncBatchNorm(3)
    before, running_mean = copy.deepcopy(norm.state_dict()), norm.running_mean
    x = torch.rand(6, 3, generator=rng())
    with frozen_statistics(norm):
        assert norm.track_running_stats
        inside = norm(x)
        assert not torch.equal(norm.running_mean, before["running_mean"])
    assert norm.running_mean is running_mean
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    assert torch.equal(inside, norm(x))


def test_frozen_statistics_leave_other_norms_alone() -> None:
    """Norms in evaluation mode use running statistics; norms without any stay without."""
    used, bare = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3, track_running_stats=False)
    used.running_mean.fill_(5.0)
    x = torch.rand(4, 3, generator=rng())
    outside = used(x)
    with frozen_statistics(nn.ModuleList([used, bare])):
        assert torch.equal(used(x), outside)
        bare(x)
    assert used.track_running_stats
    assert not bare.track_running_stats


def test_frozen_statistics_thaw_after_an_error() -> None:
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ZeroDivisionError), frozen_statistics(norm):
        raise ZeroDivisionError
    assert norm.track_running_stats


@pytest.mark.parametrize("name", METHODS)
def test_each_batch_norm_outside_a_teacher_is_met_once(name: str) -> None:
    method = build(name)
    met = [norm for _, _, norm in batch_norms(method)]
    teachers = {m for t in method.modules() if isinstance(t, Teacher) for m in t.modules()}
    expected = {
        m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    } - teachers
    assert set(met) == expected
    assert len(met) == len(expected)


def places(network: nn.Module) -> list[nn.Module]:
    return list(network.modules())


def test_swapped_norms_stand_in_and_go() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3)))
    before = places(network)
    others = nn.ModuleList(copy.deepcopy(norm) for _, _, norm in batch_norms(network))
    with swap_batch_norms(network, others):
        assert network[1] is others[0]
        assert network[2][0] is others[1]
        assert list(network._modules) == ["0", "1", "2"]  # in their places
    assert places(network) == before
    with pytest.raises(ZeroDivisionError), swap_batch_norms(network, others):
        raise ZeroDivisionError
    assert places(network) == before


def test_swapped_norms_go_also_where_there_are_too_few() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    before = places(network)
    with (
        pytest.raises(ValueError, match="shorter"),
        swap_batch_norms(network, nn.ModuleList([nn.BatchNorm1d(3)])),
    ):
        pass
    assert places(network) == before


# The second set of norms, for hard examples


@pytest.mark.parametrize("name", WITH_HARD)
@pytest.mark.parametrize(
    "hard", [Adversarial(eps=8, norm="auxiliary"), CutMix(norm="auxiliary")], ids=["attack", "mix"]
)
def test_hard_passes_go_through_the_second_set(name: str, hard: HardExample) -> None:
    plain, step = Step(build(name)), Step(build(name), (hard,))
    begun = copy.deepcopy(step.norms.state_dict())
    plain(batch(), rng())
    outcome = step(batch(), rng())
    for (k, mine), theirs in zip(
        plain.method.state_dict().items(), step.method.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), k  # the main statistics are those of clean images
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
