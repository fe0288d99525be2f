"""Distillation of features, against its formula in plain loops."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selftaught.errors import UserError
from selftaught.hard import CutMix, MixUp
from selftaught.hard.base import objective
from selftaught.hard.mixed import partner
from selftaught.method import Encoder, Method, Setup
from selftaught.methods.distillation.feature_maps import FeatureDistillation
from selftaught.methods.parts import standardize
from selftaught.methods.parts.standardize import Standardize
from selftaught.models import backbone as backbone_module
from selftaught.models.layers import resize
from tests.formulas import answer, close, cosine, data64, double, few, loss_of, normal, seeds
from tests.laws.toys import IMAGES, Coarse, Toy, batch, build, rng

NAME = "feature-distillation"


def with_teacher(student: Encoder, teacher: Encoder, **fields: Any) -> FeatureDistillation:
    torch.manual_seed(0)
    config = FeatureDistillation.Config(teacher="x", **fields)
    return FeatureDistillation(config, Setup(student, IMAGES, 0, teacher))


def plain_resize(x: Tensor, height: int, width: int) -> Tensor:
    """The mean of the pixels below a triangle, which is as wide as two pixels of the result."""

    def weights(into: int, out: int) -> Tensor:
        scale = out / into
        reach = max(scale, 1.0)
        rows = []
        for i in range(into):
            row = [max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / reach) for j in range(out)]
            rows.append([w / sum(row) for w in row])
        return torch.tensor(rows, dtype=x.dtype)

    return weights(height, x.shape[2]) @ x @ weights(width, x.shape[3]).T


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


def plain_places(said: Tensor, targets: Tensor) -> list[float]:
    """The cosine distance of each place of maps [B, 9, 3, 3], image by image and row by row."""
    pairs = zip(*(x.flatten(2).mT.flatten(0, 1).tolist() for x in (said, targets)), strict=True)
    return [1 - cosine(a, b) for a, b in pairs]


@few
@given(st.integers(1, 3), st.floats(0.1, 3), st.floats(0.1, 3), seeds)
def test_the_loss_in_plain_loops(b: int, pooled: float, patches: float, seed: int) -> None:
    method = scaled(double(NAME, pooled=pooled, patches=patches), seed)
    data = data64(b, seed)
    teacher, view = method.teacher.network, data.views[0]
    features, places = teacher.with_map(view)
    mean0, std0, mean1, std1 = method.standardize.buffers()
    own, grid = method.predict(view)
    assert (features.shape[1:], places.shape[1:]) == ((9,), (9, 3, 3))
    assert (own.shape[1:], grid.shape[1:]) == ((9,), (9, 7, 7))
    target = (features - mean0) / std0
    whole = [1 - cosine(x, y) for x, y in zip(own.tolist(), target.tolist(), strict=True)]
    target = (places - mean1[:, None, None]) / std1[:, None, None]
    local = plain_places(plain_resize(grid, 3, 3), target)
    expected = pooled * sum(whole) / b + patches * sum(local) / (9 * b)
    close(loss_of(method, data), expected / (pooled + patches))


def test_a_finer_teacher_is_resized() -> None:
    """The coarser of both grids is that of the student here."""
    method = with_teacher(Coarse(norm=True), Toy(norm=True))
    targets = answer(method, batch())[1]
    assert [x.shape[2:] for x in targets] == [(), (3, 3)]
    torch.testing.assert_close(targets[1].norm(dim=1), torch.ones(8, 3, 3))


def test_a_student_in_the_place_of_its_teacher_learns_nothing() -> None:
    twin = Toy(norm=False)
    method = with_teacher(Toy(norm=False), twin)
    method.backbone.load_state_dict(twin.state_dict())
    for projection in method.projections:
        torch.nn.init.eye_(projection[0].weight)
        torch.nn.init.zeros_(projection[0].bias)
    loss = loss_of(method, batch())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.abs().max() < 1e-5 for p in method.backbone.parameters())


def test_the_teacher_takes_no_part_in_training() -> None:
    method, data = build(NAME).train(), batch()
    assert not any(part.training for part in method.teacher.modules())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    predictions, together = answer(method, data)
    alone = method.targets(data.map(lambda x: x[:1]), tuple(x[:1] for x in predictions))
    for x, y in zip(alone, together, strict=True):
        assert not x.requires_grad
        torch.testing.assert_close(x, y[:1])


@pytest.mark.parametrize("kind", [CutMix, MixUp])
def test_each_place_of_a_mixed_image_has_the_targets_of_what_it_shows(kind: type) -> None:
    method, data, hard = scaled(double(NAME)), data64(4), kind()
    inputs, targets = method.inputs(data), answer(method, data)[1]
    mask = hard.mask(rng(3), (16, 16))
    mixed, share = hard.mix(inputs, rng(3))
    own, grid = method.predict(mixed)
    # 16 pixels do not divide into 3 places: neighbours share a row of pixels
    cuts = [slice(k * 16 // 3, -(-(k + 1) * 16 // 3)) for k in range(3)]
    pixels = mask.expand(16, 16)
    parts = [pixels[rows, columns].mean().item() for rows in cuts for columns in cuts] * 4
    total = 0.0
    for (features, places), weight, shares in (
        (targets, share, parts),
        ([partner(x) for x in targets], 1 - share, [1 - part for part in parts]),
    ):
        pairs = zip(own.tolist(), features.tolist(), strict=True)
        total += weight * sum(1 - cosine(x, y) for x, y in pairs) / 4
        local = plain_places(plain_resize(grid, 3, 3), places)
        total += sum(s * d for s, d in zip(shares, local, strict=True)) / 36
    close(hard.loss(method, inputs, targets, rng(3), None), total / 2)


def test_pooled_features_alone_are_mixed_as_any_target() -> None:
    method, data = scaled(double(NAME, patches=0.0)), data64(4)
    inputs, targets = method.inputs(data), answer(method, data)[1]
    assert len(targets) == len(method.projections) == 1
    mixed, share = CutMix().mix(inputs, rng(3))
    predictions = method.predict(mixed)
    own = objective(method, predictions, targets)
    others = objective(method, predictions, tuple(partner(x) for x in targets))
    close(CutMix().loss(method, inputs, targets, rng(3), None), share * own + (1 - share) * others)


def test_the_map_is_left_out_where_a_network_has_none() -> None:
    teacher = Toy(norm=True)
    teacher.has_map = False
    assert len(with_teacher(Toy(norm=True), teacher).predict(batch().views[0])) == 1


def test_statistics_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, places = 3 * normal(24, 2, seed=0) + 5, normal(24, 3, 2, 2, seed=1)
    scale = Standardize([2, 3]).double()
    indices: list[int] = []

    def outputs() -> Iterator[tuple[Tensor, ...]]:
        for i in range(0, 24, 8):
            indices.append(i)
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
    assert indices == [0, 8, 16]
    monkeypatch.setattr(standardize, "IMAGES", 16)
    again = Standardize([2, 3])
    again.load_state_dict(scale.state_dict())
    again.measure(outputs())  # of a resumed run
    assert indices == [0, 8, 16]
    Standardize([2, 3]).measure(outputs())
    assert indices == [0, 8, 16, 0, 8]  # and no more than are needed


def test_a_channel_that_never_changes_stays_finite() -> None:
    scale = Standardize([2])
    scale.measure([(torch.ones(4, 2),)])
    assert torch.isfinite(scale((torch.ones(4, 2),))[0]).all()


def test_the_size_of_a_view_fits_the_teacher() -> None:
    nearest = backbone_module.nearest_size
    with torch.device("meta"):
        names = ("test_vit", "test_resnet", "beit_base_patch16_224")
        vit, resnet, fixed = map(backbone_module.create, names)
    sizes = [nearest(vit, (side, side))[0] for side in (5, 16, 30, 40, 41, 64)]
    assert sizes == [16, 16, 32, 32, 48, 64]
    for network in (resnet, Toy(norm=True)):
        assert nearest(network, (37, 41)) == (37, 41)
    assert nearest(fixed, (64, 64)) == (224, 224)


@pytest.mark.parametrize(("asked", "seen"), [(0, 48), (30, 32), (64, 64)])
def test_the_teacher_sees_the_view_at_its_own_size(asked: int, seen: int) -> None:
    teacher = backbone_module.create("test_vit")
    method, data = with_teacher(Toy(norm=True), teacher, teacher_size=asked), batch(2, size=50)
    assert method.fit_view(data.views[0]).shape == (2, 3, seen, seen)
    assert answer(method, data)[1][1].shape[2:] == (seen // 16, seen // 16)


def test_a_teacher_of_another_size_is_refused_with_the_remedy() -> None:
    teacher = backbone_module.create("gmixer_12_224")
    with pytest.raises(UserError, match=r"64 pixels.*--method\.teacher-size"):
        with_teacher(Toy(norm=True), teacher).before_epoch([batch(2, size=64)])
