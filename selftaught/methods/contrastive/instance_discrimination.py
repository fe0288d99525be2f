"""Instance discrimination (Wu et al., 2018, https://arxiv.org/abs/1805.01978)."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.method import Batch, Method, Setup
from selftaught.methods.parts.memory_bank import MemoryBank, MemoryConfig
from selftaught.models.layers import Normalize


class InstanceDiscrimination(Method):
    """Classify each image as itself, among the stored embeddings of all images."""

    paper = "Wu et al., 2018, https://arxiv.org/abs/1805.01978"
    views = 1

    @dataclass(frozen=True, kw_only=True)
    class Config(MemoryConfig):
        pass

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.network = nn.Sequential(
            setup.backbone, nn.Linear(setup.backbone.features, config.dim), Normalize()
        )
        self.memory = MemoryBank(config, setup.images)

    def inputs(self, batch: Batch) -> Tensor:
        return batch.views[0]

    def predict(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return batch.index  # every image is a class of its own

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return self.memory.loss(predictions, targets)

    def collapsed_loss(self, batch_size: int) -> float | None:
        return self.memory.collapsed_loss(batch_size)

    def before_epoch(self, batches: Iterable[Batch]) -> None:
        self.memory.fill((batch.index, self.predict(self.inputs(batch))) for batch in batches)

    def after_step(self, batch: Batch, predictions: Tensor, targets: Tensor) -> None:
        self.memory.remember(targets, predictions)
