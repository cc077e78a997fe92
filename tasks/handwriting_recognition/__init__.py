"""Handwriting recognition: from the image of a line to its text."""
