"""Whether the images of a set differ at all: where they do not, there is nothing to learn, and
nothing to score.
"""

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from selftaught.data.index.scan import Files
from selftaught.data.io.filesystem import normalize_location
from selftaught.data.loading.images import Images, spread_sample
from selftaught.errors import UserError
from selftaught.text import count_text, printable

SAMPLE = 64  # images that are compared at first,
MOST = 1024  # and, where these are all alike, before the set is refused
_SAME = 2  # of 255 levels: what another encoding of the same pixels may change
_CLOSE = 3.0  # of 255 levels, on average over a thumbnail: to the eye the same picture
_THUMBNAIL = 16  # pixels a side
_SOME, _MANY = 5, 0.1  # copies, and their share of the images, that are said


def refuse_alike(images: Images, positions: Tensor, say: Callable[[str], None]) -> None:
    """Raises UserError where all the images at `positions` [n] have the same pixels; says where
    they nearly do.

    A fixed sample is compared, so that the cost does not grow with the set. One image alone is like
    no other.
    """
    if len(positions) < 2:
        return
    sample = spread_sample(images, positions, SAMPLE)
    canvases = _canvases(images, sample)
    if (canvases.short() - canvases[0].short()).abs().amax() > _SAME:
        thumbnails = F.adaptive_avg_pool2d(canvases.float(), _THUMBNAIL)
        apart = float((thumbnails - thumbnails[0]).abs().mean((1, 2, 3)).amax())
        if apart < _CLOSE:
            say(
                f"the images are nearly alike: {count_text(len(sample), 'image')} of them"
                f" differ by less than {_CLOSE:g} of 255 levels on average, so that features may"
                f" hardly differ ({_named(images, sample)})"
            )
        return
    first = canvases[0].short()
    for part in spread_sample(images, positions, MOST).split(SAMPLE):
        if (_canvases(images, part).short() - first).abs().amax() > _SAME:
            return
    raise UserError(
        f"the images are all alike ({_named(images, sample)}), so that their features cannot"
        " differ: give images that differ, or repair the export that made these"
    )


def note_copies(files: Files) -> list[str]:
    """A line where many of the files are copies, byte for byte, of others; nothing elsewhere. (Of a
    pack's rows the digests tell places, which are all different; 0 is none.)
    """
    digests = np.asarray(files.digests, dtype=np.int64)
    alone = np.flatnonzero(digests)
    digests = digests[alone]
    _, firsts, inverse = np.unique(digests, return_index=True, return_inverse=True)
    copies = len(digests) - len(firsts)
    if copies < max(_SOME, _MANY * len(files)):
        return []
    copy = int((firsts[inverse] != np.arange(len(digests))).argmax())
    one, other = (printable(files.names[alone[i]]) for i in (copy, firsts[inverse[copy]]))
    return [
        f"{count_text(copies, 'image')} of {len(files):,}"
        f" {'is a copy' if copies == 1 else 'are copies'} of others, such as {one} of"
        f" {other}: they count several times, and may lie on both sides of the split"
    ]


def _canvases(images: Images, positions: Tensor) -> Tensor:
    images.prefetch(positions)
    return images.take(positions)[0]


def _named(images: Images, positions: Tensor) -> str:
    names = [printable(normalize_location(images.paths[i])) for i in positions[:3].tolist()]
    return ", ".join(names) + (", ..." if len(positions) > 3 else "")
