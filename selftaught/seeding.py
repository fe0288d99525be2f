"""Seeds of random events, derived from what identifies the event."""

import hashlib


def key(*parts: object) -> int:
    """Hash the parts that identify a random event into a seed of 63 bits."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
