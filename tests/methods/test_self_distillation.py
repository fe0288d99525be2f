"""DINO, iBOT and DINOv2: each against its paper, in plain loops; masks, schedules and parts."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from selftaught.errors import UserError
from selftaught.hard import CutMix, MixUp
from selftaught.hard.mixed import partner
from selftaught.losses import koleo, sinkhorn
from selftaught.method import Batch, Encoder, Setting, Setup, detach, leaves
from selftaught.methods import METHODS
from selftaught.methods.parts.masked_distillation import MaskedDistillation
from selftaught.methods.parts.patch_masks import (
    draw_masks,
    masked_places,
    most_masked,
    patch_shares,
)
from selftaught.methods.parts.prototype_distillation import PrototypeDistillation
from selftaught.methods.parts.prototypes import PrototypeHead
from selftaught.optim import OPTIMIZERS, Optimizer
from tests.formulas import (
    Rows,
    answer,
    close,
    data64,
    double,
    drifted,
    loss_of,
    multi_crop,
    normal,
    plain_sinkhorn,
)
from tests.laws.toys import IMAGES, Toy, batch, config, rng

NAMES = ["dino", "ibot", "dinov2"]
MASKED = ["ibot", "dinov2"]


# The papers' formulas, sample by sample


def plain_softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(x / temperature) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def plain_cross(target: list[float], logits: list[float], temperature: float) -> float:
    guess = plain_softmax(logits, temperature)
    return -sum(t * math.log(g) for t, g in zip(target, guess, strict=True))


def plain_dino(targets: list[Rows], students: list[Rows], temperature: float) -> float:
    """Caron et al., 2021, equation 3: targets of the large views, and logits of all views."""
    terms = [
        [plain_cross(p, s, temperature) for p, s in zip(target, student, strict=True)]
        for t, target in enumerate(targets)
        for v, student in enumerate(students)
        if v != t
    ]
    return sum(sum(term) / len(term) for term in terms) / len(terms)


def plain_centered(outputs: Rows, center: list[float], temperature: float) -> Rows:
    return [
        plain_softmax([x - c for x, c in zip(row, center, strict=True)], temperature)
        for row in outputs
    ]


def plain_koleo(rows: Rows) -> float:
    """Oquab et al., 2023, section 4: of features of unit norm."""
    units = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    nearest = [
        min(math.dist(a, b) for j, b in enumerate(units) if i != j) for i, a in enumerate(units)
    ]
    return -sum(map(math.log, nearest)) / len(rows)


def teacher_temperature(method: PrototypeDistillation) -> float:
    c = method.config
    share = min(method.progress / c.temperature_warmup, 1)
    return c.start_temperature * (1 - share) + c.teacher_temperature * share


@pytest.mark.parametrize("small", [0, 2])
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.9])
def test_dino_is_its_formula(small: int, progress: float) -> None:
    """Over three steps, after which the center is the paper's running mean."""
    method = double("dino", center_momentum=0.7)
    drifted(method.network)
    method.progress = progress
    tau, center = teacher_temperature(method), [0.0] * 6
    for step in range(3):
        data = multi_crop(6, small, seed=step)
        outputs = [method.teacher(v).tolist() for v in data.views[:2]]
        students = [method.network(v).tolist() for v in data.views]
        predictions, targets = answer(method, data)
        expected = plain_dino([plain_centered(o, center, tau) for o in outputs], students, 0.1)
        close(method.loss(predictions, targets), expected)
        method.after_step(data, detach(predictions), targets)
        columns = zip(*outputs[0], *outputs[1], strict=True)
        center = [0.7 * c + 0.3 * sum(x) / 12 for c, x in zip(center, columns, strict=True)]
    # the same but for one number, which changes no softmax
    difference = method.centering.center - torch.tensor(center, dtype=torch.float64)
    close(difference - difference.mean(), torch.zeros(6))


def test_dino_balances_both_large_views_at_once() -> None:
    method, data = double("dino", centering="sinkhorn", iterations=2), multi_crop(6, 2)
    drifted(method.network)
    outputs = torch.cat([method.teacher(v) for v in data.views[:2]]).tolist()
    balanced = plain_sinkhorn(outputs, 0.07, 2)
    students = [method.network(v).tolist() for v in data.views]
    expected = plain_dino([balanced[:6], balanced[6:]], students, 0.1)
    close(loss_of(method, data), expected)


