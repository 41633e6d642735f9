"""Memory of batches: what one has given back, the next one takes."""

from __future__ import annotations

import ctypes
from typing import Final

# Of glibc's mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Larger than any batch, its frame or what lies between; and what a process may keep of them.
_MMAP_BYTES: Final = 32 << 20
_TRIM_BYTES: Final = 128 << 20


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory of batches, for this whole process.

    By itself it gives each megabyte back to the system at once and takes it anew, which costs a
    page fault and a cleared page for every 4 KiB of a machine's state, several times over. True if
    the library could be told (glibc can).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    told = mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    return bool(told)
