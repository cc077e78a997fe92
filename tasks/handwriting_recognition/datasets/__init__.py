"""Public data sets of handwritten digits and lines."""
