"""Strided convolutions with correct gradients on maps of one pixel."""

from torch import Tensor, nn


class StridedConv2d(nn.Conv2d):
    """A convolution that uses only its middle tap on a map of one pixel.

    The other taps lie in the padding there. In bfloat16 on a CPU, oneDNN (torch 2.15) does not
    write their gradients if the convolution has a stride. They are uninitialised memory then.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1):
            return super().forward(x)
        high, wide = (side // 2 for side in self.kernel_size)
        tap = self.weight[:, :, high : high + 1, wide : wide + 1]
        return nn.functional.conv2d(x, tap, self.bias, groups=self.groups)


def replace_strided_convs(network: nn.Module) -> nn.Module:
    """Make the network's strided convolutions StridedConv2d, in place, and return the network."""
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and max(module.stride) > 1
            and module.dilation == (1, 1)
            and _is_centred(module)
        ):
            module.__class__ = StridedConv2d
    return network


def _is_centred(conv: nn.Conv2d) -> bool:
    """Whether the padding puts the middle tap on the first pixel."""
    sides = () if isinstance(conv.padding, str) else tuple(2 * side + 1 for side in conv.padding)
    return conv.kernel_size == sides != (1, 1)
