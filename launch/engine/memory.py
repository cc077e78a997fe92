"""Keeps large buffers in the process between steps.

glibc gives every block above 32 MB back to the system when it is freed, and XLA asks for such a
block at each step on a CPU: tens of thousands of page faults a step. With these settings the heap
keeps them (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt in <malloc.h> and what they are set to.
_OPTIONS = (
    (-8, 1),  # M_ARENA_MAX: one arena, so that what one thread frees another can have
    (-3, 1 << 30),  # M_MMAP_THRESHOLD: blocks below 1 GB come from the heap
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the heap is not given back
    (-2, 1 << 26),  # M_TOP_PAD: it grows by 64 MB
)


def keep_large_buffers() -> bool:
    """Tells glibc so, before JAX allocates; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(option, value) for option, value in _OPTIONS)
