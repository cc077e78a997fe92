"""The C++ kernel for CPUs, compiled on first use and called through XLA's FFI."""
