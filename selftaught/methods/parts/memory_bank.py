"""The memory bank: one embedding of each image, from which several methods take negatives."""

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
    """Hyperparameters of methods with a memory bank. The defaults are those of Wu et al., 2018."""

    dim: Count = 128
    # random rows of other images a step; all rows where the number is not below that of the images
    negatives: Count = 4096
    momentum: Share = 0.5  # of a row when its image comes again
    temperature: Positive = 0.07
    # nce is an estimate of softmax over all rows, for memory banks that are too large for it
    loss: Literal["nce", "softmax"] = "nce"

    def defaults(self, setting: Setting) -> Defaults[Self]:
        """Use the softmax over up to 65,536 rows. For small data it is exact."""
        return Defaults(config=replace(self, negatives=min(setting.images, 65536), loss="softmax"))


class MemoryBank(nn.Module):
    """One moving average of embeddings for each image, of unit norm (Wu et al., 2018).

    It is the same on every rank.
    """

    rows: Tensor
    seen: Tensor
    log_z: Tensor

    def __init__(self, config: MemoryConfig, images: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("rows", torch.zeros(images, config.dim))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.bool))
        # seed of the negatives: random at first, and one more each step
        self.turn = Counter(int(torch.randint(2**62, ())))
        # NCE's constant: log of the sum of exp(v_j f / T) over all images
        self.register_buffer("log_z", torch.zeros(()))

    def others(self) -> Tensor:
        """Draw the indices [K] of the negatives among the filled rows.

        They are the same on every rank and for every loss of a step.
        """
        filled = self.seen.nonzero()[:, 0]
        if self.config.negatives >= len(self.rows):
            return filled
        rng = torch.Generator().manual_seed(self.turn.value)
        choice = torch.randint(len(filled), (self.config.negatives,), generator=rng)
        return filled[choice.to(filled.device)]

    def loss(self, embedding: Tensor, index: Tensor) -> Tensor:
        """Loss of finding the rows of images `index` [B] from `embedding` [B, D], a scalar.

        An index of -1, and one of an empty row, counts as a loss of 0.
        """
        valid = (index >= 0) & self.seen[index]
        if not valid.any():
            return 0 * embedding.sum()
        share, index = valid.to(embedding).mean(), index[valid]
        query, rows = embedding[valid] / self.config.temperature, self.rows.to(embedding)
        others = self.others()
        own, rest = (query * rows[index]).sum(1), query @ rows[others].T
        if self.config.loss == "nce":  # in NCE's theory, too, the noise includes the own row
            return share * nce(own - self.log_z, rest - self.log_z, len(rows))
        rest = rest.masked_fill(others == index[:, None], -torch.inf)
        return share * F.cross_entropy(torch.cat([own[:, None], rest], 1), torch.zeros_like(index))

    def collapsed_loss(self, batch_size: int) -> float | None:
        """Return the loss of a constant output. See `Method.collapsed_loss`."""
        rows = min(self.config.negatives + 1, len(self.rows))
        return math.log(rows) if self.config.loss == "softmax" else None

    @torch.no_grad()
    def fill(self, batches: Iterable[tuple[Tensor, Tensor]], queries: Tensor | None = None) -> None:
        """Fill an empty bank with embeddings of the first network, and estimate `log_z`.

        `batches`: index [B] and embedding [B, D] of each batch. `queries`: the first batch's
        embeddings that will be compared with the rows; by default those of `batches`.
        """
        if self.seen.any():
            return  # `batches` is lazy, so nothing is computed
        for index, embedding in batches:
            queries = embedding if queries is None else queries
            self.remember(index, embedding)
        if queries is not None and self.seen.any():
            # Z is a sum over all images, estimated from the first batch. It stays for the whole
            # run, so it is not computed in bf16.
            with torch.autocast(queries.device.type, enabled=False):
                rows = self.rows[self.seen][:65536]
                logits = gather(queries.to(self.rows)) @ rows.T / self.config.temperature
            self.log_z.copy_(
                logits.logsumexp((0, 1)) - math.log(logits.numel()) + math.log(len(self.rows))
            )

    @torch.no_grad()
    def remember(self, index: Tensor, embedding: Tensor) -> None:
        """Move rows `index` [B] towards `embedding` [B, D] (Wu et al., 2018, section 3.2).

        An index of -1 is skipped.
        """
        index, new = gather(index), gather(embedding.detach().to(self.rows))
        index, new = index[index >= 0], new[index >= 0]
        # an empty row has weight 0
        old = self.config.momentum * self.seen[index].to(new)[:, None]
        self.rows[index] = F.normalize(old * self.rows[index] + (1 - old) * new, dim=1)
        self.seen[index] = True
        self.turn.value += 1
