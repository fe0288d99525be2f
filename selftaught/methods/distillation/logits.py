"""Distillation of a fine-tuned network (Chen et al., 2020, https://arxiv.org/abs/2006.10029)."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from selftaught.devices import upcast
from selftaught.losses import soft_cross_entropy
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.models.layers import mlp
from selftaught.models.teacher import FrozenTeacher
from selftaught.ranges import Positive


class Distillation(Method):
    """Predict the class probabilities of a fine-tuned teacher. The images need no labels."""

    paper = (
        "Chen et al., 2020, https://arxiv.org/abs/2006.10029; Hinton et al., 2015,"
        " https://arxiv.org/abs/1503.02531"
    )
    views = 1
    classifies = True

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherConfig):
        teacher: str = ""  # the run of the teacher: of supervised, or of distillation
        temperature: Positive = 1.0  # of both softmaxes
        part = "classifier"
        teachers = "a run of supervised"

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use only crops and flips as views."""
            return Defaults(config=self, views={"jitter": 0.0, "gray": 0.0, "blur": 0.0})

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if not isinstance(setup.previous, nn.Sequential):
            raise ValueError("distillation needs its teacher in Setup.previous")
        self.temperature = config.temperature
        *_, last = setup.previous[1].children()
        assert isinstance(last, nn.Linear)
        self.classifier = mlp(setup.backbone.features, last.out_features)
        self.network = nn.Sequential(setup.backbone, self.classifier)
        self.teacher = FrozenTeacher(setup.previous)

    def inputs(self, batch: Batch) -> Tensor:
        return batch.views[0]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        logits = upcast(self.teacher(batch.views[0]))  # of the same view as the student's
        return (logits / self.temperature).softmax(1)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return soft_cross_entropy(predictions / self.temperature, targets)

    @property
    def head(self) -> nn.Sequential:
        return self.classifier
