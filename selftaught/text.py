"""Text for messages: paths, counts and lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


def printable(path: str | Path) -> str:
    """The path as printable UTF-8; other characters and bytes become escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_reasons(failed: Sequence[tuple[str, str]], most: int = 5) -> str:
    """List the first `most` pairs of (printable path, reason), and count the rest."""
    more = f", and {len(failed) - most:,} more" if len(failed) > most else ""
    return ", ".join(f"{path} ({reason})" for path, reason in failed[:most]) + more


def count_text(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun, as "1 image" or "1,200 images"; `many` is an irregular plural."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def find_near(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The at most three names that are most similar to `name`. Capitals do not count."""
    folded = {choice.casefold(): choice for choice in sorted(names)}
    return [folded[one] for one in get_close_matches(name.casefold(), folded, n=3, cutoff=cutoff)]


def suggest_names(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The at most three names that are most similar to `name`; all, sorted, if none is."""
    choices = sorted(names)
    return find_near(name, choices, cutoff) or choices
