"""Convolutions whose gradients are right on the smallest maps, too."""

from torch import Tensor, nn


class Strided(nn.Conv2d):
    """A convolution that sees of a map of one pixel only what its middle tap does: the others lie
    in the padding.

    With a stride, in bfloat16 on a CPU, oneDNN (torch 2.15) leaves their gradients unwritten:
    whatever memory held.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (1, 1):
            return super().forward(x)
        high, wide = (side // 2 for side in self.kernel_size)
        tap = self.weight[:, :, high : high + 1, wide : wide + 1]
        return nn.functional.conv2d(x, tap, self.bias, groups=self.groups)


def safe(network: nn.Module) -> nn.Module:
    """The network with its strided convolutions made safe for maps of one pixel, in place; names
    and weights stay.
    """
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and max(module.stride) > 1
            and module.dilation == (1, 1)
            and _centred(module)
        ):
            module.__class__ = Strided
    return network


def _centred(conv: nn.Conv2d) -> bool:
    """Whether its middle tap lies on the first pixel, and the others in the padding before it or
    beyond.
    """
    sides = () if isinstance(conv.padding, str) else tuple(2 * side + 1 for side in conv.padding)
    return conv.kernel_size == sides != (1, 1)
