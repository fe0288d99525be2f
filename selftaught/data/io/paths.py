"""A sequence of paths in one string of bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Paths(Sequence[Path]):
    """An immutable sequence of paths in one string of bytes, without an object per path.

    Forked workers share it without copies: reading changes no reference count of a path.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._text = b"".join(names)

    def to_bytes(self) -> tuple[bytes, np.ndarray]:
        """Return the string of all paths, and the end [N] of each in it."""
        return self._text, self._ends

    @classmethod
    def from_bytes(cls, text: bytes, ends: np.ndarray) -> Paths:
        """Return the sequence of what `to_bytes` returned."""
        paths = cls(())
        paths._text, paths._ends = text, ends
        return paths

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, position: int) -> Path: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, position: int | slice) -> Path | tuple[Path, ...]:
        if isinstance(position, slice):
            return tuple(self[i] for i in range(*position.indices(len(self))))
        i = range(len(self))[position]  # negative positions count from the end; raises IndexError
        start = int(self._ends[i - 1]) if i else 0
        return Path(os.fsdecode(self._text[start : int(self._ends[i])]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash((self._text, len(self)))

    def __repr__(self) -> str:
        return f"Paths({len(self)} paths)"
