"""Spotting artifacts: against its formula in plain loops, who learns when and from what, controls
of what can be known, and an autoencoder of an earlier run.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.method import Batch, Setup, record_calls
from selftaught.methods.generative import spotting_artifacts
from selftaught.methods.generative.spotting_artifacts import SpottingArtifacts
from selftaught.methods.parts.code_repair import enlarge_mask, kept_errors
from selftaught.methods.parts.place_discriminator import rank_places
from selftaught.methods.parts.two_player import call_detached
from selftaught.models.anchor import Anchor, AnchorLoss
from selftaught.training.step import Step
from selftaught.visualize import snapshots
from tests.formulas import answer, close, data64, double, loss_of
from tests.laws.toys import IMAGES, Toy, batch, rng
from tests.methods.controls import held_out_grade
from tests.pictures import folder


def make(**fields: Any) -> SpottingArtifacts:
    return double("spotting-artifacts", **{"width": 4, **fields})


def new(previous: Any = None, **fields: Any) -> SpottingArtifacts:
    torch.manual_seed(0)
    config = SpottingArtifacts.Config(**{"width": 4, "blocks": 1, **fields})
    return SpottingArtifacts(config, Setup(Toy(norm=True), IMAGES, previous=previous))


def plain_damage(code: Tensor, mask: Tensor) -> Tensor:
    """A lost place becomes the mean of the places around it, itself among them."""
    damaged = code.clone()
    for image, _, y, x in (mask == 0).nonzero().tolist():
        near = code[image, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        damaged[image, :, y, x] = sum(near.flatten(1).T) / near[0].numel()
    return damaged


def plain_repair(method: SpottingArtifacts, code: Tensor, mask: Tensor) -> Tensor:
    """The decoder, with a residual block before each of its layers: of toys, one block and one
    layer.
    """
    decoder, (first, second) = method.autoencoder.decoder, method.repair.blocks
    x = code + (1 - mask) * first(torch.cat([code, mask], 1))
    x = decoder.blocks[0](F.interpolate(x, scale_factor=2, mode="bilinear"))
    wide = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = x + (1 - wide) * second(torch.cat([x, wide], 1))
    return decoder.leave(x).sigmoid()


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def plain_square_error(picture: Tensor, view: Tensor, mask: Tensor) -> float:
    """Of an image in [-1, 1], at pixels of places that are kept."""
    kept = mask.repeat_interleave(2, 1).repeat_interleave(2, 2).expand(3, -1, -1) > 0
    pairs = zip(picture[kept].tolist(), view[kept].tolist(), strict=True)
    errors = [((2 * one - 1) - (2 * other - 1)) ** 2 for one, other in pairs]
    return sum(errors) / len(errors)


def test_the_loss_is_its_formula() -> None:
    """Jenni & Favaro, 2018, section 3: the discriminator's two losses and the repair's two."""
    method, data, total = make(), data64(3), 0.0
    view, mask = data.views[0], method.draw_mask(data)
    assert mask.shape == (3, 1, 8, 8)
    code = method.autoencoder.encoder(view)
    decoded = method.autoencoder.decoder(code, (16, 16))
    repaired = plain_repair(method, plain_damage(code, mask), mask)
    for i in range(3):
        for picture, label in ((decoded[i], 1.0), (repaired[i], -1.0)):
            score, kept = method.discriminator(picture[None], (8, 8))
            total -= log_sigmoid(label * score.item()) / 2
            lost = [label < 0 and not place for place in mask[i].flatten().tolist()]
            for logit, gone in zip(kept.flatten().tolist(), lost, strict=True):
                total -= 0.1 * log_sigmoid(-logit if gone else logit) / 128
        total -= log_sigmoid(score.item()) / 2  # of the repaired picture
        total += 30 * plain_square_error(repaired[i], view[i], mask[i])
    close(loss_of(method, data), total / 3)


def test_the_autoencoder_learns_first_by_the_square_error_of_all_pixels() -> None:
    method, data = make(), data64(3)
    method.progress = 0.1
    view, everywhere = data.views[0], torch.ones(1, 8, 8)
    pictures = method.autoencoder.decoder(method.autoencoder.encoder(view), (16, 16))
    pairs = zip(pictures, view, strict=True)
    close(loss_of(method, data), 10 * sum(plain_square_error(*p, everywhere) for p in pairs))


def test_the_share_of_kept_places_is_their_probability() -> None:
    mask = make(keep=0.3).draw_mask(batch(200))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / mask.numel()))
    assert make(keep=1.0).draw_mask(batch(2)).all()


def test_views_of_any_size_are_decoded_to_their_size() -> None:
    method = make(blocks=3)
    code, picture = method.autoencoder(torch.rand(1, 3, 37, 50, dtype=torch.float64))
    assert code.shape[2:] == method.autoencoder.code_size((37, 50)) == (4, 6)
    assert picture.shape == (1, 3, 37, 50)
    mask = (torch.rand(1, 1, 4, 6, generator=rng(0)) < 0.3).double()
    wide = enlarge_mask(mask, (37, 50))
    assert set(wide.unique().tolist()) == {0.0, 1.0}
    assert kept_errors(picture, picture, 0 * mask).item() == 0.0


# Who learns, from what


def gradients(method: SpottingArtifacts, loss: Tensor) -> dict[str, Tensor]:
    named = dict(method.named_parameters())
    result = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {k: g for k, g in zip(named, result, strict=True) if g is not None and g.any()}


def test_each_player_learns_from_its_own_loss() -> None:
    method, data = make(), data64(3)
    predictions, targets = answer(method, data)
    both = gradients(method, method.loss(predictions, targets))
    assert {key.split(".")[0] for key in both} == {"backbone", "discriminator", "repair"}

    # the discriminator alone, of a picture that no gradient passes
    pictures = (method.autoencoder(data.views[0])[1].detach(), predictions[3].detach())
    (real, kept), (fake, result) = (method.discriminator(x, (8, 8)) for x in pictures)
    own = (F.softplus(-real) + F.softplus(fake)).mean() / 2
    places = F.binary_cross_entropy_with_logits(result, targets[1][:, 0])
    alone = gradients(method, own + 0.1 * (F.softplus(-kept).mean() + places) / 2)
    # the repair alone, against the discriminator itself
    again = method.predict(method.inputs(data))[3]
    fooled = F.softplus(-method.discriminator(again, (8, 8))[0]).mean() / 2
    fooled = fooled + 30 * kept_errors(again, data.views[0], targets[1]).mean()
    against = gradients(method, fooled)
    for key, gradient in both.items():
        close(gradient, (against if key.startswith("repair") else alone)[key])


@pytest.mark.parametrize("progress", [0.0, 0.29, 0.3, 0.9])
def test_the_autoencoder_learns_before_the_others_and_never_again(progress: float) -> None:
    """What does not learn is not decayed, and counts no statistics either."""
    method = new()
    method.progress = progress
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0.1)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    Step(method)(batch(8), rng()).loss.backward()
    method.after_backward()
    optimizer.step()
    for key, value in before.items():
        moves = key.startswith("autoencoder.") == (progress < 0.3)
        assert torch.equal(value, method.state_dict()[key]) != moves, key


def test_an_anchor_holds_the_backbone_once_it_learns() -> None:
    method = make()
    step = Step(method, anchor=AnchorLoss(Anchor(), Toy(norm=False).double()))
    for progress in (0.5, 0.0):
        method.progress = progress
        assert ("anchor" in step(data64(3), rng()).parts) == (progress > 0)


def test_a_detached_call_is_not_recorded_and_changes_no_statistics() -> None:
    toy = Toy(norm=True)
    before = {key: value.clone() for key, value in toy.state_dict().items()}
    pixels = torch.rand(4, 3, 16, 16, generator=rng(0)).requires_grad_()
    with record_calls(toy, maps=False) as calls:
        call_detached(toy, pixels).sum().backward()
        assert not calls
        toy.eval()(pixels)
        assert len(calls) == 1
    assert all(p.grad is None for p in toy.parameters())
    assert pixels.grad is not None
    assert all(torch.equal(value, before[key]) for key, value in toy.state_dict().items())


# The accuracy of the task


def test_a_grade_is_the_share_of_pairs_in_the_right_order() -> None:
    scores = torch.tensor([[[3.0, 1.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]], [[1, 2], [3, 4]]])
    kept = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 1], [1, 1]]]).bool()
    # 3 > 1, 3 > 2, 2 > 1, 2 = 2; 0 = 0 twice, 1 > 0 twice; no pair
    assert rank_places(scores, kept).tolist() == [0.875, 0.75, 0.5]


def test_a_guess_has_the_grade_of_chance() -> None:
    method, none = make(), torch.zeros(400)
    targets = method.targets(batch(400), ())

    def grade(kept: Tensor) -> Tensor:
        return method.grade((none, none, kept, none), targets)

    guess = torch.rand(400, 2, 8, 8, generator=rng(0))
    error = 4 * grade(guess).std().item() / 20
    assert grade(guess).mean().item() == pytest.approx(0.5, abs=error)
    assert grade(torch.zeros_like(guess)).eq(0.5).all()
    assert grade(targets[1].expand(-1, 2, -1, -1)).eq(1).all()
    assert method.chance() == 0.5


def test_its_pictures_show_every_stage_of_the_repair() -> None:
    method, data = make().eval(), data64(3)
    predictions, targets = answer(method, data)
    for i, one in enumerate(method.illustrate(data, predictions, targets)):
        assert len(one.pictures) == 6
        assert all(x.shape == (3, 16, 16) for x in one.pictures.values())
        assert all(0 <= x.min() <= x.max() <= 1 for x in one.pictures.values())
        assert torch.equal(one.pictures["picture"], data.views[0][i])
        assert torch.equal(one.pictures["damage"][0, ::2, ::2], 1 - targets[1][i, 0])


# Controls

CHANCE = 0.028  # four standard errors of the mean grade of 128 images with 64 places


def squares(seed: int) -> Batch:
    """Squares of four pixels, each red, green or blue: a mean of several is none of these."""
    data = batch(32, seed=seed)
    colours = F.one_hot(torch.randint(3, (32, 8, 8), generator=rng(seed)), 3).permute(0, 3, 1, 2)
    view = 0.1 + 0.8 * F.interpolate(colours.float(), scale_factor=2.0)
    return Batch((view,), data.index, data.label, data.seed)


@pytest.mark.parametrize(("damaged", "low", "high"), [(1, 0.6, 1), (0, 0.5 - CHANCE, 0.5 + CHANCE)])
def test_damage_of_other_images_is_found_and_where_there_is_none_none_is(
    damaged: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a mask that tells nothing of the picture.

    The masks of other images are none. Pictures without damage still tell how damage looks.
    Nothing is repaired: a toy is no match for a repair.
    """
    if not damaged:
        monkeypatch.setattr(spotting_artifacts, "damage_code", lambda code, mask: code)
    method = new(width=8, autoencoder_share=0.5, places=1.0)
    method.repair.change = lambda mask: lambda number, x: x
    assert low < held_out_grade(method, squares, 60, held_out=range(100, 104)) < high


