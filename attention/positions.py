"""Positions: sinusoidal and learned embeddings that are added, rotary ones that turn query and
key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes

Array = jax.Array


def sinusoidal(positions: Array, size: int, *, base: float = 10000.0) -> Array:
    """Sine and cosine of the position at geometric wavelengths (Vaswani et al. 2017, section 3.5).

        PE(p, 2i) = sin(p / base^(2i / size)),   PE(p, 2i + 1) = cos(p / base^(2i / size))

    Args:
      positions: int [...].
      size: even.

    Returns:
      float32 [..., size].

    Raises:
      ValueError: size is odd, or positions are not integers.
    """
    angles = _angles(positions, size, base)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*angles.shape[:-1], size)


def rotary(
    x: Array, positions: Array, *, base: float = 10000.0, interleaved: bool = False
) -> Array:
    """Turns pairs of features by an angle that grows with the position (Su et al. 2021, RoFormer).

        (a, b) -> (a cos θ - b sin θ, a sin θ + b cos θ),   θ_i = p / base^(2i / H)

    so that the product of a turned query and a turned key depends on the distance of their
    positions alone.

    Args:
      x: [B, T, N, H], H even.
      positions: int [T], or [B, T].
      interleaved: pairs are (2i, 2i + 1) as in the paper; else (i, i + H/2), as in GPT-NeoX and
        Llama weights.

    Returns:
      [B, T, N, H] in x's dtype; the angles are in float32.

    Raises:
      ValueError: shapes do not fit, H is odd, or positions are not integers.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("x", x)
    shapes.expect("x", x, "B T N H", sizes)
    shapes.expect("positions", positions, "T" if jnp.ndim(positions) == 1 else "B T", sizes)
    angles = _angles(positions, sizes["H"], base)[..., None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
    else:
        a, b = jnp.split(wide, 2, axis=-1)
    turned = (a * cosine - b * sine, a * sine + b * cosine)
    if interleaved:
        return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class LearnedPositions(nnx.Module):
    """One learned vector a position: [max_length, D], normal with deviation 0.02 (Devlin et al.
    2019).
    """

    def __init__(self, max_length: int, model_size: int, *, rngs: nnx.Rngs):
        self.max_length = max_length
        table = 0.02 * jax.random.normal(rngs.params(), (max_length, model_size))
        self.embedding = nnx.Param(table)

    def __call__(self, length: int) -> Array:
        """The first `length` vectors, float32 [length, D].

        Raises:
          ValueError: there are fewer.
        """
        if length > self.max_length:
            expected = f"at most max_length={self.max_length} learned positions"
            raise ValueError(f"length: got {length}, expected {expected}")
        return self.embedding[...][:length]


def _angles(positions: Array, size: int, base: float) -> Array:
    """float32 [..., size / 2]."""
    shapes.expect_integer("positions", positions)
    if size % 2:
        raise ValueError(f"size: got {size}, expected an even one: features are turned in pairs")
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return jnp.asarray(positions)[..., None].astype(jnp.float32) * frequencies
