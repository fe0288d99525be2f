"""Seeds of random events, derived from what identifies the event."""

import hashlib

from selftaught.errors import require


def key(*parts: object) -> int:
    """Hash the parts that identify a random event into a seed of 63 bits."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def check_seed(seed: int) -> None:
    """Raise UserError for a number that torch takes for no seed."""
    require(-(2**63) <= seed < 2**63, "--seed", "a number of 64 bits", seed)
