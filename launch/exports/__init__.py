"""Exported models: folders with programs, weights, and data that define pre- and postprocessing."""