def hidden(method: MaskedDistillation, data: Batch) -> tuple[list[int], list[list[int]]]:
    """The masked view of each image, and its masked patches."""
    one, other = method.draw_masks(data)
    views = [int(mask.any()) for mask in other]
    return views, [mask.nonzero()[:, 0].tolist() for mask in one | other]


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("small", [0, 2])
def test_masked_methods_are_their_formulas(name: str, small: int) -> None:
    """One image at a time, and one patch at a time."""
    method, data = double(name), multi_crop(6, small)
    drifted(method.network)
    with torch.no_grad():
        method.network.mask_token.weight += 0.3
        method.centering.center += normal(6, seed=1) / 10
        method.patch_centering.center += normal(6, seed=2) / 10
    net, teacher = method.network, method.teacher.network
    logits, features, guesses, outputs, codes = [[], []], [], [], [[], []], []
    for i, (masked_view, patches) in enumerate(zip(*hidden(method, data), strict=True)):
        for v in (0, 1):
            pixels = data.views[v][i : i + 1]
            mask = torch.zeros(1, 16, dtype=torch.bool)
            mask[0, patches] = masked_view == v
            feature, tokens = net.backbone.tokens(pixels, mask, net.mask_token.weight[0])
            logits[v].append(net.head(feature)[0].tolist())
            of_teacher, tokens_of_teacher = teacher.backbone.tokens(pixels)
            outputs[v].append(teacher.head(of_teacher)[0].tolist())
            if v == 0:
                features.append(feature[0].tolist())
            if masked_view == v:
                guesses.append(net.patch_head(tokens[0, patches]).tolist())
                codes += teacher.patch_head(tokens_of_teacher[0, patches]).tolist()
    students = logits + [net.head(net.backbone(v)).tolist() for v in data.views[2:]]
    if name == "ibot":
        targets = [plain_centered(o, method.centering.center.tolist(), 0.07) for o in outputs]
        codes = plain_centered(codes, method.patch_centering.center.tolist(), 0.07)
    else:
        balanced = plain_sinkhorn(outputs[0] + outputs[1], 0.07, 3)
        targets, codes = [balanced[:6], balanced[6:]], plain_sinkhorn(codes, 0.07, 3)
    expected = plain_dino(targets, students, 0.1)
    for guess in guesses:
        own, codes = codes[: len(guess)], codes[len(guess) :]
        terms = [plain_cross(t, g, 0.1) for t, g in zip(own, guess, strict=True)]
        expected += sum(terms) / len(terms) / 6
    if name == "dinov2":
        expected += 0.1 * plain_koleo(features)
    close(loss_of(method, data), expected, 1e-6)


def test_the_center_of_patches_is_the_mean_of_masked_ones() -> None:
    method, data = double("ibot", center_momentum=0.7), data64(6)
    predictions, targets = detach(answer(method, data))
    teacher, rows = method.teacher.network, []
    for i, (v, patches) in enumerate(zip(*hidden(method, data), strict=True)):
        tokens = teacher.backbone.tokens(data.views[v][i : i + 1])[1]
        rows.append(teacher.patch_head(tokens[0, patches]))
    method.after_step(data, predictions, targets)
    expected = 0.3 * torch.cat(rows).detach().mean(0)
    close(method.patch_centering.center, expected - expected.mean())


def test_koleo_is_its_formula() -> None:
    x, same = normal(7, 5, seed=0).requires_grad_(), torch.ones(4, 5, requires_grad=True)
    close(koleo(x), plain_koleo(x.tolist()), 1e-6)
    assert torch.autograd.gradcheck(koleo, x)
    assert koleo(normal(1, 5, seed=0)) == 0
    (slope,) = torch.autograd.grad(koleo(same), same)
    assert torch.isfinite(slope).all()


def test_samples_that_are_not_valid_have_no_part_in_the_balance() -> None:
    scores, valid = normal(9, 4, seed=0), torch.arange(9) % 3 > 0
    result = sinkhorn(scores, 0.3, 3, valid.double())
    close(result[valid], sinkhorn(scores[valid], 0.3, 3))
    assert (result[~valid] == 0).all()
    assert (sinkhorn(scores, 0.3, 3, torch.zeros(9)) == 0).all()


# Masks


@pytest.mark.parametrize(("grid", "n"), [((4, 4), 8), ((16, 16), 7), ((1, 1), 2), ((2, 3), 1)])
def test_masks_hide_the_right_share_of_one_view(grid: tuple[int, int], n: int) -> None:
    one, other = draw_masks(batch(n), grid, 0.1, 0.5)
    count = (one | other).sum(1)
    assert (one.any(1) != other.any(1)).all()
    assert 1 <= count.min() <= count.max() <= most_masked(grid[0] * grid[1], 0.1, 0.5)
    # of CutMix and MixUp
    assert torch.equal(one, partner(one))
    assert torch.equal(other, partner(other))


