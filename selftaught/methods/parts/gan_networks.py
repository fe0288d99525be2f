"""Generator and discriminators of generative adversarial methods, for small pictures of any size.

The layers are in the order of DCGAN (Radford et al., 2015, https://arxiv.org/abs/1511.06434).
Discriminators have spectral norms (Miyato et al., 2018, https://arxiv.org/abs/1802.05957) and no
batch norm. So they are called by `two_player.call_pure`.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from selftaught.methods.parts.decoder import build_blocks, enlarge
from selftaught.models.layers import resize

# rows and columns of a generator's first map, and of a discriminator's last one
SIDE = 4


class Generator(nn.Module):
    """Codes [B, `dim`] -> pictures [B, 3, H, W] in [0, 1]. hidden: channels of the first map."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        widths = [hidden, hidden, max(hidden // 2, 1), max(hidden // 4, 1)]
        self.enter = nn.Linear(dim, hidden * SIDE**2)
        self.blocks = build_blocks(widths)
        self.leave = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, codes: Tensor, size: tuple[int, int]) -> Tensor:
        x = F.relu(self.enter(codes).unflatten(1, (-1, SIDE, SIDE)))
        return torch.sigmoid(self.leave(enlarge(x, self.blocks, size)))


class PictureFeatures(nn.Module):
    """Pictures [B, 3, H, W] in [0, 1] -> features [B, `hidden`] of a discriminator."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        widths = [3, max(hidden // 2, 1), hidden, 2 * hidden]
        self.convs = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 3, 2, 1)) for i, o in pairwise(widths)
        )
        self.whole = spectral_norm(nn.Linear(widths[-1] * SIDE**2, hidden))

    def forward(self, pictures: Tensor) -> Tensor:
        x = 2 * pictures - 1
        for conv in self.convs:
            x = leak(conv(x))
        return leak(self.whole(resize(x, (SIDE, SIDE)).flatten(1)))


class PictureDiscriminator(nn.Module):
    """Pictures [B, 3, H, W] in [0, 1] -> scores [B], high for real ones."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.features = PictureFeatures(hidden)
        self.score = spectral_norm(nn.Linear(hidden, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.score(self.features(pictures))[:, 0]
        return scores


class PairDiscriminator(nn.Module):
    """Pictures [B, 3, H, W] and codes [B, `dim`] -> scores, high for images with their codes.

    The scores are [B, 1], of the pairs. With `alone` they are [B, 3]: of the pictures alone, of the
    codes alone, and of the pairs. The score of a pair also has the inner product of its two parts
    (Miyato & Koyama, 2018, https://arxiv.org/abs/1802.05637). Without it the score is nearly a
    picture's plus a code's, and says next to nothing of whether they fit each other.
    """

    def __init__(self, dim: int, hidden: int, alone: bool) -> None:
        super().__init__()
        self.pictures = PictureFeatures(hidden)
        self.codes = nn.ModuleList(spectral_norm(nn.Linear(i, hidden)) for i in (dim, hidden))
        self.pair = spectral_norm(nn.Linear(2 * hidden, hidden))
        self.fit_picture, self.fit_code = (
            spectral_norm(nn.Linear(hidden, hidden)) for _ in range(2)
        )
        # Spectral norms bound both parts, and their products cancel out in part.
        self.fit_scale = math.sqrt(hidden)
        # Hinges that are all active leave a bias without a gradient.
        self.scores = nn.ModuleList(
            spectral_norm(nn.Linear(hidden, 1, bias=False)) for _ in range(3 if alone else 1)
        )

    def forward(self, pictures: Tensor, codes: Tensor) -> Tensor:
        of_picture, of_code = self.pictures(pictures), codes
        for layer in self.codes:
            of_code = leak(layer(of_code))
        of_pair = leak(self.pair(torch.cat([of_picture, of_code], 1)))
        features = (of_picture, of_code, of_pair)[-len(self.scores) :]
        *alone, pair = (score(x) for score, x in zip(self.scores, features, strict=True))
        fit = (self.fit_picture(of_picture) * self.fit_code(of_code)).sum(1, keepdim=True)
        return torch.cat([*alone, pair + self.fit_scale * fit], 1)


def leak(x: Tensor) -> Tensor:
    """The leaky ReLU of discriminators."""
    return F.leaky_relu(x, 0.2)
