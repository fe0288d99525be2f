"""A game of two networks in one step: each learns from its own loss, and no buffer is touched
twice.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from selftaught.cli.main import main
from selftaught.losses import discriminator_loss
from selftaught.methods.parts.gan_networks import Generator, PairDiscriminator, PictureDiscriminator
from selftaught.methods.parts.two_player import call_detached, call_pure, update_spectral_norms
from selftaught.training import trainer
from tests.formulas import close, normal
from tests.pictures import folder


def players() -> tuple[nn.Module, nn.Module]:
    """A generator of vectors, and a discriminator with a spectral norm and a batch norm."""
    torch.manual_seed(0)
    generator = nn.Linear(3, 5)
    discriminator = nn.Sequential(
        spectral_norm(nn.Linear(5, 4)), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)
    )
    return generator.double(), discriminator.double()


def gradients(loss: Tensor, network: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)


def test_one_backward_pass_gives_each_its_own_loss() -> None:
    generator, discriminator = players()
    real, codes = normal(6, 5, seed=1), normal(6, 3, seed=2)
    discriminator.eval()  # plain calls then change nothing either
    fake = generator(codes)
    first = discriminator_loss(discriminator(real), discriminator(fake))
    second = F.softplus(-discriminator(fake)).mean()
    expected = [*gradients(first, discriminator), *gradients(second, generator)]
    loss = discriminator_loss(*(call_pure(discriminator, x) for x in (real, fake.detach())))
    (loss + F.softplus(-call_detached(discriminator, fake)).mean()).backward()
    result = [p.grad for p in (*discriminator.parameters(), *generator.parameters())]
    for own, theirs in zip(result, expected, strict=True):
        close(own, theirs)


def test_calls_leave_every_buffer_as_it_is() -> None:
    _, discriminator = players()
    before = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    assert {"running_mean", "_u"} <= {name.rpartition(".")[2] for name in before}
    first, again = (
        call(discriminator, normal(6, 5, seed=1)) for call in (call_pure, call_detached)
    )
    assert torch.equal(first, again)  # the same spectral norms
    assert (first.requires_grad, again.requires_grad) == (True, False)
    for name, buffer in discriminator.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert all(isinstance(p, nn.Parameter) for p in discriminator.parameters())


def test_spectral_norms_follow_the_weights_once_a_step() -> None:
    layer = spectral_norm(nn.Linear(6, 4, bias=False)).double()
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(normal(4, 6, seed=3))
    for _ in range(300):
        update_spectral_norms(layer)
    close(torch.linalg.matrix_norm(layer.eval().weight, 2), 1.0, rtol=1e-6)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    update_spectral_norms(layer)  # in evaluation mode
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (9, 14), (33, 32)])
def test_networks_take_pictures_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    codes = torch.randn(2, 5)
    pictures = Generator(5, 8)(codes, size)
    assert pictures.shape == (2, 3, *size)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert PictureDiscriminator(8)(pictures).shape == (2,)
    for alone, scores in ((False, 1), (True, 3)):
        assert PairDiscriminator(5, 8, alone)(pictures, codes).shape == (2, scores)


def test_a_score_sees_only_what_it_is_for() -> None:
    torch.manual_seed(0)
    network = PairDiscriminator(5, 8, alone=True).eval()
    pictures, codes = torch.rand(2, 3, 16, 16), torch.randn(2, 5)
    first, other = network(pictures, codes), network(pictures, codes + 1)
    assert torch.equal(first[:, 0], other[:, 0])
    assert (first[:, 1:] != other[:, 1:]).all()
    moved = network(1 - pictures, codes)
    assert torch.equal(first[:, 1], moved[:, 1])
    assert (first[:, ::2] != moved[:, ::2]).all()


# Refusals


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("images"), classes=2, each=6)


@pytest.mark.parametrize(
    "words", [["bigan"], ["bigbigan"], ["context-encoder", "--method.adversarial", "0.001"]]
)
@pytest.mark.parametrize("flags", [["--hard", "adversarial", "cutmix"], ["--fsdp"]])
def test_what_does_not_fit_a_discriminator_is_refused(
    words: list[str],
    flags: list[str],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trainer, "world_size", lambda: 2)
    out = tmp_path / "run"
    small = ["--backbone", "test_resnet", "--size", "32", "--batch", "4", "--steps", "1"]
    small += ["--workers", "0", "--precision", "fp32"]
    command = ["pretrain", "--data", str(images), "--out", str(out), "--method", *words]
    assert main([*command, *small, *flags]) == 2
    assert not out.exists()
    errors = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(errors)
    assert flags[0] in errors[-1]
