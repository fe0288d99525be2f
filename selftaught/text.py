"""Paths, counts and lists as text for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def printable(path: str | Path) -> str:
    """A path that any terminal and any JSON takes: what is not printable, or not UTF-8, as an
    escape.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_reasons(failed: Sequence[tuple[str, str]], most: int = 5) -> str:
    """The first of some (path as shown, reason), and how many more there are."""
    more = f", and {len(failed) - most:,} more" if len(failed) > most else ""
    return ", ".join(f"{path} ({reason})" for path, reason in failed[:most]) + more


def count_text(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
