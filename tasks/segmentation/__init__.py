"""Semantic segmentation of images."""
