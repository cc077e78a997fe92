"""Kernels in portable JAX: online softmax over blocks, on one device or over a mesh."""
