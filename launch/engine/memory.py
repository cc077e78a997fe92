"""Memory use of devices and of the process, and malloc settings for training on a CPU.

glibc returns every freed block above 32 MB to the system, and XLA allocates such blocks in each
step on a CPU, which costs tens of thousands of page faults per step. With these settings freed
blocks stay in the heap (see mallopt(3)).
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import resource
import sys
from pathlib import Path

# Parameters of mallopt in <malloc.h> and their values.
_OPTIONS = (
    (-8, 1),  # M_ARENA_MAX: one arena, so that threads share freed blocks
    (-4, 0),  # M_MMAP_MAX: blocks of any size come from the heap
    (-1, -1),  # M_TRIM_THRESHOLD: the heap is never returned
    (-2, 1 << 26),  # M_TOP_PAD: the heap grows by 64 MB
)


@dataclasses.dataclass(frozen=True)
class CurrentMemory:
    """Memory in use, in bytes.

    Attributes:
      process: resident set of the process on the host; None if the system has no /proc.
      device: memory in use on the local device that uses the most; None if the devices do not
        report it.
    """

    process: int | None
    device: int | None = None


@dataclasses.dataclass(frozen=True)
class PeakMemory:
    """Largest memory in use so far, in bytes.

    Attributes:
      process: memory of the process on the host.
      device: memory used on the local device that used the most; None if the devices, such as CPUs,
        do not report it.
      limit: memory that JAX may use on that device; None if it is not reported.
    """

    process: int
    device: int | None = None
    limit: int | None = None

    def __str__(self) -> str:
        if self.device is None:
            return f"process memory {_format(self.process)}"
        of = f" of {_format(self.limit)}" if self.limit else ""
        return f"device memory {_format(self.device)}{of}"


def current_memory() -> CurrentMemory:
    """Returns the memory that the process and the local devices use now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        process = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        process = None
    found = [stats["bytes_in_use"] for stats in _device_statistics() if "bytes_in_use" in stats]
    return CurrentMemory(process, max(found, default=None))


def _device_statistics() -> list[dict[str, int]]:
    import jax

    return [device.memory_stats() or {} for device in jax.local_devices()]


def peak_memory() -> PeakMemory:
    """Returns the peak memory of the process and of the local device that used the most."""
    # ru_maxrss is in kilobytes on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1 << 10
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    reported = [stats for stats in _device_statistics() if "peak_bytes_in_use" in stats]
    if not reported:
        return PeakMemory(process)
    most = max(reported, key=lambda stats: stats["peak_bytes_in_use"])
    return PeakMemory(process, most["peak_bytes_in_use"], most.get("bytes_limit"))


def _format(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def _glibc() -> ctypes.CDLL | None:
    """Returns the C library of the process; None if it is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    # Other C libraries, such as musl, lack this function.
    return libc if hasattr(libc, "malloc_trim") else None


def keep_large_buffers() -> bool:
    """Sets the malloc options before JAX allocates memory. Returns False without glibc."""
    libc = _glibc()
    return bool(libc) and all(libc.mallopt(option, value) for option, value in _OPTIONS)


def run_in_calls() -> None:
    """Lets JAX run a program on a CPU in the thread that calls it, before the call returns.

    JAX otherwise runs it in another thread, which frees the temporaries a moment after the results
    are ready. If the next program is called in this moment, its temporaries do not fit into the
    memory of the previous ones, and the heap grows by their size. Call this before JAX initializes
    devices.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def separate_small_blocks(size: int = 1 << 25) -> bool:
    """Leaves a free block of `size` bytes for small allocations. Returns False without glibc.

    glibc takes an allocation from the smallest free block that is large enough, and from the end of
    the heap only if there is none. Without this block, a batch of a few megabytes is taken from
    the block that the temporaries of the previous step have left; what remains is too small for
    the temporaries of the next step, and the heap grows by their size.
    """
    libc = _glibc()
    if libc is None:
        return False
    malloc, realloc, free = libc.malloc, libc.realloc, libc.free
    malloc.restype = realloc.restype = ctypes.c_void_p
    malloc.argtypes, free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    block, after = malloc(size), malloc(size)
    # A few bytes stay allocated after the block. Otherwise glibc would merge the block with the
    # free memory at the end of the heap.
    realloc(after, 64)
    free(block)
    return True


def return_free_memory() -> bool:
    """Gives all freed blocks in the heap back to the system. Returns False without glibc."""
    libc = _glibc()
    return bool(libc) and bool(libc.malloc_trim(0))
