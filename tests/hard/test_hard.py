"""Hard examples as they are made: exact areas, partners, radii, crops of several sizes, and how
losses combine.
"""

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selftaught.hard import Adversarial, CutMix, MixUp
from selftaught.hard.base import HardExample, objective
from selftaught.hard.mixed import partner, spread
from selftaught.method import Batch, Method, Tensors, detach, map_tensors
from selftaught.training.step import Step
from tests.formulas import data64
from tests.laws.toys import batch, build, rng

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)
sides = st.integers(1, 37)
kinds = pytest.mark.parametrize("kind", [CutMix, MixUp])


def with_small(dtype: torch.dtype = torch.float32) -> Batch:
    """Two large views and three small ones."""
    large, *small = (batch(seed=s, dtype=dtype, size=16 if s == 1 else 9) for s in (1, 2, 3))
    views = (*large.views, *small[0].views, small[1].views[0])
    return dataclasses.replace(large, views=views)


# Cut-mixed


@few
@given(sides, sides, seeds)
def test_the_share_is_the_exact_area_that_is_kept(height: int, width: int, seed: int) -> None:
    white, black = torch.ones(1, 3, height, width), torch.zeros(1, 3, height, width)
    mixed, share = CutMix().mix(torch.cat([white, black]), rng(seed))
    kept = mixed[0, 0] == 1
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert share == kept.sum().item() / (height * width)
    assert torch.equal(mixed[1], 1 - mixed[0])  # the partner keeps the same rectangle
    assert torch.equal(mixed[0], kept.expand(3, -1, -1).float())
    rows, columns = (~kept).any(1).nonzero()[:, 0], (~kept).any(0).nonzero()[:, 0]
    if len(rows):  # one solid rectangle
        assert not kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any()


def test_cut_out_areas_differ_from_batch_to_batch() -> None:
    source = rng()
    shares = [CutMix().mix(batch(2).views[0], source)[1] for _ in range(200)]
    assert min(shares) < 0.2
    assert max(shares) > 0.95
    assert 0.55 < sum(shares) / len(shares) < 0.75  # the border cuts boxes: more than half is kept


@few
@given(st.integers(2, 40), sides, sides, seeds)
def test_the_mask_is_spread_over_other_sizes_without_blur(
    first: int, height: int, width: int, seed: int
) -> None:
    mask = CutMix().mask(rng(seed), (first, first))
    other = spread(mask, torch.zeros(2, 3, height, width))
    assert other.shape == (height, width)
    assert set(other.unique().tolist()) <= {0.0, 1.0}
    assert abs(other.mean().item() - mask.mean().item()) <= 2 * (1 / first + 1 / height + 1 / width)


# Mixed up, and partners


@few
@given(st.integers(1, 6), sides, sides, seeds)
def test_mixup_is_the_weighted_average(n: int, height: int, width: int, seed: int) -> None:
    x = torch.rand(n, 3, height, width, generator=rng(seed), dtype=torch.float64)
    mixed, share = MixUp().mix(x, rng(seed))
    assert 0 <= share <= 1
    torch.testing.assert_close(mixed, share * x + (1 - share) * partner(x))


@kinds
def test_alpha_is_the_betas(kind: type[MixUp] | type[CutMix]) -> None:
    """A large one mixes by halves, a small one hardly at all: or wholly."""
    source = rng()
    halves, ends = (
        torch.tensor([kind(alpha=alpha).share(source) for _ in range(200)])
        for alpha in (100.0, 0.05)
    )
    assert abs(halves.mean() - 0.5) < 0.02
    assert halves.std() < 0.06
    assert ((ends < 0.1) | (ends > 0.9)).float().mean() > 0.8


@few
@given(st.integers(1, 33))
def test_neighbours_are_partners_and_nobody_is_its_own(n: int) -> None:
    with_whom = partner(torch.arange(n)).tolist()
    for i, j in enumerate(with_whom):
        assert abs(i - j) == (n > 1)
        assert with_whom[j] == i or i == n - 1  # both ways, but for an odd one out


