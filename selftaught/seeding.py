"""Seeds: one for each random event, from what makes it unique."""

import hashlib


def key(*parts: object) -> int:
    """A seed from what makes a random event unique."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
