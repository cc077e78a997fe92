"""Rotary positions (RoPE): queries and keys rotated by an angle proportional to the position.

R rotated features; the other dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.numerics import accumulator
from attention.positions.absolute import position_angles
from attention.positions.relative import RelativePositions

Array = jax.Array


def rotary(
    x: Array,
    positions: Array,
    *,
    base: float = 10000.0,
    fraction: float = 1.0,
    interleaved: bool = False,
    scaling: str = "none",
    factor: float = 1.0,
) -> Array:
    """Rotates pairs of features by angles proportional to the position (Su et al. 2021, RoFormer).

        (a, b) -> (a cos θ - b sin θ, a sin θ + b cos θ),   θ_i = p / base^(2i / R)

    The product of a rotated query and a rotated key depends only on the distance of their
    positions. The first R = fraction · H features are rotated; the others are unchanged.

    Two scalings extend the range to texts longer than in training. "linear" replaces p by p /
    factor (Chen et al. 2023). "ntk" replaces the base by base · factor^(R / (R - 2)), which keeps
    the shortest wavelength and stretches the longest by the factor (bloc97 2023, "NTK-aware").

    Args:
      x: [B, T, N, H].
      positions: int [T], or [B, T].
      base: base of the wavelengths, above 1.
      fraction: fraction of the features that is rotated, in (0, 1] (GPT-NeoX, Black et al. 2022);
        R must be even.
      interleaved: whether features 2i and 2i + 1 are a pair, as in the paper. Otherwise features i
        and i + R/2 are a pair, as in GPT-NeoX and Llama weights.
      scaling: "none", "linear" or "ntk".
      factor: factor of the scaling, at least 1; must be 1 with scaling "none".

    Returns:
      [B, T, N, H] in x's dtype; the angles are in float32.

    Raises:
      ValueError: shapes or options do not fit, R is odd, or positions are not integers.
    """
    sizes = shapes.expect_arrays({"x": (x, "B T N H")})
    shapes.expect("positions", positions, "T" if jnp.ndim(positions) == 1 else "B T", sizes)
    R = _rotated_size(sizes["H"], base, fraction, scaling, factor)
    if scaling == "ntk":
        base = base * factor ** (R / max(R - 2, 1))
    angles = position_angles(positions, R, base, factor if scaling == "linear" else 1.0)
    cosine, sine = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    wide, rest = x[..., :R].astype(accumulator(x)), x[..., R:]
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
    else:
        a, b = jnp.split(wide, 2, axis=-1)
    rotated = (a * cosine - b * sine, a * sine + b * cosine)
    if interleaved:
        result = jnp.stack(rotated, axis=-1).reshape(wide.shape)
    else:
        result = jnp.concatenate(rotated, axis=-1)
    return jnp.concatenate([result.astype(x.dtype), rest], axis=-1)


class RotaryPositions(RelativePositions):
    """Rotary positions of queries and keys (`rotary`), without parameters.

    Args:
      num_heads, head_size: N, H of the attention.
      base, fraction, interleaved, scaling, factor: as for `rotary`.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        *,
        base: float = 10000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
        scaling: str = "none",
        factor: float = 1.0,
        rngs: nnx.Rngs,
    ):
        _rotated_size(head_size, base, fraction, scaling, factor)
        self.base, self.fraction, self.interleaved = float(base), float(fraction), interleaved
        self.scaling, self.factor = scaling, float(factor)

    def rotate(self, x: Array, positions: Array) -> Array:
        wavelengths = {"base": self.base, "scaling": self.scaling, "factor": self.factor}
        pairs = {"fraction": self.fraction, "interleaved": self.interleaved}
        return rotary(x, positions, **wavelengths, **pairs)


def _rotated_size(size: int, base: float, fraction: float, scaling: str, factor: float) -> int:
    """Returns R, the number of rotated features, after checking all options."""
    if not base > 1:
        raise ValueError(f"base: got {base}, expected a number above 1")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: got {fraction}, expected a number in (0, 1]")
    if scaling not in ("none", "linear", "ntk"):
        raise ValueError(f"scaling: got {scaling!r}, expected 'none', 'linear' or 'ntk'")
    if factor < 1 or (scaling == "none" and factor != 1):
        expected = "1 with scaling='none'" if scaling == "none" else "at least 1"
        raise ValueError(f"factor: got {factor}, expected {expected}")
    rotated = round(size * fraction)
    if rotated % 2 or rotated < 2:
        of = "" if fraction == 1 else f" · fraction={fraction} = {rotated}"
        expected = "an even number of rotated features, which come in pairs"
        raise ValueError(f"head_size: got {size}{of}, expected {expected}")
    return rotated
