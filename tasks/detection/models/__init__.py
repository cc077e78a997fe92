"""Mask R-CNN and DETR."""
