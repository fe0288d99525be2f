"""A GPU computes what a CPU does: the losses of every method, and the scores of features."""

from collections.abc import Callable

import pytest
import torch

from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.protocol import FeatureProtocol, LabelledImages, Subject
from selftaught.methods import METHODS
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.laws.toys import batch, build, hards_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("hard", [(), ("adversarial", "cutmix")], ids=["plain", "hexa"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_of_three_steps(name: str, hard: tuple[str, ...]) -> None:
    def run(device: str) -> list[float]:
        step = Step(build(name, dtype=torch.float64), hards_of(name, *hard)).to(device)
        data = [batch(16, seed, dtype=torch.float64).map(lambda x: x.to(device)) for seed in (1, 2)]
        optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 0.05}], lr=0)
        loop = Loop(steps=3, steps_per_epoch=2, schedule=lambda p: 1.0)
        reports = fit(step, step.method, lambda epoch, first: data[first:], optimizer, loop)
        return [float(report.losses["clean"]) for report in reports]

    assert run("cuda") == pytest.approx(run("cpu"), rel=1e-6)


@pytest.mark.parametrize("protocol", [KNN(), LinearProbe()], ids=["knn", "linear"])
def test_scores_of_features(protocol: FeatureProtocol) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(500, 32, generator=generator)
    labels = (vectors[:, :5] + 0.5 * torch.randn(500, 5, generator=generator)).argmax(1)
    read: Callable[[torch.Tensor], torch.Tensor] = vectors.__getitem__

    def score(device: str) -> torch.Tensor:
        absent: object = None
        subject = Subject(
            name="made up",
            backbone=absent,
            images=absent,
            size=0,
            device=device,
            precision="fp32",
            features=read,
        )
        train = LabelledImages(torch.arange(400), labels[:400])
        scores = protocol.score(subject, train, torch.arange(400, 500)).values
        assert scores.device.type == device
        return scores.cpu()

    torch.testing.assert_close(score("cuda"), score("cpu"), rtol=1e-3, atol=1e-3)
