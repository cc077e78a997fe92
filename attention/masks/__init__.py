"""Attention masks: which queries may attend to which keys. True always means "may attend".

    from attention import masks

    mask = masks.causal() & masks.lengths(key=lengths)

The constructors are in `mask.py`, sparse patterns in `patterns.py`. To add a mask term, see
`terms.py` and `pattern_terms.py`; `block_mask.py`, `arrays.py` and `pallas.py` convert terms for
kernels.
"""

from attention.masks.mask import (
    Mask,
    MaskLike,
    Padding,
    causal,
    dense,
    lengths,
    padding,
    prefix,
    segments,
    valid,
    validate_offset,
    window,
)
from attention.masks.terms import Offset, Span

__all__ = [
    "Mask",
    "MaskLike",
    "Offset",
    "Padding",
    "Span",
    "causal",
    "dense",
    "lengths",
    "padding",
    "prefix",
    "segments",
    "valid",
    "validate_offset",
    "window",
]
