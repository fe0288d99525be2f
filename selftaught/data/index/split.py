"""The held-out split, drawn by a seed."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from selftaught.data.index.scan import Files


def draw_split(files: Files, rows: np.ndarray | None, holdout: float, seed: int) -> np.ndarray:
    """Return [n] bool, held out: of every class the share `holdout` with the smallest hashes.

    Of two images or more at least one is held out, and never all. Where labels are partial, only
    labelled images are held out, as only these can be scored.

    rows: labels [n] or [n, C]; None: no labels. With several classes an image the rarest class
    draws first, from the images without a draw (Sechidis et al., 2011, "On the stratification of
    multi-label data"). Its few images are then well distributed.
    """
    is_test = np.zeros(len(files), dtype=bool)
    if holdout == 0:
        return is_test
    hashes = (
        hashlib.blake2b(os.fsencode(f"{seed}/{name}"), digest_size=8).digest()
        for name in files.names
    )
    ranks = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)

    def share(n: int) -> int:
        return min(max(int(holdout * n + 0.5), 1), n - 1) if n >= 2 else 0

    def hold_out(members: np.ndarray, n: int) -> None:
        is_test[members[np.argsort(ranks[members], kind="stable")[:n]]] = True

    if rows is None or rows.ndim == 1:
        groups: np.ndarray = np.zeros(len(files), dtype=np.int64) if rows is None else rows
        by_group = np.argsort(groups, kind="stable")
        for group in np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1):
            if groups[group[0]] >= 0:
                hold_out(group, share(len(group)))
        return is_test
    free = rows[:, 0] >= 0
    for c in np.argsort((rows > 0).sum(axis=0), kind="stable"):
        members = rows[:, c] > 0
        hold_out(
            np.flatnonzero(members & free),
            max(share(int(members.sum())) - int(is_test[members].sum()), 0),
        )
        free &= ~members
    hold_out(np.flatnonzero(free), share(int(free.sum())))
    return is_test
