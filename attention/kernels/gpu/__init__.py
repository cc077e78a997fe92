"""Kernels for GPUs: Triton (through Pallas), cuDNN and tokamax."""
