"""Handwriting recognition: from the picture of a line to its text."""
