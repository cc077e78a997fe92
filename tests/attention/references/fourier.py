"""FNet's transform, one example at a time, over its real positions alone."""

import numpy as np


def fourier(inputs, allowed, orthonormal=True):
    x = inputs["x"]
    D = x.shape[2]
    over_features = np.exp(-2j * np.pi * np.outer(np.arange(D), np.arange(D)) / D)
    out = np.zeros(x.shape)
    for b, example in enumerate(x):
        real = np.flatnonzero(allowed[b, 0, 0])
        if len(real):
            rank = [(real < t).sum() for t in range(len(example))]
            over_positions = np.exp(-2j * np.pi * np.outer(rank, np.arange(len(real))) / len(real))
            out[b] = (over_positions @ example[real] @ over_features).real
            if orthonormal:
                out[b] /= np.sqrt(len(real) * D)
    return out, None


REFERENCES = {("mixer", "fourier"): fourier}

VARIANTS = {"fourier": {"self": {}, "paper": {"orthonormal": False}}}
