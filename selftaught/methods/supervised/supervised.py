"""Supervised training: a baseline, and the fine-tuning of pretrained weights."""

from dataclasses import dataclass, replace
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Batch, Defaults, Method, Previous, Setting, Setup
from selftaught.ranges import Natural, Share


class Supervised(Method):
    """Predict the label, from the backbone or from a hidden layer of its pretrained head."""

    paper = "-"
    views = 1
    labels = "required"
    classifies = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        # number of classes in the data, for the run's record; the network takes it from `Setup`
        classes: Natural = 0
        smoothing: Share = 0.0  # label smoothing
        # hidden layers of the head in --init to keep with the backbone: 1 in SimCLR v2
        head_layers: Natural = 0

        def defaults(self, setting: Setting) -> Defaults[Self]:
            return Defaults(config=replace(self, classes=setting.classes))

        def previous(self, init: str | None) -> Previous | None:
            if self.head_layers and init is None:
                raise UserError(
                    "--method.head-layers are those of a pretrained head: name the run that has it"
                    " by --init"
                )
            return Previous(init, "head") if init and self.head_layers else None

        @property
        def min_batch(self) -> int:
            return 2 if self.head_layers else 1

        @property
        def hidden_layers(self) -> int:
            return self.head_layers

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if setup.classes < 2:
            raise UserError(
                "supervised training needs labelled images of two classes or more: class folders,"
                " or a labels.csv"
            )
        self.smoothing = config.smoothing
        previous = setup.previous
        assert previous is None or isinstance(previous, nn.Sequential)
        layers = list_hidden_layers(previous, config.head_layers) if previous else []
        width = [
            setup.backbone.features,
            *(layer.out_features for layer in layers if isinstance(layer, nn.Linear)),
        ][-1]
        self.classifier = nn.Sequential(*layers, nn.Linear(width, setup.classes))
        self.network = nn.Sequential(setup.backbone, self.classifier)

    def inputs(self, batch: Batch) -> Tensor:
        return batch.views[0]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return batch.label

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if targets.dim() == 2:  # several labels an image: one binary problem for each class
            smooth = targets.to(predictions) * (1 - self.smoothing) + self.smoothing / 2
            return F.binary_cross_entropy_with_logits(predictions, smooth)
        return F.cross_entropy(predictions, targets, label_smoothing=self.smoothing)

    @property
    def head(self) -> nn.Sequential:
        return self.classifier


def list_hidden_layers(previous: nn.Sequential, layers: int) -> list[nn.Module]:
    """Return the first `layers` hidden layers of a head, each linear, batch norm and ReLU.

    `previous`: backbone and head. Raises UserError where the head has fewer hidden layers.
    """
    head = list(previous[1].children())
    if 3 * layers >= len(head):
        raise UserError(
            f"--method.head-layers {layers}: the pretrained head has {len(head) // 3} hidden layers"
        )
    return head[: 3 * layers]