def test_pairs_stay_together_in_halves_of_a_batch() -> None:
    x = torch.arange(8)
    assert torch.equal(partner(x), torch.cat([partner(part) for part in x.chunk(2)]))


@pytest.mark.parametrize("name", ["supervised", "moco-v2", "byol", "swav", "deepcluster-v2"])
@kinds
def test_pseudo_labels_are_mixed_as_the_images_are(
    name: str, kind: type[MixUp] | type[CutMix]
) -> None:
    method = build(name, norm=False, dtype=torch.float64)
    inputs = method.inputs(data64())
    targets = detach(method.targets(data64(), method.predict(inputs)))
    mixed, share = kind().mix(inputs, rng(3))
    predictions = method.predict(mixed)
    own = method.loss(predictions, targets)
    other = method.loss(predictions, map_tensors(lambda t: t[[1, 0, 3, 2, 5, 4, 7, 6]], targets))
    expected = share * own + (1 - share) * other
    torch.testing.assert_close(kind().loss(method, inputs, targets, rng(3), None), expected)


# Adversarial


@few
@given(st.floats(0.1, 64), st.integers(0, 3), seeds)
def test_a_random_start_stays_in_the_ball(eps: float, steps: int, seed: int) -> None:
    method, data = build("supervised"), batch(4, seed=seed)
    x = method.inputs(data).round(decimals=1)  # with values at the very ends of the range
    torch.manual_seed(seed)
    hard = Adversarial(eps=eps, steps=steps, random_start=1.0)
    moved = hard.attack(method, x, data.label, rng(seed))
    assert (moved - x).abs().max() <= eps / 255 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not torch.equal(moved, x)


def test_a_random_start_is_drawn_by_its_probability() -> None:
    method, data = build("supervised"), batch(4)
    hard, source = Adversarial(eps=8, steps=0, random_start=0.3), rng()
    x = method.inputs(data)
    began = [not torch.equal(hard.attack(method, x, data.label, source), x) for _ in range(200)]
    assert 0.2 < sum(began) / 200 < 0.4


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("random_start", [0.0, 1.0])
def test_a_radius_of_nothing_leaves_a_view_as_it_is(steps: int, random_start: float) -> None:
    method = build("simclr")
    inputs = method.inputs(batch())
    targets = detach(method.targets(batch(), method.predict(inputs)))
    hard = Adversarial(eps=0, steps=steps, random_start=random_start)
    for x, moved in zip(inputs, hard.attack(method, inputs, targets, rng()), strict=True):
        assert torch.equal(x, moved)


def test_one_step_is_the_fast_gradient_sign() -> None:
    """Goodfellow et al., 2015: x + eps * sign(gradient), where the range does not cut it."""
    method, data = build("supervised", norm=False, dtype=torch.float64), data64()
    x = (0.25 + data.views[0] / 2).requires_grad_()
    [gradient] = torch.autograd.grad(method.loss(method.predict(x), data.label), [x])
    moved = Adversarial(eps=4).attack(method, x.detach(), data.label, rng())
    torch.testing.assert_close(moved, x.detach() + 4 / 255 * gradient.sign())


# Crops of several sizes


