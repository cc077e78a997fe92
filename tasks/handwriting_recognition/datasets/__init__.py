"""Built-in data sets of handwritten digits and lines."""
