"""Kernels for TPUs: splash attention."""
