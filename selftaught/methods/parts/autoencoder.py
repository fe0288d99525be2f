"""A small convolutional autoencoder (Jenni & Favaro, 2018, https://arxiv.org/abs/1806.05024)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.models.layers import resize

LEAK = 0.1  # slope of the activation below 0

# A change of the input of a decoder's block: the block's number and its input -> its new input
Change = Callable[[int, Tensor], Tensor]


def conv_block(
    inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolution with square kernels, batch norm, and a leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(LEAK),
    )


class Autoencoder(nn.Module):
    """Pixels [B, 3, H, W] in [0, 1] -> a code [B, C, h, w] -> pixels.

    width: channels of the first layer; each of the `blocks` convolutions after it doubles them, and
    halves the sides.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.widths = [width * 2**i for i in range(blocks + 1)]
        halving = [conv_block(i, o, 2, stride=2) for i, o in pairwise(self.widths)]
        self.encoder = nn.Sequential(conv_block(3, width, 3, padding=1), *halving)
        self.decoder = CodeDecoder(self.widths[::-1])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code and the decoded pixels."""
        code = self.encoder(pixels)
        return code, self.decoder(code, pixels.shape[2:])

    def code_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the code of a view of `size`."""
        height, width = (side >> (len(self.widths) - 1) for side in size)
        return height, width


class CodeDecoder(nn.Module):
    """A code [B, C, h, w] -> pixels [B, 3, H, W] in [0, 1].

    Each block enlarges its input to the size that the encoder had there, and convolves it.
    `widths`: channels of the blocks' inputs.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_block(i, o, 3, padding=1) for i, o in pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(
        self, code: Tensor, size: Sequence[int], change: Change = lambda number, x: x
    ) -> Tensor:
        """`change`: that of the input of each block, and of the last layer."""
        x = code
        for number, block in enumerate(self.blocks):
            left = len(self.blocks) - 1 - number
            x = block(resize(change(number, x), [side >> left for side in size]))
        return self.leave(change(len(self.blocks), x)).sigmoid()


def load_autoencoder(autoencoder: Autoencoder, state: Any, source: str) -> None:
    """Load the weights of an autoencoder from the state of the method of the run `source`.

    Raises UserError where it has none, or one of other sizes.
    """
    prefix = "autoencoder."
    if not isinstance(state, Mapping):
        raise ValueError("the state of the earlier run is needed in Setup.previous")
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not own:
        raise UserError(f"{source} has no autoencoder: give a run of spotting-artifacts")
    try:
        autoencoder.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(
            f"the autoencoder of {source} has other sizes: give --method.width and --method.blocks"
            " as in that run"
        ) from error
