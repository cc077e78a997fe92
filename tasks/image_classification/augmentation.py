"""Pictures changed at random in training, by an explicit key."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def shift(images: Array, offsets: Array) -> Array:
    """Moves each picture, in parts of a pixel too; what comes in from outside is 0.

        out[y, x] = Σ_j Σ_i tri(y - o_y - j) · tri(x - o_x - i) · image[j, i]

    with tri(d) = max(0, 1 - |d|), which is bilinear interpolation.

    Args:
      images: [B, Y, X, C].
      offsets: [B, 2], down and to the right.
    """
    _, Y, X, _ = images.shape
    down, right = _moves(offsets[:, 0], Y), _moves(offsets[:, 1], X)
    return jnp.einsum("byj,bxi,bjic->byxc", down, right, images)


def random_shift(images: Array, largest: float, key: Array) -> Array:
    """`shift` by offsets that are uniform between -largest and largest."""
    if largest == 0:
        return images
    offsets = jax.random.uniform(key, (len(images), 2), minval=-largest, maxval=largest)
    return shift(images, offsets)


def _moves(offsets: Array, size: int) -> Array:
    """[B] -> [B, to, from]."""
    places = jnp.arange(size, dtype=jnp.float32)
    distance = places[:, None] - offsets[:, None, None] - places
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))
