"""Sparse attention: multi-head attention in which one pair of positions after the other is asked
whether the paper's pattern has it."""

import numpy as np

from tests.attention.references.dot_product import multi_head


def sliding_window(i, j, left, right, dilation=1):
    before = range(i, -1, -dilation)[: None if left is None else left + 1]
    after = range(i, i + 100, dilation)[: None if right is None else right + 1]
    return j in before or j in after


def strided(i, j, stride):
    """Returns A1 = {max(0, i - l), ..., i} and A2 = {j: (i - j) mod l = 0}, mirrored (Child et al.
    2019)."""
    low, high = min(i, j), max(i, j)
    return low in range(max(0, high - stride), high + 1) or (high - low) % stride == 0


def fixed(i, j, block, summary):
    """Returns A1 = {j: same block} and A2 = {j: j mod l in {l - c, ..., l - 1}} (Child et al.
    2019)."""
    return i // block == j // block or j % block in range(block - summary, block)


def big_bird(i, j, block, window=1, global_blocks=1, random_blocks=2, seed=0, links=None):
    row, column = i // block, j // block
    if abs(row - column) <= window or row < global_blocks or column < global_blocks:
        return True
    if links is not None:
        return column in links[row]
    early, late = min(row, column), max(row, column)
    candidates = list(range(global_blocks, late - window))
    order = np.random.RandomState([seed, late]).permutation(len(candidates))
    return early in [candidates[place] for place in order[:random_blocks]]


def patterned(sees, names):
    """Returns the reference of a mixer that is multi-head attention in a pattern."""

    def run(inputs, allowed, **options):
        pattern = {name: options.pop(name) for name in names if name in options}
        T = allowed.shape[-1]
        seen = [[sees(i, j, **pattern) for j in range(T)] for i in range(T)]
        return multi_head(inputs, allowed & np.array(seen), **options)

    return run


def longformer(inputs, allowed, window, global_tokens=1, share_projections=False, **options):
    """Computes local attention for all rows, then global rows with the global projections."""
    T, params = allowed.shape[-1], inputs["params"]
    first = range(global_tokens)
    seen = [
        [i in first or j in first or -window <= i - j <= window for j in range(T)] for i in range(T)
    ]
    out, weights = multi_head(inputs, allowed & np.array(seen), **options)
    if not share_projections:
        names = ("query", "key", "value")
        params = params | {name: params[f"{name}_global"] for name in names}
        wide, shares = multi_head(inputs | {"params": params}, allowed, **options)
        for g in range(min(global_tokens, T)):
            out[:, g], weights[:, :, g] = wide[:, g], shares[:, :, g]
    return out, weights


REFERENCES = {
    ("mixer", "sliding_window"): patterned(sliding_window, ("left", "right", "dilation")),
    ("mixer", "strided"): patterned(strided, ("stride",)),
    ("mixer", "fixed"): patterned(fixed, ("block", "summary")),
    ("mixer", "bigbird"): patterned(
        big_bird, ("block", "window", "global_blocks", "random_blocks", "seed", "links")
    ),
    ("mixer", "longformer"): longformer,
}
VARIANTS = {
    "sliding_window": {
        "both": {"left": 1, "right": 1},
        "left": {"left": 2, "right": 0, "key_value_heads": 1, "positions": "rope"},
        "dilated": {"left": 1, "right": None, "dilation": 2, "positions": "alibi"},
    },
    "strided": {"grouped": {"stride": 2, "key_value_heads": 1}},
    "fixed": {"summary": {"block": 3, "summary": 2}},
    "bigbird": {
        "drawn": {"block": 1, "window": 0, "global_blocks": 0, "random_blocks": 1, "seed": 3},
        "blocks": {"block": 2, "window": 0, "global_blocks": 1, "random_blocks": 1},
        "linked": {
            "block": 2,
            "window": 0,
            "global_blocks": 0,
            "links": ((2,), (), (1, 4), (0,), (), (3, 1)),
        },
    },
    "longformer": {
        "plain": {"window": 1},
        "two": {"window": 0, "global_tokens": 2, "positions": "rope", "key_value_heads": 1},
        "shared": {"window": 1, "share_projections": True},
    },
}
