"""Construction of position modules from specs such as "rope(base=500000)"."""

from __future__ import annotations

from flax import nnx

from attention import registry
from attention.positions.absolute import LearnedPositions, SinusoidalPositions
from attention.positions.relative import (
    AlibiPositions,
    RelativePositions,
    ShawPositions,
    T5Positions,
)
from attention.positions.rotary import RotaryPositions

ADDED_POSITIONS = {"sinusoidal": SinusoidalPositions, "learned": LearnedPositions}

POSITIONS = {
    "rope": RotaryPositions,
    "alibi": AlibiPositions,
    "t5": T5Positions,
    "shaw": ShawPositions,
}


def build_positions(
    spec: str, num_heads: int, head_size: int, *, rngs: nnx.Rngs
) -> RelativePositions | None:
    """Builds a position module that changes the logits inside an attention.

        l_ts = scale · rotate(q_t)·rotate(k_s) + bias_ts

    Args:
      spec: "none", or a name of `POSITIONS` with or without options, such as "rope(base=500000)".
      num_heads, head_size: N, H of [B, T, N, H].
      rngs: random streams that initialize learned positions.

    Returns:
      The module, or None for "none".

    Raises:
      ValueError: a name or option is unknown, or an option has an invalid type or value.
    """
    return _build(spec, POSITIONS, {"num_heads": num_heads, "head_size": head_size}, rngs)


def build_added_positions(
    spec: str, max_length: int, model_size: int, *, rngs: nnx.Rngs
) -> SinusoidalPositions | LearnedPositions | None:
    """Builds a position module whose embeddings are added to the input of the first layer.

        x_t -> x_t + position_t

    Args:
      spec: "none", or a name of `ADDED_POSITIONS` with or without options, such as
        "sinusoidal(interleaved=False)".
      max_length: maximum length of learned positions.
      model_size: D of [B, T, D].
      rngs: random streams that initialize learned positions.

    Returns:
      The module, or None for "none".

    Raises:
      ValueError: a name or option is unknown, or an option has an invalid type or value.
    """
    sizes = {"max_length": max_length, "model_size": model_size}
    return _build(spec, ADDED_POSITIONS, sizes, rngs)


def _build(spec: str, kinds: dict[str, type], sizes: dict[str, int], rngs: nnx.Rngs):
    name, options = registry.parse("positions", spec, ["none", *kinds])
    if name == "none":
        if options:
            raise ValueError(f"positions: got {spec!r}, expected no options for 'none'")
        return None
    registry.check_options("positions", spec, kinds[name], options, sizes)
    try:
        return kinds[name](**sizes, **options, rngs=rngs)
    except ValueError as error:
        raise ValueError(f"positions: {spec!r}: {error}") from None
