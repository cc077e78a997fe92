"""Kernels of `attention.attend`, one file each, all with the signature of `attend`.

A kernel raises NotImplementedError on platforms that it does not support. `interpreted()` runs
Pallas kernels anywhere; `lowering_for(platform)` lowers a kernel for another platform;
`portable()` traces a program for every platform.
"""

from attention.kernels.devices import interpreted, lowering_for, portable

__all__ = ["interpreted", "lowering_for", "portable"]
