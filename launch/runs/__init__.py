"""Running of experiments and ablations, and their run directories."""
