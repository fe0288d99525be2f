"""DenseCL (Wang et al., 2020, https://arxiv.org/abs/2011.09157)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import gather, shuffle_batch, unshuffle_batch
from selftaught.errors import UserError
from selftaught.losses import info_nce, most_similar
from selftaught.method import Batch, Encoder, Method, Setup, map_tensors
from selftaught.methods.contrastive.moco import check_queue, enqueue, random_keys
from selftaught.methods.contrastive.moco_v2 import MoCoV2
from selftaught.models.layers import Normalize, mlp
from selftaught.models.teacher import Teacher
from selftaught.ranges import Share

# the outputs for a view: embedding [B, D], those of its places [B, D, S], the map [B, C, S]
Outputs = tuple[Tensor, Tensor, Tensor]


class DenseCL(Method):
    """MoCo v2 on whole views, and on places: a place's positive is the most similar other one."""

    paper = "Wang et al., 2020, https://arxiv.org/abs/2011.09157"
    queue: Tensor
    dense_queue: Tensor
    oldest: Tensor
    local_batch_norm: ClassVar[bool] = True  # as in MoCo

    @dataclass(frozen=True, kw_only=True)
    class Config(MoCoV2.Config):
        dense: Share = 0.5  # weight of the places' loss; whole views have the rest of 1
        # share of training without the places' loss: an untrained backbone cannot match places
        dense_start: Share = 0.01

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        check_queue(config.queue, setup.images)
        self.config = config
        self.network = _TwoHeads(setup.backbone, config.hidden, config.dim)
        self.teacher = Teacher(self.network)
        self.register_buffer("queue", random_keys(config.queue, config.dim))
        # its keys are the mean embedding of a view's places
        self.register_buffer("dense_queue", random_keys(config.queue, config.dim))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2] if self.config.symmetric else batch.views[:1]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Outputs, ...]:
        return tuple(self.network(queries) for queries in inputs)

    def targets(self, batch: Batch, predictions: tuple[Outputs, ...]) -> tuple[Outputs, ...]:
        others = batch.views[1::-1][: len(predictions)]
        return tuple(
            map_tensors(unshuffle_batch, self.teacher(shuffle_batch(keys))) for keys in others
        )

    def loss(self, predictions: tuple[Outputs, ...], targets: tuple[Outputs, ...]) -> Tensor:
        t = self.config.temperature
        dense = self.config.dense if self.progress >= self.config.dense_start else 0.0
        losses = []
        for prediction, target in zip(predictions, targets, strict=True):
            query, places, feature_map = prediction
            key, key_places, key_map = target
            match = most_similar(feature_map, key_map)[:, None].expand_as(places)
            positives = key_places.gather(2, match)  # [B, D, S]
            parts = info_nce(_rows(places), _rows(positives), self.dense_queue, t)
            losses.append((1 - dense) * info_nce(query, key, self.queue, t) + dense * parts)
        return torch.stack(losses).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        return math.log(self.config.queue + 1)

    @torch.no_grad()
    def after_step(
        self, batch: Batch, predictions: tuple[Outputs, ...], targets: tuple[Outputs, ...]
    ) -> None:
        self.teacher.follow(self.network, self.config.momentum)
        keys = torch.cat([gather(key) for key, _, _ in targets])
        mean_places = torch.cat([gather(places.mean(2)) for _, places, _ in targets])
        enqueue(self.dense_queue, F.normalize(mean_places, dim=1), self.oldest)
        self.oldest.copy_(enqueue(self.queue, keys, self.oldest))


class _TwoHeads(nn.Module):
    """Pixels [B, 3, H, W] -> `Outputs`."""

    def __init__(self, backbone: Encoder, hidden: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            mlp(backbone.features, hidden, dim, batch_norm=False), Normalize()
        )
        # the same mlp at each place
        widen, narrow = (nn.Conv1d(backbone.channels, hidden, 1), nn.Conv1d(hidden, dim, 1))
        self.dense_head = nn.Sequential(widen, nn.ReLU(), narrow, Normalize())

    def forward(self, pixels: Tensor) -> Outputs:
        features, feature_map = self.backbone.with_map(pixels)
        if feature_map.shape[2:].numel() == 1:
            raise UserError(
                "the feature map of a view has only one place: take larger views (--size), or"
                " --stem cifar"
            )
        feature_map = feature_map.flatten(2)
        # the map only serves to match places, so it is detached
        return self.head(features), self.dense_head(feature_map), feature_map.detach()


def _rows(places: Tensor) -> Tensor:
    return places.transpose(1, 2).flatten(0, 1)  # [B, D, S] -> [B * S, D]
