"""The base of methods whose pseudo-labels are a momentum teacher's embeddings of the other view."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from selftaught.method import Batch, Defaults, Method, Setting, Setup, Tensors
from selftaught.models.layers import on_views
from selftaught.models.teacher import Teacher, schedule_momentum, teacher_momentum
from selftaught.ranges import Count, Share


class TeacherStudent(Method):
    """A subclass builds `network` and `teacher`, and defines `predict` and `loss`."""

    network: nn.Module  # from pixels to embeddings [B, dim]; the teacher is its moving average
    teacher: Teacher

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 4096
        dim: Count = 256
        momentum: Share = 0.996  # of the teacher at the start; it rises to 1 along a cosine

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use a lower momentum in a short training, and heads by the features' width."""
            momentum = teacher_momentum(self.momentum, setting.steps)
            return Defaults(
                config=replace(
                    self, hidden=min(self.hidden, 2 * setting.features), momentum=momentum
                )
            )

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.momentum = config.momentum

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2]

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, second = on_views(self.teacher, batch.views[:2])
        return second, first

    def after_step(self, batch: Batch, predictions: Tensors, targets: Tensors) -> None:
        self.teacher.follow(self.network, schedule_momentum(self.momentum, self.progress))
