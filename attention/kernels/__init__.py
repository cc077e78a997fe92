"""Ways to compute `attention.attend`, one file each, all with its signature.

Those that need a device which is not here refuse; `interpreted()` runs what is written in Pallas
anywhere, `lowering_for(platform)` lowers it for a machine elsewhere.
"""

from attention.kernels.devices import interpreted, lowering_for

__all__ = ["interpreted", "lowering_for"]
