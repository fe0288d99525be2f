"""Checks whether the images of a set differ: equal images teach nothing."""

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from selftaught.data.index.scan import Files
from selftaught.data.io.filesystem import normalize_location
from selftaught.data.loading.images import Images, spread_sample
from selftaught.errors import UserError
from selftaught.text import count_text, printable

SAMPLE = 64  # images of the first comparison
MAX_SAMPLE = 1024  # images of the second one, before a refusal
_SAME = 2  # of 255 levels: differences between encodings of the same pixels
_CLOSE = 3.0  # of 255 levels, on average over a thumbnail: no visible difference
_THUMBNAIL = 16  # pixels a side
_MIN_COPIES, _MIN_SHARE = 5, 0.1  # copies, and their share of the images, for a note


def refuse_alike(images: Images, positions: Tensor, say: Callable[[str], None]) -> None:
    """Raise UserError where all images at `positions` [n] have equal pixels; warn where nearly.

    The check uses a fixed sample, so that its cost does not grow with the set. One image passes.
    """
    if len(positions) < 2:
        return
    sample = spread_sample(images, positions, SAMPLE)
    canvases = _load_canvases(images, sample)
    if (canvases.short() - canvases[0].short()).abs().amax() > _SAME:
        thumbnails = F.adaptive_avg_pool2d(canvases.float(), _THUMBNAIL)
        difference = float((thumbnails - thumbnails[0]).abs().mean((1, 2, 3)).amax())
        if difference < _CLOSE:
            say(
                f"the images are nearly alike: {count_text(len(sample), 'image')} of them"
                f" differ by less than {_CLOSE:g} of 255 levels on average, so that features may"
                f" hardly differ ({_list_names(images, sample)})"
            )
        return
    first = canvases[0].short()
    for part in spread_sample(images, positions, MAX_SAMPLE).split(SAMPLE):
        if (_load_canvases(images, part).short() - first).abs().amax() > _SAME:
            return
    raise UserError(
        f"the images are all alike ({_list_names(images, sample)}), so that their features cannot"
        " differ: give images that differ, or repair the export that made these"
    )


def note_copies(files: Files) -> list[str]:
    """Return a note where many files are copies, byte for byte, of others; else nothing.

    Rows of a pack count as different, as their digests depend on their place. 0 is no digest.
    """
    digests = np.asarray(files.digests, dtype=np.int64)
    with_digest = np.flatnonzero(digests)
    digests = digests[with_digest]
    _, firsts, inverse = np.unique(digests, return_index=True, return_inverse=True)
    copies = len(digests) - len(firsts)
    if copies < max(_MIN_COPIES, _MIN_SHARE * len(files)):
        return []
    copy = int((firsts[inverse] != np.arange(len(digests))).argmax())
    copy_name, original = (
        printable(files.names[with_digest[i]]) for i in (copy, firsts[inverse[copy]])
    )
    return [
        f"{count_text(copies, 'image')} of {len(files):,}"
        f" {'is a copy' if copies == 1 else 'are copies'} of others, such as {copy_name} of"
        f" {original}: they count several times, and may lie on both sides of the split"
    ]


def _load_canvases(images: Images, positions: Tensor) -> Tensor:
    images.prefetch(positions)
    return images.read(positions)[0]


def _list_names(images: Images, positions: Tensor) -> str:
    names = [printable(normalize_location(images.paths[i])) for i in positions[:3].tolist()]
    return ", ".join(names) + (", ..." if len(positions) > 3 else "")
