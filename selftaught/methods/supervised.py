"""The task that every other one imitates: fine-tuning, and a baseline."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Batch, Encoder, Method


class Supervised(Method):
    """Predict the label."""

    paper = "-"
    views = 1
    needs_labels = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        classes: int = 0  # from the data
        smoothing: float = 0.0  # of the labels

    def __init__(self, config: Config, backbone: Encoder, images: int) -> None:
        super().__init__(config, backbone, images)
        if config.classes < 2:
            raise UserError(
                "supervised training needs labelled images of two classes or more: class folders, or a labels.csv"
            )
        self.smoothing = config.smoothing
        self.backbone = backbone
        self.network = nn.Sequential(backbone, nn.Linear(backbone.features, config.classes))

    def inputs(self, batch: Batch) -> Tensor:
        return batch.views[0]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return batch.label

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if targets.dim() == 2:  # several classes at once
            return F.binary_cross_entropy_with_logits(predictions, targets.to(predictions))
        return F.cross_entropy(predictions, targets, label_smoothing=self.smoothing)
