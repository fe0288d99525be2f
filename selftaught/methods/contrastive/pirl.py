"""PIRL (Misra & van der Maaten, 2019, https://arxiv.org/abs/1912.01991)."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from selftaught.method import Batch, Method, Setup
from selftaught.methods.parts.jigsaw_head import (
    JigsawNetwork,
    draw_order,
    joint_embedding,
    shuffled_pieces,
)
from selftaught.methods.parts.memory_bank import MemoryBank, MemoryConfig
from selftaught.models.layers import Normalize
from selftaught.ranges import Count, Share


class PIRL(Method):
    """Find an image's stored embedding among those of all images, from the whole and from pieces.

    The pieces are shuffled.
    """

    paper = "Misra & van der Maaten, 2019, https://arxiv.org/abs/1912.01991"

    @dataclass(frozen=True, kw_only=True)
    class Config(MemoryConfig):
        negatives: Count = 32000
        jigsaw: Share = 0.5  # weight of the pieces; the whole has the rest of 1

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.share = config.jigsaw
        self.network = nn.Sequential(
            setup.backbone, nn.Linear(setup.backbone.features, config.dim), Normalize()
        )
        self.jigsaw = JigsawNetwork(
            setup.backbone,
            nn.Linear(setup.backbone.features, config.dim),
            joint_embedding(config.dim),
        )
        self.memory = MemoryBank(config, setup.images)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.views[0], shuffled_pieces(batch.views[1], draw_order(batch))

    def predict(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        whole, pieces = inputs
        return self.network(whole), self.jigsaw(pieces)

    def targets(self, batch: Batch, predictions: tuple[Tensor, Tensor]) -> Tensor:
        return batch.index  # every image is a class of its own

    def loss(self, predictions: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        whole, pieces = (self.memory.loss(embedding, targets) for embedding in predictions)
        return (1 - self.share) * whole + self.share * pieces

    def collapsed_loss(self, batch_size: int) -> float | None:
        return self.memory.collapsed_loss(batch_size)

    def before_epoch(self, batches: Iterable[Batch]) -> None:
        self.memory.fill((batch.index, self.network(batch.views[0])) for batch in batches)

    def after_step(self, batch: Batch, predictions: tuple[Tensor, Tensor], targets: Tensor) -> None:
        self.memory.remember(targets, predictions[0])  # the bank holds embeddings of whole images
