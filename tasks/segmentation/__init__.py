"""Semantic segmentation: the class of each pixel of a picture."""
