"""Experiments and their run directories."""
