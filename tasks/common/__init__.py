"""Code shared by the tasks: data sets, tokenizers, augmentation, networks, decoding, metrics."""
