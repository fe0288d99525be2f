"""A memory of all images: one embedding each, by which several methods tell an image from the
others.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import gather
from selftaught.losses import nce
from selftaught.method import Defaults, Method, Setting
from selftaught.models.layers import Counter
from selftaught.ranges import Count, Positive, Share


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Method.Config):
    """What methods with a memory share; the defaults are those of Wu et al., 2018."""

    dim: Count = 128
    # other images' rows, drawn anew each step; as many as there are images or more: each one once
    negatives: Count = 4096
    momentum: Share = 0.5  # of a row, when its image is seen again
    temperature: Positive = 0.07
    # nce estimates what softmax adds up: for memories too large to compare with
    loss: Literal["nce", "softmax"] = "nce"

    def defaults(self, setting: Setting) -> Defaults[Self]:
        """The softmax that NCE estimates is affordable, and exact where the data are small: then
        all rows take part.
        """
        return Defaults(config=replace(self, negatives=min(setting.images, 65536), loss="softmax"))


class MemoryBank(nn.Module):
    """The last embeddings of every image, of unit norm, the same on every rank (Wu et al.,
    2018).
    """

    rows: Tensor
    seen: Tensor
    log_z: Tensor

    def __init__(self, config: MemoryConfig, images: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("rows", torch.zeros(images, config.dim))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))
        # of which negatives it is: random, and ticks
        self.turn = Counter(int(torch.randint(2**62, ())))
        # NCE's constant: log of the sum of exp(v_j f / T) over all images
        self.register_buffer("log_z", torch.zeros(()))

    def others(self) -> Tensor:
        """Rows to compare with: [K] of those seen, the same on every rank and for every loss of a
        step.
        """
        known = self.seen.nonzero()[:, 0]
        if self.config.negatives >= len(self.rows):
            return known
        rng = torch.Generator().manual_seed(self.turn.value)
        return known[
            torch.randint(len(known), (self.config.negatives,), generator=rng).to(known.device)
        ]

    def loss(self, embedding: Tensor, index: Tensor) -> Tensor:
        """Recognise image `index` [B] by its row, from `embedding` [B, D]; -1, or a row never seen,
        counts nothing.
        """
        known = (index >= 0) & self.seen[index]
        if not known.any():
            return 0 * embedding.sum()
        share, index = known.to(embedding).mean(), index[known]
        query, rows = embedding[known] / self.config.temperature, self.rows.to(embedding)
        others = self.others()
        own, rest = (query * rows[index]).sum(1), query @ rows[others].T
        if self.config.loss == "nce":  # an image's own row may be drawn as noise, as in theory
            return share * nce(own - self.log_z, rest - self.log_z, len(rows))
        rest = rest.masked_fill(others == index[:, None], -torch.inf)
        return share * F.cross_entropy(torch.cat([own[:, None], rest], 1), torch.zeros_like(index))

    def collapsed_loss(self, batch_size: int) -> float | None:
        known = min(self.config.negatives + 1, len(self.rows))
        return math.log(known) if self.config.loss == "softmax" else None

    @torch.no_grad()
    def fill(self, embedded: Iterable[tuple[Tensor, Tensor]], asking: Tensor | None = None) -> None:
        """Begin with what the untrained network says of each image: `index` [B] and embedding [B,
        D], batch by batch.

        `asking`: embeddings of the first batch that will be compared with the rows, where they are
        not of the rows' kind.
        """
        if self.seen.any():
            return  # and `embedded`, being lazy, is never computed
        for index, embedding in embedded:
            asking = embedding if asking is None else asking
            self.remember(index, embedding)
        if (
            asking is not None and self.seen.any()
        ):  # Z is the sum over all images, as the first batch finds it
            with torch.autocast(
                asking.device.type, enabled=False
            ):  # bf16's three digits would stay for the whole run
                among = (
                    gather(asking.to(self.rows))
                    @ self.rows[self.seen][:65536].T
                    / self.config.temperature
                )
            self.log_z.copy_(
                among.logsumexp((0, 1)) - math.log(among.numel()) + math.log(len(self.rows))
            )

    @torch.no_grad()
    def remember(self, index: Tensor, embedding: Tensor) -> None:
        """Move rows `index` [B] towards `embedding` [B, D] (Wu et al., 2018, section 3.2); -1 is no
        image.
        """
        index, new = gather(index), gather(embedding.detach().to(self.rows))
        index, new = index[index >= 0], new[index >= 0]
        # nothing of it, the first time
        old = self.config.momentum * self.seen[index].to(new)[:, None]
        self.rows[index] = F.normalize(old * self.rows[index] + (1 - old) * new, dim=1)
        self.seen[index] = True
        self.turn.value += 1
