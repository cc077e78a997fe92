"""Settings of glibc malloc that keep large buffers in the process between steps.

glibc returns every freed block above 32 MB to the system, and XLA allocates such blocks in each
step on a CPU, which costs tens of thousands of page faults per step. With these settings freed
blocks stay in the heap (see mallopt(3)).
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt in <malloc.h> and their values.
_OPTIONS = (
    (-8, 1),  # M_ARENA_MAX: one arena, so that threads share freed blocks
    (-3, 1 << 30),  # M_MMAP_THRESHOLD: blocks below 1 GB come from the heap
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the heap is never returned
    (-2, 1 << 26),  # M_TOP_PAD: the heap grows by 64 MB
)


def keep_large_buffers() -> bool:
    """Sets the malloc options, before JAX allocates memory; returns False without glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) for option, value in _OPTIONS)


def return_free_memory() -> bool:
    """Returns freed blocks to the system, also those kept so far; False without glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False
