"""Images through a frozen backbone, once: features in the order asked for, kept on disk for the
next evaluation.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from selftaught.distributed import any_rank, gather, local_share, rank
from selftaught.errors import FileError, UserError
from selftaught.files import atomic


class Images(Protocol):
    """What is needed of images: `images[i]` uint8 [3, C, C], `len(images)` and `images.aspect` [N]
    (width / height).
    """

    @property
    def aspect(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@torch.no_grad()
def extract(
    backbone: nn.Module,
    images: Images,
    positions: Tensor,
    *,
    size: int,
    batch: int = 256,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 0,
    share: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The features [n, D] float32 (on the CPU) of `images` at `positions` [n], in that order.

    The centre square of `share` of the short side, `size` pixels wide, goes through the backbone in
    evaluation mode (batch norm by its running statistics) without gradients; every module's mode is
    what it was afterwards. Images that are not held in memory are decoded by `workers` processes.
    The backbone must be on `device` already. Of several processes all call it: each computes a
    share, and all get the whole.
    """
    from selftaught.views.augment import centre

    device = torch.device(device)
    wanted, positions = len(positions), local_share(positions.cpu())
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    parts: list[Tensor] = []
    done = 0
    groups = getattr(images, "groups", None)
    order = (
        groups.sort_by_group(positions)
        if groups is not None and groups.exceeds_cache
        else torch.arange(len(positions))
    )
    positions = positions[order]  # each row group of a large store is read once
    try:
        for pixels, where in _canvases(images, positions, batch, workers):
            views = centre(pixels.to(device), images.aspect[where].to(device), size, share)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                parts.append(backbone(views).float().cpu())
            done += len(where)
            if on_progress is not None:
                on_progress(done, len(positions))
    finally:
        for (
            module,
            training,
        ) in modes.items():  # not backbone.train(): parts of it may have been frozen
            module.training = training
    if not parts:
        return torch.empty(0, int(getattr(backbone, "features", 0)))
    return gather(torch.cat(parts)[order.argsort()].to(device)).cpu()[:wanted]


def _canvases(
    images: Images, positions: Tensor, batch: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if len(positions) == 0:  # split would give one empty batch
        return
    if workers > 0 and not getattr(images, "hold", False):
        # the loader only ever indexes and stacks, so anything with images[i] will do
        subset: Subset[Tensor] = Subset(images, positions.tolist())  # type: ignore[arg-type]
        try:
            yield from zip(
                DataLoader(subset, batch, num_workers=workers), positions.split(batch), strict=True
            )
        except (
            UserError
        ) as error:  # it comes with a worker's traceback, whose last line is what the user can use
            raise UserError(str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()) from None
        return
    several = getattr(images, "__getitems__", None)  # of a store, they are fetched side by side
    for where in positions.split(batch):
        yield (
            torch.stack(
                several(where.tolist()) if several else [images[i] for i in where.tolist()]
            ),
            where,
        )


def cached(
    folder: Path,
    key: str,
    make: Callable[[], Tensor],
    count: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """`make()` [count, D], or what it gave the last time for this key, from a file in `folder`
    (made, if it is not there).

    The key must say all that the features depend on: weights, data fingerprint, positions, size,
    precision. A file that cannot be read is made again. Written atomically, by rank 0; where it
    cannot be, that is said, and the features are returned all the same.
    """
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = known(path, key, count)
    if not any_rank(found is None):
        assert found is not None
        return found
    if os.path.lexists(path):
        say(f"{path} is damaged: the features are made again")
    vectors = make()
    if rank() == 0:
        content = vectors.contiguous()
        try:
            atomic(
                path,
                lambda draft: save_file(
                    {"features": content}, draft, {"key": key, "sum": checksum(content)}
                ),
            )
        except FileError as error:
            say(f"features are not kept, and will take as long the next time: {error}")
    return vectors


def known(path: Path, key: str, count: int | None = None) -> Tensor | None:
    """The features [count, D] in a file, if they are those of the key, and whole."""
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            found: Tensor = file.get_tensor("features")
            whole = (
                found.ndim == 2
                and count in (None, len(found))
                and said.get("sum") == checksum(found)
            )
            return found if whole and said.get("key") == key else None
    except (OSError, SafetensorError, TypeError, RuntimeError):
        return None


def checksum(vectors: Tensor) -> str:
    """Of the numbers; a disk may give back others than it was given."""
    return f"{zlib.crc32(vectors.numpy().data):08x}"
