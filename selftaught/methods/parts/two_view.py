"""The base of methods with one network for both views, each the pseudo-label of the other."""

from torch import Tensor, nn

from selftaught.method import Batch, Method
from selftaught.models.layers import on_views


class TwoView(Method):
    """A subclass builds `network` and defines `loss`."""

    couples_samples = True  # the comparison of samples is what prevents collapse

    network: nn.Module  # from pixels to embeddings [B, dim]

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return on_views(self.network, inputs)

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, second = predictions
        return second, first  # with their gradient, so that both views learn
