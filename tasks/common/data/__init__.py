"""Fetching, reading, splitting and batching of data on the host."""
