"""Downloading, reading, splitting and batching of data sets on the host."""
