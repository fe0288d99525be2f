"""Distillation of a backbone's features, without labels and without a classifier."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from selftaught.devices import upcast
from selftaught.errors import UserError
from selftaught.losses import unit_distance
from selftaught.method import Batch, Defaults, Encoder, Method, Setting, Setup
from selftaught.methods.parts.standardize import Outputs, Standardize
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.models.backbone import nearest_size
from selftaught.models.layers import mix_areas, mlp, resize, unit
from selftaught.models.teacher import FrozenTeacher
from selftaught.ranges import Natural, NonNegative, Positive


class FeatureDistillation(Method):
    """Predict the features of a trained backbone, pooled and at each place of its map."""

    paper = (
        "Romero et al., 2015, https://arxiv.org/abs/1412.6550; Ranzinger et al., 2024,"
        " https://arxiv.org/abs/2312.06709"
    )
    views = 1

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherConfig):
        teacher: str = ""  # a run, a file of weights, or the name of weights in timm
        pooled: Positive = 1.0  # weight of the pooled features' loss
        patches: NonNegative = 1.0  # weight of the loss at the places of the map; 0 = none
        hidden: Natural = 0  # width of the projections' hidden layer; 0 = linear projections
        teacher_size: Natural = 0  # pixels of the teacher's view; 0 = those of the student's
        part = "backbone"
        teachers = "a run, a file of weights, or weights in timm"

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use crops, flips and half of the usual colours: the teacher's features show them."""
            mild = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
            return Defaults(config=self, views={**mild, "gray": 0.0, "blur": 0.0})

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        student, teacher = setup.backbone, setup.previous
        if not isinstance(teacher, Encoder):
            raise ValueError("feature distillation needs its teacher in Setup.previous")
        self.config = config
        widths = [(student.features, teacher.features)]
        if config.patches and student.has_map and teacher.has_map:
            widths.append((student.channels, teacher.channels))
        inner = [config.hidden] if config.hidden else []
        self.projections = nn.ModuleList(mlp(i, *inner, o, batch_norm=False) for i, o in widths)
        self.standardize = Standardize([o for _, o in widths])
        self.teacher = FrozenTeacher(teacher)

    def encode(self, network: Encoder, view: Tensor) -> Outputs:
        return network.with_map(view) if len(self.projections) == 2 else (network(view),)

    def fit_view(self, view: Tensor) -> Tensor:
        """Resize a view to the nearest size that the teacher takes."""
        size = [self.config.teacher_size] * 2 if self.config.teacher_size else view.shape[2:]
        return resize(view, nearest_size(self.teacher.network, size))

    @torch.no_grad()
    def teach(self, view: Tensor) -> Outputs:
        """Return the teacher's features. Raises UserError if it does not take the view's size."""
        teacher: Any = self.teacher.network
        view = self.fit_view(view)
        try:
            return tuple(upcast(x) for x in self.encode(teacher, view))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:  # as networks that are built for one size
            raise UserError(
                f"the teacher fails on views of {view.shape[-1]} pixels ({error}): name a size that"
                " it takes by --method.teacher-size, as 224"
            ) from error

    def before_epoch(self, batches: Iterable[Batch]) -> None:
        self.standardize.measure(self.teach(batch.views[0]) for batch in batches)

    def inputs(self, batch: Batch) -> Tensor:
        return batch.views[0]

    def predict(self, inputs: Tensor) -> Outputs:
        outputs = self.encode(self.backbone, inputs)
        return tuple(
            project(x.movedim(1, -1)).movedim(-1, 1)
            for project, x in zip(self.projections, outputs, strict=True)
        )

    def targets(self, batch: Batch, predictions: Outputs) -> Outputs:
        """The teacher's features, standardised and of unit norm, on the coarser of both grids."""
        outputs = self.standardize(self.teach(batch.views[0]))
        grids = [
            tuple(map(min, x.shape[2:], prediction.shape[2:]))
            for x, prediction in zip(outputs, predictions, strict=True)
        ]
        return tuple(unit(resize(x, grid)) for x, grid in zip(outputs, grids, strict=True))

    def loss(self, predictions: Outputs, targets: Outputs) -> Tensor:
        weights = (self.config.pooled, self.config.patches)[: len(targets)]
        losses = [
            weight * unit_distance(resize(x, target.shape[2:]), target)
            for weight, x, target in zip(weights, predictions, targets, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)

    def mix_targets(self, own: Outputs, partner: Outputs, mask: Tensor) -> Outputs:
        """Mix the targets. As the loss is linear in them, this weights the losses of each place."""
        return tuple(mix_areas(x, y, mask) for x, y in zip(own, partner, strict=True))