# An autoencoder of an earlier run


def test_an_autoencoder_is_taken_as_it_is() -> None:
    old = new()
    for parameter in old.parameters():
        parameter.data += 0.1
    other = new(old.state_dict(), teacher="old")
    assert old.trains_autoencoder
    assert not other.trains_autoencoder  # from the first step on
    for one, two in zip(other.autoencoder.parameters(), old.autoencoder.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(other.repair.blocks[0][1].weight, old.repair.blocks[0][1].weight)


def test_what_has_no_autoencoder_of_the_same_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="old"):
        new({"backbone.conv.weight": torch.zeros(1)}, teacher="old")
    state = new(width=8).state_dict()
    new(state, teacher="old", width=8)
    with pytest.raises(UserError, match=r"--method\.width"):
        new(state, teacher="old")
    with pytest.raises(UserError, match=r"--method\.teacher"):
        new(autoencoder_share=0.0)
    with pytest.raises(UserError, match="--size"):
        make(blocks=4).draw_mask(batch(2))


@pytest.mark.usefixtures("quick_scores")
def test_a_stage_of_a_plan_trains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(snapshots, "draw", lambda *_: None)
    images = str(folder(tmp_path / "images"))
    common = {"data": images, "size": 32, "batch": 8, "precision": "fp32", "steps": 2}
    common |= {"method": "spotting-artifacts", "method.width": 4, "backbone": "test_resnet"}
    stages = {"first": {"method.autoencoder-share": 1.0}, "second": {"teacher": "first"}}
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"defaults": common, "stages": stages}, sort_keys=False))
    assert main(["adapt", "--plan", str(file), "--out", str(out), "--workers", "0"]) == 0
    plan = json.loads((out / "plan.json").read_text())["stages"]
    places = [out / plan[name]["folder"] for name in stages]
    files = [place / "checkpoints" / "last.pt" for place in places]
    first, second = (torch.load(file, weights_only=True)["step"] for file in files)
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key])
        assert same == key.startswith("method.autoencoder.") or key.endswith((".mean", ".std")), key

    words = ["pretrain", "--data", images, "--out", str(tmp_path / "run"), "--steps", "1"]
    words += ["--method", "spotting-artifacts", "--backbone", "test_resnet", "--size", "32"]
    words += ["--batch", "8", "--workers", "0"]
    for refused, named in (
        (["--method.teacher", str(tmp_path / "gone")], "gone"),
        (["--method.teacher", str(places[0]), "--method.width", "8"], "--method.width"),
        (["--hard", "cutmix"], "--hard"),
    ):
        capsys.readouterr()
        assert main([*words, *refused]) == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
