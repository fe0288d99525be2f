"""Images that vanish or break while a run trains."""

import logging
from typing import Any

from selftaught.distributed import gather_values
from selftaught.errors import UserError
from selftaught.text import count_text, list_reasons
from selftaught.training.session import Session

MOST_LOST = 0.1  # share of the training images that may vanish or break before training stops
NAMED = 20  # lost images whose names run.json holds

log = logging.getLogger(__name__)


class LostImages:
    """Images that vanished or broke since they were indexed, on any rank, and why."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pairs: list[tuple[str, str]] = []  # path, reason

    def __len__(self) -> int:
        return len(self.pairs)

    def update(self) -> None:
        """Collect them from every rank and report new ones. Raises UserError where training has too
        few images left.
        """
        local = self.session.images.lost
        pairs = sorted({pair for pairs in gather_values(local) for pair in pairs})
        new = [pair for pair in pairs if pair not in set(self.pairs)]
        self.pairs = pairs
        if not new:
            return
        log.warning(
            f"{count_text(len(pairs), 'image')} vanished or broke since they were indexed:"
            f" {list_reasons(new)}"
        )
        images = len(self.session.index.paths)
        if len(pairs) > MOST_LOST * images:
            raise UserError(
                f"{len(pairs):,} of {count_text(images, 'image')} vanished or broke during"
                f" training, for example {list_reasons(pairs[:1])}: bring them back and give the"
                " same command with --resume"
            )

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {"lost": len(self), "lost_images": [list(pair) for pair in self.pairs[:NAMED]]}
