"""Distillation of features, against its formula in plain loops."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selftaught.errors import UserError
from selftaught.hard import CutMix, MixUp
from selftaught.hard.base import objective
from selftaught.hard.mixed import partner
from selftaught.method import Method, Setup
from selftaught.methods.distillation.feature_maps import FeatureDistillation
from selftaught.methods.parts import standardize
from selftaught.methods.parts.standardize import Standardize
from selftaught.models import backbone as backbone_module
from selftaught.models.layers import resize
from tests.formulas import close, cosine, data64, double, few, normal, seeds
from tests.laws.toys import IMAGES, Coarse, Toy, batch, build, rng

NAME = "feature-distillation"


def plain_resize(x: Tensor, height: int, width: int) -> Tensor:
    """The mean of the pixels below a triangle, which is as wide as two pixels of the result."""

    def weights(into: int, out: int) -> list[list[float]]:
        scale = out / into
        reach = max(scale, 1.0)
        rows = []
        for i in range(into):
            row = [max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / reach) for j in range(out)]
            rows.append([w / sum(row) for w in row])
        return rows

    result = x.new_zeros(*x.shape[:2], height, width)
    for i, row in enumerate(weights(height, x.shape[2])):
        for j, column in enumerate(weights(width, x.shape[3])):
            for k, down in enumerate(row):
                for n, across in enumerate(column):
                    result[:, :, i, j] += down * across * x[:, :, k, n]
    return result


def scaled(method: Method, seed: int = 0) -> Method:
    """With other statistics of the teacher than 0 and 1."""
    for i, buffer in enumerate(method.standardize.buffers()):
        buffer.copy_(normal(len(buffer), seed=seed + i).abs() + 0.1)
    return method


@few
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), seeds)
def test_resizing_is_a_mean_below_a_triangle(h: int, w: int, y: int, x: int, seed: int) -> None:
    image = normal(2, 3, h, w, seed=seed)
    close(resize(image, (y, x)), plain_resize(image, y, x))
    assert resize(image, (h, w)) is image


@few
@given(st.integers(1, 3), st.floats(0.1, 3), st.floats(0.1, 3), seeds)
def test_the_loss_in_plain_loops(b: int, pooled: float, patches: float, seed: int) -> None:
    method = scaled(double(NAME, pooled=pooled, patches=patches), seed)
    data = batch(b, seed=seed, dtype=torch.float64)
    teacher, view = method.teacher.network, data.views[0]
    features, places = teacher.with_map(view)
    mean0, std0, mean1, std1 = method.standardize.buffers()
    predictions = method.predict(view)
    own, grid = predictions
    assert (features.shape[1:], places.shape[1:]) == ((9,), (9, 3, 3))
    assert (own.shape[1:], grid.shape[1:]) == ((9,), (9, 7, 7))
    small = plain_resize(grid, 3, 3)
    whole = local = 0.0
    for i in range(b):
        target = [(features[i, c] - mean0[c]) / std0[c] for c in range(9)]
        whole += (1 - cosine([v.item() for v in target], own[i].tolist())) / b
        for y in range(3):
            for x in range(3):
                target = [(places[i, c, y, x] - mean1[c]) / std1[c] for c in range(9)]
                said = small[i, :, y, x].tolist()
                local += (1 - cosine([v.item() for v in target], said)) / (9 * b)
    expected = (pooled * whole + patches * local) / (pooled + patches)
    close(method.loss(predictions, method.targets(data, predictions)), expected)


def test_a_finer_teacher_is_resized() -> None:
    """The coarser of both grids is that of the student here."""
    torch.manual_seed(0)
    config = FeatureDistillation.Config(teacher="x")
    method = FeatureDistillation(config, Setup(Coarse(norm=True), IMAGES, 0, Toy(norm=True)))
    predictions = method.predict(batch().views[0])
    targets = method.targets(batch(), predictions)
    assert [x.shape[2:] for x in targets] == [(), (3, 3)]
    torch.testing.assert_close(targets[1].norm(dim=1), torch.ones(8, 3, 3))


def test_a_student_in_the_place_of_its_teacher_learns_nothing() -> None:
    torch.manual_seed(0)
    twin = Toy(norm=False)
    config = FeatureDistillation.Config(teacher="x")
    method = FeatureDistillation(config, Setup(Toy(norm=False), IMAGES, 0, twin))
    method.backbone.load_state_dict(twin.state_dict())
    for projection in method.projections:
        torch.nn.init.eye_(projection[0].weight)
        torch.nn.init.zeros_(projection[0].bias)
    predictions = method.predict(batch().views[0])
    loss = method.loss(predictions, method.targets(batch(), predictions))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.abs().max() < 1e-5 for p in method.backbone.parameters())


def test_the_teacher_takes_no_part_in_training() -> None:
    method = build(NAME).train()
    assert not any(part.training for part in method.teacher.modules())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    data = batch()
    predictions = method.predict(data.views[0])
    together = method.targets(data, predictions)
    alone = method.targets(data.map(lambda x: x[:1]), tuple(x[:1] for x in predictions))
    for x, y in zip(alone, together, strict=True):
        assert not x.requires_grad
        torch.testing.assert_close(x, y[:1])


@pytest.mark.parametrize("kind", [CutMix, MixUp])
def test_each_place_of_a_mixed_image_has_the_targets_of_what_it_shows(kind: type) -> None:
    method = scaled(double(NAME))
    data = data64(4)
    inputs = method.inputs(data)
    clean = method.predict(inputs)
    targets = method.targets(data, clean)
    hard = kind()
    mask = hard.mask(rng(3), (16, 16))
    mixed, share = kind().mix(inputs, rng(3))
    predictions = method.predict(mixed)
    small = plain_resize(predictions[1], 3, 3)
    others = [partner(x) for x in targets]
    whole = local = 0.0
    for i in range(4):
        for weight, target in ((share, targets), (1 - share, others)):
            whole += weight * (1 - cosine(predictions[0][i].tolist(), target[0][i].tolist())) / 4
        for y in range(3):
            for x in range(3):
                # 16 pixels do not divide into 3 places: neighbours share a row of pixels
                rows, columns = (slice(k * 16 // 3, -(-(k + 1) * 16 // 3)) for k in (y, x))
                part = (mask if mask.numel() == 1 else mask[rows, columns]).mean().item()
                for weight, target in ((part, targets), (1 - part, others)):
                    said = small[i, :, y, x].tolist()
                    local += weight * (1 - cosine(said, target[1][i, :, y, x].tolist())) / 36
    close(hard.loss(method, inputs, targets, rng(3), None), (whole + local) / 2)


def test_pooled_features_alone_are_mixed_as_any_target() -> None:
    method = scaled(double(NAME, patches=0.0))
    data = data64(4)
    inputs = method.inputs(data)
    targets = method.targets(data, method.predict(inputs))
    assert len(targets) == len(method.projections) == 1
    mixed, share = CutMix().mix(inputs, rng(3))
    predictions = method.predict(mixed)
    own = objective(method, predictions, targets)
    others = objective(method, predictions, tuple(partner(x) for x in targets))
    close(CutMix().loss(method, inputs, targets, rng(3), None), share * own + (1 - share) * others)


def test_the_map_is_left_out_where_a_network_has_none() -> None:
    teacher = Toy(norm=True)
    teacher.has_map = False
    config = FeatureDistillation.Config(teacher="x")
    method = FeatureDistillation(config, Setup(Toy(norm=True), IMAGES, 0, teacher))
    assert len(method.predict(batch().views[0])) == 1


def test_statistics_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, places = 3 * normal(24, 2, seed=0) + 5, normal(24, 3, 2, 2, seed=1)
    scale = Standardize([2, 3]).double()
    taken: list[int] = []

    def outputs() -> Iterator[tuple[Tensor, ...]]:
        for i in range(0, 24, 8):
            taken.append(i)
            yield features[i : i + 8], places[i : i + 8]

    scale.measure(outputs())
    mean0, std0, mean1, std1 = scale.buffers()
    close(mean0, features.mean(0))
    close(std0, features.std(0, correction=0))
    close(mean1, places.mean((0, 2, 3)))
    close(std1, places.std((0, 2, 3), correction=0))
    one, other = scale((features, places))
    close(one.mean(0), torch.zeros(2))
    close(other.std((0, 2, 3), correction=0), torch.ones(3))
    scale.measure(outputs())
    assert taken == [0, 8, 16]
    monkeypatch.setattr(standardize, "IMAGES", 16)
    again = Standardize([2, 3])
    again.load_state_dict(scale.state_dict())
    again.measure(outputs())  # of a resumed run
    assert taken == [0, 8, 16]
    Standardize([2, 3]).measure(outputs())
    assert taken == [0, 8, 16, 0, 8]  # and no more than are needed


def test_a_channel_that_never_changes_stays_finite() -> None:
    scale = Standardize([2])
    scale.measure([(torch.ones(4, 2),)])
    assert torch.isfinite(scale((torch.ones(4, 2),))[0]).all()


def test_the_size_of_a_view_fits_the_teacher() -> None:
    nearest = backbone_module.nearest_size
    vit = backbone_module.create("test_vit")
    assert vit.network.patch_embed.patch_size == (16, 16)
    sizes = [nearest(vit, (side, side))[0] for side in (5, 16, 30, 40, 41, 64)]
    assert sizes == [16, 16, 32, 32, 48, 64]
    assert nearest(backbone_module.create("test_resnet"), (37, 41)) == (37, 41)
    assert nearest(Toy(norm=True), (37, 41)) == (37, 41)
    with torch.device("meta"):
        fixed = backbone_module.create("beit_base_patch16_224")
    assert nearest(fixed, (64, 64)) == (224, 224)


@pytest.mark.parametrize(("asked", "seen"), [(0, 48), (30, 32), (64, 64)])
def test_the_teacher_sees_the_view_at_its_own_size(asked: int, seen: int) -> None:
    torch.manual_seed(0)
    config = FeatureDistillation.Config(teacher="x", teacher_size=asked)
    teacher = backbone_module.create("test_vit")
    method = FeatureDistillation(config, Setup(Toy(norm=True), IMAGES, 0, teacher))
    data = batch(2, size=50)
    assert method.fit_view(data.views[0]).shape == (2, 3, seen, seen)
    predictions = method.predict(data.views[0])
    assert method.targets(data, predictions)[1].shape[2:] == (seen // 16, seen // 16)


def test_a_teacher_of_another_size_is_refused_with_the_remedy() -> None:
    teacher = backbone_module.create("gmixer_12_224")
    config = FeatureDistillation.Config(teacher="x")
    method = FeatureDistillation(config, Setup(Toy(norm=True), IMAGES, 0, teacher))
    with pytest.raises(UserError, match=r"64 pixels.*--method\.teacher-size"):
        method.before_epoch([batch(2, size=64)])


def test_other_weights_of_both_parts_change_nothing_but_the_share() -> None:
    one, two = double(NAME, pooled=1.0, patches=3.0), double(NAME, pooled=0.5, patches=1.5)
    assert dataclasses.asdict(one.config) != dataclasses.asdict(two.config)
    data = data64()
    losses = []
    for method in (one, two):
        predictions = method.predict(data.views[0])
        losses.append(method.loss(predictions, method.targets(data, predictions)))
    close(*losses)
