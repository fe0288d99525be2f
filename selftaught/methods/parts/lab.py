"""CIELAB: the lightness and the colours of sRGB images, and images of both."""

from functools import lru_cache

import torch
from torch import Tensor

# from linear RGB
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
KNEE = 6 / 29  # Lab's cube root is linear below this value
LIGHTNESS = 60.0  # of 100: at this lightness most colours fit into RGB
GREY = 0.01  # mean difference of the channels up to which a view counts as grey


def has_colour(pixels: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> bool [B]: whether an image has colour."""
    return (pixels.amax(1) - pixels.amin(1)).mean((1, 2)) > GREY


def light_and_colour(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Split images into L of Lab, as grey images, and ab at one lightness.

    The images and both results are sRGB [B, 3, H, W] in [0, 1]. Colours outside RGB at that
    lightness are clipped.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        luminance, root = _roots(pixels)
        # a and b are differences of the roots, so a shift leaves them unchanged
        shift = root - root[:, 1:2] + (LIGHTNESS + 16) / 116
        return _gamma(luminance).expand_as(pixels), _from_roots(shift)


def lightness(pixels: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> grey images of the same L, [B, 3, H, W]."""
    with torch.autocast(pixels.device.type, enabled=False):
        return _gamma(_roots(pixels)[0]).expand_as(pixels)


def colours(pixels: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> a and b of Lab, [B, 2, H, W], about -110 to 110."""
    with torch.autocast(pixels.device.type, enabled=False):
        x, y, z = _roots(pixels)[1].unbind(1)
        return torch.stack([500 * (x - y), 200 * (y - z)], 1)


def paint(grey: Tensor, ab: Tensor) -> Tensor:
    """Return images [B, 3, H, W] of the lightness of `grey`, [B, 3, H, W], and ab [B, 2, H, W].

    Colours outside RGB at that lightness are clipped.
    """
    with torch.autocast(grey.device.type, enabled=False):
        y = _roots(grey)[1][:, 1]
        return _from_roots(torch.stack([y + ab[:, 0] / 500, y, y - ab[:, 1] / 200], 1))


def _roots(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance [B, 1, H, W], relative to white, and the roots of XYZ [B, 3, H, W]."""
    to_xyz, _, white = _matrices(pixels.device, pixels.dtype)
    linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear) / white
    root = torch.where(xyz > KNEE**3, xyz ** (1 / 3), xyz / (3 * KNEE**2) + 4 / 29)
    return xyz[:, 1:2], root


def _from_roots(root: Tensor) -> Tensor:
    _, to_rgb, white = _matrices(root.device, root.dtype)
    cube = torch.where(root > KNEE, root**3, 3 * KNEE**2 * (root - 4 / 29))
    return _gamma(torch.einsum("ij,bjhw->bihw", to_rgb, cube * white))


@lru_cache
def _matrices(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices from linear RGB to XYZ and back, and the XYZ of white [3, 1, 1].

    They are cached by device and type, so that they are sent once.
    """
    matrix = torch.tensor(TO_XYZ, dtype=torch.float64)
    to_xyz, to_rgb, white = (
        x.to(device, dtype) for x in (matrix, matrix.inverse(), matrix.sum(1)[:, None, None])
    )
    return to_xyz, to_rgb, white


def _gamma(linear: Tensor) -> Tensor:
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
