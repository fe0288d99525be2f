"""Feature extraction with a frozen backbone, and a cache of features on disk."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from selftaught.distributed import any_rank, gather, local_share, rank
from selftaught.errors import FileError, UserError, find_dead_worker
from selftaught.files import atomic


class Images(Protocol):
    """An image set: `images[i]` is uint8 [3, C, C]; `aspect` [N] is the true width / height."""

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
    """Extract features [n, D] float32, on the CPU, of `images` at `positions` [n], in that order.

    The input is the centre square of `share` of the short side, resized to `size` pixels. The
    backbone, which must be on `device`, runs in evaluation mode without gradients; afterwards every
    module has its previous mode. `workers` processes decode images that are not in memory. All
    processes of a training call this function: each computes a share, and all get the whole.
    """
    from selftaught.views.augment import centre

    device = torch.device(device)
    count, positions = len(positions), local_share(positions.cpu())
    parts: list[Tensor] = []
    done = 0
    groups = getattr(images, "groups", None)
    order = (
        groups.sort_by_group(positions)
        if groups is not None and groups.exceeds_cache
        else torch.arange(len(positions))
    )
    positions = positions[order]  # in the order of storage, so each row group is read once
    with evaluation_mode(backbone):
        for pixels, where in _canvases(images, positions, batch, workers):
            views = centre(pixels.to(device), images.aspect[where].to(device), size, share)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                parts.append(backbone(views).float().cpu())
            done += len(where)
            if on_progress is not None:
                on_progress(done, len(positions))
    if not parts:
        return torch.empty(0, int(getattr(backbone, "features", 0)))
    return gather(torch.cat(parts)[order.argsort()].to(device)).cpu()[:count]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; afterwards every module has its previous mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        # network.train() would also change modules that were in evaluation mode before.
        for module, training in modes.items():
            module.training = training


def _canvases(
    images: Images, positions: Tensor, batch: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images uint8 [b, 3, C, C] with their positions [b]."""
    if len(positions) == 0:  # split would give one empty batch
        return
    if workers > 0 and not getattr(images, "hold", False):
        # DataLoader needs only indexing and stacking.
        subset = Subset(cast(Dataset[Tensor], images), positions.tolist())
        loader = DataLoader(subset, batch, num_workers=workers)
        try:
            yield from zip(loader, positions.split(batch), strict=True)
        except UserError as error:  # its text is a worker's traceback that ends with the message
            raise UserError(str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()) from None
        except RuntimeError as error:
            if died := find_dead_worker(error):
                raise died from error
            raise
        return
    get_batch = getattr(images, "__getitems__", None)  # a store fetches images in parallel
    for where in positions.split(batch):
        indices = where.tolist()
        yield torch.stack(get_batch(indices) if get_batch else [images[i] for i in indices]), where


def load_or_make(
    folder: Path,
    key: str,
    make: Callable[[], Tensor],
    count: int | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """Load features [count, D] from the cache in `folder`, or make and save them.

    The key must contain all that the features depend on: weights, data fingerprint, positions,
    size, precision. A damaged file is replaced. Rank 0 writes, atomically; an error of the disk is
    logged by `log` and not raised.
    """
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    features = read_cache(path, key, count)
    if not any_rank(features is None):
        assert features is not None
        return features
    if os.path.lexists(path):
        log(f"{path} is damaged: the features are made again")
    vectors = make()
    if rank() == 0:
        content = vectors.contiguous()
        metadata = {"key": key, "sum": checksum(content)}
        try:
            atomic(path, lambda draft: save_file({"features": content}, draft, metadata))
        except FileError as error:
            log(f"features are not kept, and will take as long the next time: {error}")
    return vectors


def read_cache(path: Path, key: str, count: int | None = None) -> Tensor | None:
    """Read features [count, D] from a file; None if they are of another key, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            features: Tensor = file.get_tensor("features")
            if features.ndim != 2 or count not in (None, len(features)):
                return None
            is_valid = metadata.get("key") == key and metadata.get("sum") == checksum(features)
            return features if is_valid else None
    except (OSError, SafetensorError, TypeError, RuntimeError):
        return None


def checksum(vectors: Tensor) -> str:
    """CRC-32 of the values, to detect damage on the disk."""
    return f"{zlib.crc32(vectors.numpy().data):08x}"
