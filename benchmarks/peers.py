"""Methods as lightly ships them in its examples, for side-by-side runs: its transforms, heads,
losses and optimizers.

Each has the widths, temperatures and rates of the example of its name in lightly 1.6
(examples/pytorch), which are what somebody who takes that library begins with. Needs `pip install
'selftaught[bench]'`.
"""

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.data.index.build import build_index
from selftaught.models import backbone as backbone_module
from selftaught.models.weights import io as weights_io

RATE = 0.06  # of SGD without momentum, in all examples but SwAV's


@dataclass
class Peer:
    """What an example makes: its modules, the views it asks for, and the loss of one batch of
    views.
    """

    modules: nn.Module
    transform: Any
    loss: Callable[[list[Tensor], float], Tensor]  # of the views, at a share of training
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = lambda p: (
        torch.optim.SGD(p, lr=RATE)
    )


def moco(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import MoCoV2Transform

    student = nn.Sequential(backbone, MoCoProjectionHead(512, 512, 128))
    teacher = copy.deepcopy(student).requires_grad_(False)
    criterion = NTXentLoss(memory_bank_size=(4096, 128))

    def loss(views: list[Tensor], progress: float) -> Tensor:
        update_momentum(student, teacher, m=cosine(progress, 0.996))
        return criterion(student(views[0]), teacher(views[1]).detach())

    return Peer(nn.ModuleList([student, criterion]), MoCoV2Transform(input_size=size), loss)


def simclr(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    student, criterion = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128)), NTXentLoss()
    return Peer(
        student,
        SimCLRTransform(input_size=size),
        lambda v, _: criterion(student(v[0]), student(v[1])),
    )


def byol(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms.byol_transform import (
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )

    student, predictor = (
        nn.Sequential(backbone, BYOLProjectionHead(512, 1024, 256)),
        BYOLPredictionHead(256, 1024, 256),
    )
    teacher = copy.deepcopy(student).requires_grad_(False)
    criterion = NegativeCosineSimilarity()

    def loss(views: list[Tensor], progress: float) -> Tensor:
        update_momentum(student, teacher, m=cosine(progress, 0.996))
        p0, p1 = predictor(student(views[0])), predictor(student(views[1]))
        z0, z1 = teacher(views[0]).detach(), teacher(views[1]).detach()
        return (criterion(p0, z1) + criterion(p1, z0)) / 2

    first, second = BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size)
    return Peer(nn.ModuleList([student, predictor]), BYOLTransform(first, second), loss)


