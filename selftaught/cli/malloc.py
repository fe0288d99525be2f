"""Configuration of glibc's allocator: freed memory is kept for the next step."""

import ctypes
import os

# mallopt's parameters, from glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
# bytes; larger blocks, such as all images of a data set, are returned to the system
ONCE = 1 << 30


def keep_freed() -> bool:
    """Let the process keep the memory that it frees; return whether this was possible.

    It is for processes that only train. Every step allocates the same large buffers. By default the
    kernel maps, zeroes and unmaps each of them again, which takes a tenth of a ResNet-18's step at
    96 px on a CPU. Other allocators, and settings of the user, do not change.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # Older versions refuse so high a threshold.
    mapped = mallopt(MMAP_THRESHOLD, ONCE) or mallopt(MMAP_MAX, 0)
    return bool(mapped and mallopt(TRIM_THRESHOLD, -1))