@pytest.mark.parametrize("name", ["swav", "deepcluster-v2"])
@pytest.mark.parametrize(
    "kind", [Adversarial(eps=8), Adversarial(eps=8, random_start=1.0), CutMix(), MixUp()], ids=str
)
@pytest.mark.parametrize("crops", ["large", "all"])
def test_hard_examples_are_made_of_the_crops_they_ask_for(
    name: str, kind: HardExample, crops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = dataclasses.replace(kind, crops=crops)
    step, data, seen = Step(build(name, norm=False), (hard,)), with_small(), []
    method = step.method
    predict = method.predict

    def spy(inputs: tuple[Tensor, ...]) -> Tensors:
        seen.append([x.shape[-1] for x in inputs])
        return predict(inputs)

    monkeypatch.setattr(method, "predict", spy)
    torch.manual_seed(0)
    outcome = step(data, rng())
    target = [16, 16, 9, 9, 9] if crops == "all" else [16, 16]
    assert seen[0] == [16, 16, 9, 9, 9]
    assert len(seen) > 1
    assert all(sizes == target for sizes in seen[1:])
    attack = isinstance(hard, Adversarial)
    if not getattr(hard, "random_start", 0) and not (attack and crops == "large"):
        # else the input_grad is the whole clean loss's
        inputs = method.inputs(data)[: len(target)]
        alone = hard.loss(method, inputs, outcome.targets, rng(), None)
        torch.testing.assert_close(outcome.parts[type(hard).__name__.lower()], alone)
    outcome.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in step.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["swav", "deepcluster-v2"])
def test_an_attack_on_large_crops_raises_their_loss(name: str) -> None:
    step = Step(build(name, norm=False, dtype=torch.float64), (Adversarial(eps=8),))
    outcome = step(with_small(torch.float64), rng())
    large = objective(step.method, outcome.predictions[:2], outcome.targets)
    assert outcome.parts["adversarial"] > large


# When, and how much


@dataclass(frozen=True, kw_only=True)
class Fixed(HardExample):
    """A loss that is known, and counted."""

    value: float = 3.0

    def loss(self, method: Method, *others: Any) -> Tensor:
        assert others[-1] is None  # the gradient of the inputs
        return self.value * next(method.parameters()).sum() * 0 + self.value


class Other(Fixed):
    """One more."""


@dataclass(frozen=True, kw_only=True)
class Never(HardExample):
    """Must not be asked."""

    reuses_gradient = True

    def loss(self, *_: Any) -> Tensor:
        raise AssertionError("computed, though it has no weight, or before its start")


@pytest.mark.parametrize(
    "never", [Never(weight=0.0), Never(start=0.6)], ids=["no weight", "too early"]
)
def test_what_does_not_count_is_not_computed(never: Never) -> None:
    torch.manual_seed(0)
    step = Step(build("simclr"), (never,))
    outcome = step(batch(), rng())
    assert set(outcome.parts) == {"clean"}
    assert torch.equal(outcome.loss, Step(build("simclr"))(batch(), rng()).loss)
    step.method.progress = 0.6
    with pytest.raises(AssertionError, match="before its start") if never.weight else nullcontext():
        step(batch(), rng())


@few
@given(st.floats(0.01, 9), st.floats(0.01, 9), st.booleans())
def test_losses_combine_to_a_weighted_mean_or_sum(one: float, two: float, as_sum: bool) -> None:
    hard = (Fixed(weight=one), Other(weight=two, value=5.0), Never(weight=0.0))
    step = Step(build("supervised", norm=False), hard, "sum" if as_sum else "mean")
    outcome = step(batch(), rng())
    clean = outcome.parts.pop("clean")
    # unweighted, and without their graph
    assert {k: v.item() for k, v in outcome.parts.items()} == {"fixed": 3.0, "other": 5.0}
    assert not any(v.requires_grad for v in (clean, *outcome.parts.values()))
    assert outcome.loss.requires_grad
    total = clean + one * 3 + two * 5
    torch.testing.assert_close(outcome.loss, total if as_sum else total / (1 + one + two))


def test_an_attack_on_auxiliary_norms_has_their_gradient() -> None:
    """It took the clean pass's, which went through the other norms."""
    attack = Adversarial(eps=8, norm="auxiliary")
    step = Step(build("moco-v2"), (attack,))
    for p in step.norms.parameters():
        torch.nn.init.uniform_(p, -2, 2)
    result = step(batch(), rng()).parts["adversarial"]
    method, inputs = step.method, step.method.inputs(batch())
    targets = detach(method.targets(batch(), method.predict(inputs)))
    with step._norms_of(attack):
        torch.testing.assert_close(result, attack.loss(method, inputs, targets, rng(), None))
