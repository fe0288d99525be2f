"""Freed memory is kept for the next step instead of being given back to the system."""

import ctypes
import os

# mallopt's parameters, from glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
# bytes from which a piece is rather asked for once and given back: all images of a set, say
ONCE = 1 << 30


def keep_freed() -> bool:
    """From now on this process keeps what it frees; whether it does. For a process that trains and
    does nothing else.

    Every step asks for the same large buffers, and by default glibc has each of them mapped, zeroed
    and unmapped by the kernel again: a tenth of a ResNet-18's step at 96 px on a CPU. Other
    allocators are left as they are, and so is one that the user has set up.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # older ones refuse so high a threshold
    mapped = mallopt(MMAP_THRESHOLD, ONCE) or mallopt(MMAP_MAX, 0)
    return bool(mapped and mallopt(TRIM_THRESHOLD, -1))
