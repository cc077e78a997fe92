"""Code shared by the tasks: sources, builders, pipeline, text, backbones, baselines."""
