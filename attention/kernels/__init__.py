"""Kernels of `attention.attend`; each kernel has its own file and the signature of `attend`.

A kernel raises NotImplementedError on platforms that it does not support. `interpreted()` runs
Pallas kernels on any platform. `lowering_for(platform)` lowers a kernel for another platform.
`portable()` traces a program for all platforms.
"""

from attention.kernels.devices import interpreted, lowering_for, portable

__all__ = ["interpreted", "lowering_for", "portable"]
