"""Exported models: folders with programs, weights, and pre- and postprocessing as data."""
