"""Positions: added to the input, rotated into queries and keys, or added to the logits.

`POSITIONS` lists the position modules that are part of an attention. A spec such as "rope" or
"rope(base=500000, fraction=0.25)" selects one of them. `ADDED_POSITIONS` lists the position modules
that are added to the input of the first layer.
"""

from attention.positions.absolute import LearnedPositions, SinusoidalPositions, sinusoidal
from attention.positions.build import (
    ADDED_POSITIONS,
    POSITIONS,
    build_added_positions,
    build_positions,
)
from attention.positions.relative import (
    AlibiPositions,
    RelativePositions,
    ShawPositions,
    T5Positions,
    alibi_bias,
    alibi_slopes,
    t5_buckets,
)
from attention.positions.rotary import RotaryPositions, rotary

__all__ = [
    "ADDED_POSITIONS",
    "POSITIONS",
    "AlibiPositions",
    "LearnedPositions",
    "RelativePositions",
    "RotaryPositions",
    "ShawPositions",
    "SinusoidalPositions",
    "T5Positions",
    "alibi_bias",
    "alibi_slopes",
    "build_added_positions",
    "build_positions",
    "rotary",
    "sinusoidal",
    "t5_buckets",
]
