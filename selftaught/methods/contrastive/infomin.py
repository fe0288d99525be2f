"""InfoMin (Tian et al., 2020, https://arxiv.org/abs/2005.10243)."""

from dataclasses import dataclass

from torch import Tensor

from selftaught.losses import info_nce
from selftaught.method import Batch, Method, Setup
from selftaught.methods.contrastive.moco_v2 import MoCoV2
from selftaught.methods.parts.jigsaw_head import (
    JigsawNetwork,
    draw_order,
    joint_embedding,
    shuffled_pieces,
)
from selftaught.models.layers import mlp
from selftaught.ranges import Positive, Share


class InfoMin(Method):
    """MoCo v2 with a second query: the shuffled pieces of the image. The views share less."""

    paper = "Tian et al., 2020, https://arxiv.org/abs/2005.10243"

    @dataclass(frozen=True, kw_only=True)
    class Config(MoCoV2.Config):
        temperature: Positive = 0.15
        jigsaw: Share = 0.5  # weight of the pieces; the whole has the rest of 1

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.moco = MoCoV2(config, setup)
        head = mlp(setup.backbone.features, config.hidden, config.dim, batch_norm=False)
        self.jigsaw = JigsawNetwork(setup.backbone, head, joint_embedding(config.dim))

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        # pieces of view 0, because the key comes from view 1
        return (*self.moco.inputs(batch), shuffled_pieces(batch.views[0], draw_order(batch)))

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*self.moco.predict(inputs[:-1]), self.jigsaw(inputs[-1]))

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.moco.targets(batch, predictions[:-1])

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        whole = self.moco.loss(predictions[:-1], targets)
        pieces = info_nce(predictions[-1], targets[0], self.moco.queue, self.config.temperature)
        return (1 - self.config.jigsaw) * whole + self.config.jigsaw * pieces

    def collapsed_loss(self, batch_size: int) -> float:
        return self.moco.collapsed_loss(batch_size)

    def after_step(
        self, batch: Batch, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> None:
        self.moco.after_step(batch, predictions, targets)
