"""What methods share that let both views of an image meet in one network, and each be the other's
pseudo-label.
"""

from torch import Tensor, nn

from selftaught.method import Batch, Method
from selftaught.models.layers import on_views


class TwoView(Method):
    """A method of this kind makes the network, and says how embeddings are compared."""

    couples_samples = True  # that is what keeps them apart

    network: nn.Module  # from pixels to embeddings [B, dim]

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return on_views(self.network, inputs)

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, second = predictions
        return second, first  # with their gradient: both views move
