"""Position embeddings that are added to the input: sinusoidal and learned.

D is the size of an embedding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes

Array = jax.Array


def position_angles(positions: Array, size: int, base: float, factor: float = 1.0) -> Array:
    """Computes the angles of sinusoidal and rotary positions (Vaswani et al. 2017, section 3.5).

        θ_i = p / (factor · base^(2i / size)),   i = 0 ... size / 2 - 1

    Args:
      positions: p, int [...].
      size: number of features of an embedding, an even number.
      base: base of the wavelengths.
      factor: factor by which all wavelengths are stretched.

    Returns:
      θ, float32 [..., size / 2].

    Raises:
      ValueError: size is odd, or positions are not integers.
    """
    shapes.expect_integer("positions", positions)
    if size % 2:
        raise ValueError(f"size: got {size}, expected an even number, as features are paired")
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return jnp.asarray(positions)[..., None].astype(jnp.float32) / factor * frequencies


def sinusoidal(
    positions: Array, size: int, *, base: float = 10000.0, interleaved: bool = True
) -> Array:
    """Computes sinusoidal position embeddings (Vaswani et al. 2017, section 3.5).

        PE(p, 2i) = sin(p / base^(2i / size)),   PE(p, 2i + 1) = cos(p / base^(2i / size))

    Args:
      positions: p, int [...].
      size: D, the number of features of an embedding; an even number.
      base: base of the wavelengths.
      interleaved: whether sines and cosines alternate, as in the paper. Otherwise the sines are the
        first half of the features, as in tensor2tensor and Marian weights.

    Returns:
      float32 [..., size].

    Raises:
      ValueError: size is odd, or positions are not integers.
    """
    angles = position_angles(positions, size, base)
    if not interleaved:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*angles.shape[:-1], size)


class SinusoidalPositions(nnx.Module):
    """`sinusoidal` as a module without parameters.

    Args:
      max_length: not used; sinusoidal positions have no maximum length.
      model_size: D, even.
      base, interleaved: as for `sinusoidal`.
    """

    def __init__(
        self,
        max_length: int,
        model_size: int,
        *,
        base: float = 10000.0,
        interleaved: bool = True,
        rngs: nnx.Rngs,
    ):
        if not base > 1:
            raise ValueError(f"base: got {base}, expected a number above 1")
        self.model_size, self.base, self.interleaved = model_size, float(base), interleaved

    def __call__(self, length: int) -> Array:
        """Returns the embeddings of positions 0 ... length - 1, float32 [length, D]."""
        return self.at(jnp.arange(length))

    def at(self, positions: Array) -> Array:
        """Returns the embeddings of the given positions, int [...], as float32 [..., D]."""
        return sinusoidal(positions, self.model_size, base=self.base, interleaved=self.interleaved)


class LearnedPositions(nnx.Module):
    """Learned position embeddings (Devlin et al. 2019).

    Parameters: embedding [max_length, D], initialized normal with standard deviation 0.02.
    """

    def __init__(self, max_length: int, model_size: int, *, rngs: nnx.Rngs):
        self.max_length = max_length
        table = 0.02 * jax.random.normal(rngs.params(), (max_length, model_size))
        self.embedding = nnx.Param(table)

    def __call__(self, length: int) -> Array:
        """Returns the embeddings of positions 0 ... length - 1, float32 [length, D].

        Raises:
          ValueError: length exceeds max_length.
        """
        if length > self.max_length:
            expected = f"at most max_length={self.max_length} learned positions"
            raise ValueError(f"length: got {length}, expected {expected}")
        return self.embedding[...][:length]

    def at(self, positions: Array) -> Array:
        """Returns the embeddings of the given positions, int [...], as float32 [..., D].

        The embedding of a position of max_length or more is NaN.
        """
        shapes.expect_integer("positions", positions)
        return jnp.take(self.embedding[...], positions, axis=0, mode="fill")
