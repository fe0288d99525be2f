"""Bins of colour: a and b of Lab as classes, with soft codes and weights for rare colours."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from selftaught.distributed import all_reduce_sum, world_size
from selftaught.errors import UserError
from selftaught.methods.parts.lab import colours
from selftaught.models.layers import Counter

SPACING = 10  # between the centres of bins, in a and b
REACH = 11  # bins on each side of 0 that hold all colours of RGB
NEAREST = 5  # bins of a soft code
SIGMA = 5.0  # of its Gaussian
RARE = 1e-4  # share of the places below which the data do not occupy a bin
IMAGES = 4096  # that are measured, at most about
LEAST = 0.05  # share of the images that must have colour
NEVER = -1e4  # logit of a bin that the data do not occupy


class ColourBins(nn.Module):
    """The K bins of the colours that RGB has. Those that the data occupy are classes."""

    centres: Tensor  # [K, 2]
    occupied: Tensor  # bool [K]
    weights: Tensor  # [K], of the places whose nearest bin it is
    marginal: Tensor  # [K], the mean of all weighted codes: the best constant prediction

    def __init__(self) -> None:
        super().__init__()
        centres = torch.tensor(bins_of_rgb(), dtype=torch.float32)
        self.register_buffer("centres", centres)
        self.register_buffer("occupied", torch.ones(len(centres), dtype=torch.bool))
        self.register_buffer("weights", torch.ones(len(centres)))
        self.register_buffer("marginal", torch.full((len(centres),), 1 / len(centres)))
        self.images = Counter()

    def __len__(self) -> int:
        return len(self.centres)

    def distances(self, ab: Tensor) -> Tensor:
        """Squared distances [B, K, h, w] of colours [B, 2, h, w] from all centres."""
        a, b = self.centres.to(ab.dtype)[:, :, None, None].unbind(1)
        return (ab[:, :1] - a).square() + (ab[:, 1:] - b).square()

    def encode(self, ab: Tensor) -> Tensor:
        """Colours [B, 2, h, w] -> codes [B, K, h, w]: weights of the nearest occupied bins.

        A place's weights sum to 1.
        """
        far = self.distances(ab).masked_fill(~self.occupied[:, None, None], 1e6)
        near, bins = far.topk(NEAREST, dim=1, largest=False)
        # a softmax, because far from all bins every Gaussian is 0
        code = (-near / (2 * SIGMA**2)).softmax(1)
        return torch.zeros_like(far).scatter(1, bins, code)

    def weigh(self, code: Tensor) -> Tensor:
        """Multiply the code of each place by the weight of its nearest bin."""
        return code * self.weights.to(code.dtype)[code.argmax(1, keepdim=True)]

    def annealed_mean(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits [B, K, h, w] -> colours [B, 2, h, w]: a mean, but not so far from the mode."""
        p = (logits / temperature).softmax(1)
        return torch.einsum("bkhw,kc->bchw", p, self.centres.to(p.dtype))

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]], rebalance: float) -> None:
        """Count the colours of the first images of all processes; later calls change nothing.

        batches: colours [B, 2, h, w], and whether each image has any, [B]. `rebalance`: see
        Colorization.Config. Raises UserError where hardly any image has colour, or all have one.
        """
        if self.images.value:
            return
        coloured: list[Tensor] = []
        for ab, mask in batches:
            coloured.append(ab[mask])
            self.images.value += len(ab) * world_size()
            if self.images.value >= IMAGES:
                break
        counts = self.occupied.new_zeros(len(self), dtype=torch.float64)
        for ab in coloured:
            nearest = self.distances(ab).argmin(1)
            counts += nearest.flatten().bincount(minlength=len(self))
        number = counts.new_tensor(sum(map(len, coloured)))
        all_reduce_sum(counts), all_reduce_sum(number)
        share = number.item() / max(self.images.value, 1)
        self.occupied.copy_(counts >= max(RARE * counts.sum().item(), 1))
        bins = int(self.occupied.sum())
        if share < LEAST or bins < 2:
            content = (
                f"{share:.1%} of the images have colour" if bins != 1 else "there is one colour"
            )
            raise UserError(
                f"colorization needs images of many colours, and {content}: take another --method"
            )
        frequency = torch.zeros_like(counts)
        for ab in coloured:
            frequency += self.encode(ab).sum((0, 2, 3)).double()
        frequency = all_reduce_sum(frequency)
        frequency /= frequency.sum()
        weights = self.occupied / ((1 - rebalance) * frequency + rebalance / bins)
        self.weights.copy_(weights / (frequency * weights).sum())  # the expected weight is 1
        total = torch.zeros_like(counts)
        for ab in coloured:
            total += self.weigh(self.encode(ab)).sum((0, 2, 3)).double()
        all_reduce_sum(total)
        self.marginal.copy_(total / total.sum())


@lru_cache
def bins_of_rgb() -> tuple[tuple[int, int], ...]:
    """Return the centres (a, b) of the bins that hold a colour of the surface of the RGB cube."""
    level = torch.linspace(0, 1, 86, dtype=torch.float64)
    u, v = torch.meshgrid(level, level, indexing="ij")
    faces = [
        torch.stack(face)
        for end in (torch.zeros_like(u), torch.ones_like(u))
        for face in ((end, u, v), (u, end, v), (u, v, end))
    ]
    a, b = (colours(torch.stack(faces)) / SPACING).round().long().unbind(1)
    touched = torch.zeros(2 * REACH + 1, 2 * REACH + 1, dtype=torch.bool)
    touched[a + REACH, b + REACH] = True
    return tuple(
        (SPACING * (a - REACH), SPACING * (b - REACH)) for a, b in touched.nonzero().tolist()
    )