def simsiam(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from lightly.transforms import SimSiamTransform

    student, predictor = (
        nn.Sequential(backbone, SimSiamProjectionHead(512, 512, 128)),
        SimSiamPredictionHead(128, 64, 128),
    )
    criterion = NegativeCosineSimilarity()

    def loss(views: list[Tensor], _: float) -> Tensor:
        z0, z1 = student(views[0]), student(views[1])
        return (criterion(predictor(z0), z1.detach()) + criterion(predictor(z1), z0.detach())) / 2

    return Peer(nn.ModuleList([student, predictor]), SimSiamTransform(input_size=size), loss)


def barlow_twins(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules import BarlowTwinsProjectionHead
    from lightly.transforms.byol_transform import (
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )

    student, criterion = (
        nn.Sequential(backbone, BarlowTwinsProjectionHead(512, 2048, 2048)),
        BarlowTwinsLoss(),
    )
    views = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
    return Peer(student, views, lambda v, _: criterion(student(v[0]), student(v[1])))


def vicreg(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import VICRegLoss
    from lightly.models.modules import BarlowTwinsProjectionHead
    from lightly.transforms import VICRegTransform

    student, criterion = (
        nn.Sequential(backbone, BarlowTwinsProjectionHead(512, 2048, 2048)),
        VICRegLoss(),
    )
    return Peer(
        student,
        VICRegTransform(input_size=size),
        lambda v, _: criterion(student(v[0]), student(v[1])),
    )


def swav(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
    from lightly.transforms import SwaVTransform

    head, prototypes, criterion = (
        SwaVProjectionHead(512, 512, 128),
        SwaVPrototypes(128, n_prototypes=512),
        SwaVLoss(),
    )

    def loss(views: list[Tensor], _: float) -> Tensor:
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(head(backbone(v)), dim=1, p=2)) for v in views]
        return criterion(scores[:2], scores[2:])

    crops = SwaVTransform(crop_sizes=(size, size // 4 * 2))
    return Peer(
        nn.ModuleList([backbone, head, prototypes]),
        crops,
        loss,
        lambda p: torch.optim.Adam(p, lr=0.001),
    )


class Dense(nn.Module):
    """One embedding of an image and one of each place: features [B, P, 512], [B, 128], [B, P,
    128].
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        from lightly.models.modules import DenseCLProjectionHead

        self.backbone = backbone
        self.whole, self.places = (
            DenseCLProjectionHead(512, 512, 128),
            DenseCLProjectionHead(512, 512, 128),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features: Tensor = self.backbone.forward_features(x)
        mapped = features.flatten(2).transpose(1, 2)
        return mapped, self.whole(features.mean((2, 3))), self.places(mapped)


def densecl(backbone: nn.Module, size: int) -> Peer:
    from lightly.loss import NTXentLoss
    from lightly.models.utils import select_most_similar, update_momentum
    from lightly.transforms import DenseCLTransform

    student = Dense(backbone)
    teacher = copy.deepcopy(student).requires_grad_(False)
    whole, places = (NTXentLoss(memory_bank_size=(4096, 128)) for _ in range(2))

    def loss(views: list[Tensor], progress: float) -> Tensor:
        update_momentum(student, teacher, m=cosine(progress, 0.996))
        mapped, image, place = student(views[0])
        with torch.no_grad():
            their_map, their_image, their_place = teacher(views[1])
            matched = select_most_similar(mapped, their_map, their_place)
        return (whole(image, their_image) + places(place.flatten(0, 1), matched.flatten(0, 1))) / 2

    return Peer(nn.ModuleList([student, whole, places]), DenseCLTransform(input_size=size), loss)


PEERS: dict[str, Callable[[nn.Module, int], Peer]] = {
    "barlow-twins": barlow_twins,
    "byol": byol,
    "densecl": densecl,
    "moco-v2": moco,
    "simclr": simclr,
    "simsiam": simsiam,
    "swav": swav,
    "vicreg": vicreg,
}


def cosine(progress: float, start: float) -> float:
    """A momentum that rises to 1 by half a cosine."""
    return 1 - (1 - start) * (1 + float(torch.cos(torch.tensor(torch.pi * progress)))) / 2


class Pictures(torch.utils.data.Dataset[list[Tensor]]):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[Tensor]:
        from PIL import Image

        views: list[Tensor] = self.transform(Image.open(self.paths[i]).convert("RGB"))
        return views


def train(
    name: str, data: str, folder: Path, *, size: int, batch: int, steps: int, seed: int
) -> Path:
    """Train as the example does, for `steps`, on the images that selftaught would train on; write
    its backbone.
    """
    torch.manual_seed(seed)
    index = build_index([Path(data)], seed=seed)
    backbone = backbone_module.create("resnet18", image_size=size)
    network: Any = backbone.network
    peer = PEERS[name](network, size)
    optimizer = peer.optimizer(p for p in peer.modules.parameters() if p.requires_grad)
    pictures = Pictures([index.paths[i] for i in index.train.tolist()], peer.transform)
    loader = torch.utils.data.DataLoader(pictures, batch, shuffle=True, drop_last=True)
    peer.modules.train()
    began, step = time.perf_counter(), 0
    while step < steps:
        for views in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = peer.loss(views, step / steps)
            optimizer.zero_grad()
            loss.float().backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == steps:
                print(
                    f"lightly {name}: step {step} of {steps}, loss {float(loss.detach()):.3f}",
                    flush=True,
                )
            if step == steps:
                break
    backbone.view_size = size
    weights_io.save_backbone(backbone, folder / "backbone.safetensors")
    seconds = time.perf_counter() - began
    (folder / "peer.json").write_text(
        json.dumps(
            {"seconds": seconds, "steps": steps, "loss": float(loss.detach()), "outcome": "done"}
        )
    )
    return folder


def facts(folder: Path) -> dict[str, Any]:
    """Of a peer that `train` has left there: seconds, steps, loss, outcome."""
    result: dict[str, Any] = json.loads((folder / "peer.json").read_text())
    return result