def test_masks_are_blocks_and_differ() -> None:
    masks = [a | b for s in range(8) for a, b in [draw_masks(batch(64, s), (14, 14), 0.1, 0.5)]]
    mask = torch.cat(masks).view(-1, 14, 14)
    assert mask.flatten(1).unique(dim=0).shape[0] > 200
    assert 0.27 < mask.float().mean() < 0.33
    beside = (mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask[:, :, 1:].sum()
    assert beside > 0.7  # of random patches it would be about the share
    assert mask.float().mean(0).std() < 0.1  # no place is preferred by much


def test_masked_places_are_the_masked_patches() -> None:
    masks = draw_masks(batch(10), (5, 5), 0.1, 0.6)
    most = most_masked(25, 0.1, 0.6)
    view, patches, weight = masked_places(masks, most)
    assert patches.shape == weight.shape == (10, most)
    for i in range(10):
        own = masks[int(view[i])][i]
        assert sorted(patches[i][weight[i] > 0].tolist()) == own.nonzero()[:, 0].tolist()
        assert len(set(patches[i].tolist())) == most


@pytest.mark.parametrize("name", MASKED)
def test_what_is_masked_has_no_influence(name: str) -> None:
    method, data = double(name), data64(6)
    inputs = method.inputs(data)
    changed, seen = [], []
    for view, mask in inputs:
        pixels = F.interpolate(mask.value.view(-1, 1, 4, 4).double(), size=16) > 0
        other = torch.rand_like(view)
        changed.append((torch.where(pixels, other, view), mask))
        seen.append((torch.where(pixels, view, other), mask))
    before, same, after = (leaves(method.predict(tuple(x))) for x in (inputs, changed, seen))
    for x, y, z in zip(before, same, after, strict=True):
        assert torch.equal(x, y)
        assert not torch.allclose(x, z)


# Hard examples


@pytest.mark.parametrize("kind", [CutMix, MixUp])
def test_a_patch_of_a_mixed_image_has_the_shares_of_its_own_pixels(kind: type[CutMix]) -> None:
    method = double("ibot")
    own = answer(method, data64(6))[1]
    swap = torch.arange(6) ^ 1
    other = (tuple(t[swap] for t in own[0]), *(t[swap] for t in own[1:]))
    mask = kind().mask(rng(3), (16, 16))
    views, patches, numbers, weight = method.mix_targets(own, other, mask)
    assert torch.equal(numbers, own[2])
    assert torch.equal(weight, own[3])
    share = float(mask.mean())
    close(views[0].exp(), share * own[0][0].exp() + (1 - share) * other[0][0].exp())
    shares = mask.expand(16, 16).unflatten(0, (4, 4)).unflatten(2, (4, 4)).mean((1, 3)).flatten()
    share = shares[numbers][..., None]
    close(patches.exp(), share * own[1].exp() + (1 - share) * other[1].exp())
    assert patch_shares(torch.ones(1, 1), numbers, (4, 4)).eq(1).all()


# Schedules and parts


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_waits_for_the_heads(name: str, kind: type[Optimizer]) -> None:
    method = double(name, head_warmup=0.4, freeze_last=0.2)
    groups = method.parameter_groups()
    optimizer = kind(lr=0.1, weight_decay=0.1).build(method.named_parameters(), groups)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    head = next(m for m in method.network.modules() if isinstance(m, PrototypeHead))
    watched = [next(method.backbone.parameters()), head.prototypes.weight, head.mlp[0].weight]
    for progress, moved in ((0.1, [0, 0, 1]), (0.3, [0, 1, 1]), (0.5, [1, 1, 1])):
        method.progress = progress
        before = [p.detach().clone() for p in watched]
        optimizer.zero_grad(set_to_none=True)
        loss_of(method, data64(6)).backward()
        method.after_backward()
        optimizer.step()
        assert [not torch.equal(p, q) for p, q in zip(watched, before, strict=True)] == moved


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_exist_wait_for_new_heads_and_move_slowly(name: str) -> None:
    new, old = (
        METHODS[name]
        .Config()
        .defaults(Setting(images=10_000, batch=64, steps=400, features=384, pretrained=begun))
        for begun in (False, True)
    )
    assert new.config.head_warmup == 0 < old.config.head_warmup
    assert old.lr < new.lr
    assert old.config.head_lr > new.config.head_lr == 1
    assert new.config.prototypes == 500
    assert new.optimizer == "adamw"


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_is_judged_and_begins_from_the_same_weights(name: str) -> None:
    method, data = double(name), data64(6)
    judged = method.judged()
    assert isinstance(judged, Encoder)
    assert judged is not method.backbone
    for own, theirs in zip(judged.parameters(), method.backbone.parameters(), strict=True):
        assert torch.equal(own, theirs)
    drifted(method.network)
    predictions, targets = detach(answer(method, data))
    before = next(judged.parameters()).clone()
    method.after_step(data, predictions, targets)
    assert not torch.equal(before, next(method.judged().parameters()))


def test_a_head_can_be_copied_and_its_prototypes_have_unit_norm() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(5, 7, 3, 4)
    x = torch.randn(6, 5)
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    before = head(x)
    with torch.no_grad():
        head.prototypes.weight *= 3
    torch.testing.assert_close(head(x), before)
    assert before.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(("name", "heads"), [("ibot", 1), ("dinov2", 2)])
def test_heads_are_shared_or_separate(name: str, heads: int) -> None:
    method = double(name)
    result = {m for m in method.network.modules() if isinstance(m, PrototypeHead)}
    assert len(result) == heads


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_patches_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match="--backbone") if name in MASKED else nullcontext() as error:
        METHODS[name](config(name), Setup(Toy(norm=True), IMAGES))
    assert error is None or "\n" not in str(error.value)
