"""The C++ kernel for CPUs, compiled at its first use and called through XLA's FFI."""
