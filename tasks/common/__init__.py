"""What the tasks share: sources, builders, pipeline, text, backbones, baselines."""
