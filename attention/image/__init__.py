"""Attention over feature maps [B, Y, X, C]."""
