"""A check of the pixels that are passed to a loaded backbone."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_MAX, _MIN = 1.5, -0.25  # resampling overshoots [0, 1] by less than this
_NORMALISED_MAX = 20.0  # normalised pixels stay below this


class PixelCheck:
    """A forward pre-hook that converts pixels [B, 3, H, W] to floats in [0, 1].

    uint8 is divided by 255; float64 is cast to the type of the weights. Raises ValueError for other
    shapes, other integers, and floats above 1; warns of floats that look normalised. On a GPU only
    the first batch is checked, because each check synchronises.
    """

    def __init__(self) -> None:
        self.checked = False

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], Any]:
        kwargs = dict(kwargs)
        pixels, *rest = args or (kwargs.pop("pixels", None),)
        if not isinstance(pixels, Tensor):
            raise ValueError(
                f"a {type(pixels).__name__} is no batch of images: give a tensor [B, 3, H, W] in"
                " [0, 1]"
            )
        return (self.convert(pixels, module), *rest), kwargs

    def convert(self, pixels: Tensor, module: nn.Module) -> Tensor:
        """Pixels as floats; raises ValueError for a wrong shape, type or range."""
        shape = tuple(pixels.shape)
        if pixels.ndim != 4 or shape[1] != 3:
            advice = ""
            if pixels.ndim == 4 and shape[3] == 3:
                advice = "; channels come second: pixels.permute(0, 3, 1, 2)"
            elif pixels.ndim == 3 and shape[2] == 3:
                advice = "; channels come first: pixels.permute(2, 0, 1)[None]"
            elif pixels.ndim == 3 and shape[0] == 3:
                advice = "; add a dimension in front"
            raise ValueError(
                f"pixels of shape {list(shape)} ({pixels.dtype}) are no batch of images [B, 3, H,"
                f" W]{advice}"
            )
        weights = next(
            (p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32
        )
        if pixels.dtype == torch.uint8:
            return pixels.to(weights) / 255
        if not pixels.is_floating_point():
            raise ValueError(
                f"{pixels.dtype} pixels: give uint8 in 0..255 or floats in [0,"
                f" 1]{self.describe_range(module)}"
            )
        has_values = pixels.numel() and not (torch.compiler.is_compiling() or pixels.is_meta)
        if has_values and not (self.checked and pixels.is_cuda):
            self.checked = True
            self.check_values(pixels.detach(), module)
        return pixels.to(weights) if pixels.dtype == torch.float64 else pixels

    def check_values(self, pixels: Tensor, module: nn.Module) -> None:
        """Raise ValueError for values above 1; warn of values that look normalised."""
        low, high = (float(value) for value in pixels.aminmax())
        if high > _NORMALISED_MAX or (high > _MAX and low >= 0):
            raise ValueError(
                f"{pixels.dtype} pixels up to {high:.5g}: give floats in [0, 1], such as pixels /"
                f" 255{self.describe_range(module)}"
            )
        if high > _MAX or low < _MIN:
            warnings.warn(
                f"pixels from {low:.3g} to {high:.3g} look normalised: give them in [0, 1], the"
                " backbone normalises them",
                stacklevel=2,
            )

    @staticmethod
    def describe_range(module: nn.Module) -> str:
        """The values of more than 8 bits that were 0 and 1 in training, as text."""
        pixel_range = getattr(module, "pixel_range", None)
        pairs = (
            [pair for pair in (pixel_range.integers, pixel_range.floats) if pair]
            if pixel_range is not None
            else []
        )
        return "".join(
            f"; in training {low:,.6g} was 0 and {high:,.6g} was 1" for low, high in pairs
        )
