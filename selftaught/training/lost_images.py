"""Images that become missing or unreadable while a run trains."""

import logging
from typing import Any

from selftaught.distributed import gather_values
from selftaught.errors import UserError
from selftaught.text import count_text, list_reasons
from selftaught.training.session import Session

MOST_LOST = 0.1  # share of the images that may be lost before training stops
NAMED = 20  # maximum number of lost images that run.json lists

log = logging.getLogger(__name__)


class LostImages:
    """The images that were lost on any rank since they were indexed, each with its reason."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pairs: list[tuple[str, str]] = []  # path, reason

    def __len__(self) -> int:
        return len(self.pairs)

    def update(self) -> None:
        """Gather lost images from all ranks and log new ones.

        Raises UserError if more than MOST_LOST of the images are lost.
        """
        local = self.session.images.lost
        pairs = sorted({pair for pairs in gather_values(local) for pair in pairs})
        new = [pair for pair in pairs if pair not in set(self.pairs)]
        self.pairs = pairs
        if not new:
            return
        log.warning(
            f"{count_text(len(pairs), 'image')} vanished or broke after indexing:"
            f" {list_reasons(new)}"
        )
        images = len(self.session.index.paths)
        if len(pairs) > MOST_LOST * images:
            raise UserError(
                f"{len(pairs):,} of {count_text(images, 'image')} vanished or broke during"
                f" training, for example {list_reasons(pairs[:1])}: restore them and repeat the"
                " command with --resume"
            )

    def facts(self) -> dict[str, Any]:
        """The entries of run.json: the number of lost images, and the first NAMED of them."""
        return {"lost": len(self), "lost_images": [list(pair) for pair in self.pairs[:NAMED]]}
