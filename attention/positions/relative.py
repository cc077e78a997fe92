"""Relative positions as a term of the logits: ALiBi, T5 and Shaw, and their base class.

B examples, T queries, S keys, N heads, H head size.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import shapes
from attention.numerics import accumulator

Array = jax.Array


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Computes the slope of each head (Press et al. 2022, "Train Short, Test Long").

        m_n = 2^(-8 n / N),   n = 1 ... N,   for N a power of two

    For any other N, let P be the next smaller power of two. As in the authors' code, the slopes are
    those for P heads, followed by the first, third, fifth, ... slope for 2P heads.

    Args:
      num_heads: N, number of heads, at least 1.

    Returns:
      float32 [N].

    Raises:
      ValueError: num_heads is below 1.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads: got {num_heads}, expected at least 1")
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * n / power) for n in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * n / power) for n in range(1, 2 * (num_heads - power), 2)]
    return np.array(slopes, np.float32)


def alibi_bias(query_positions: Array, key_positions: Array, num_heads: int) -> Array:
    """Computes a bias proportional to the distance (Press et al. 2022).

        bias_nts = -m_n |p_t - p_s|

    Args:
      query_positions: p_t, int [T] or [B, T].
      key_positions: p_s, int [S] or [B, S].
      num_heads: N, number of heads.

    Returns:
      float32 [B, N, T, S], or [1, N, T, S] if both positions have no axis B.

    Raises:
      ValueError: positions are not integers, or have another rank.
    """
    distance = jnp.abs(_relative(query_positions, key_positions)).astype(jnp.float32)
    return distance[:, None] * -alibi_slopes(num_heads)[:, None, None]


def t5_buckets(
    relative: Array | np.ndarray,
    *,
    bidirectional: bool = True,
    buckets: int = 32,
    max_distance: int = 128,
) -> Array:
    """Computes the bucket of a relative position (Raffel et al. 2020, T5).

        bucket = r,  r < e;   else min(e + ⌊ln(r / e) / ln(max_distance / e) · (n - e)⌋, n - 1)

    with r = |relative|, n buckets for one direction, and e = n / 2. Each distance below e has its
    own bucket; the following buckets become wider logarithmically. If bidirectional, each direction
    has half of the buckets. Otherwise all later keys share bucket 0.

    Args:
      relative: int [...], key position - query position.
      bidirectional: whether later keys have separate buckets.
      buckets: total number of buckets; must be an even number if bidirectional.
      max_distance: distances of at least this value share the last bucket.

    Returns:
      int32 [...], in [0, buckets).

    Raises:
      ValueError: the numbers of buckets and distances do not fit, or relative is not of integers.
    """
    shapes.expect_integer("relative", relative)
    directions = 2 if bidirectional else 1
    n, exact = buckets // directions, buckets // directions // 2
    if exact < 1 or buckets % directions or max_distance <= exact:
        expected = (
            f"at least {2 * directions} buckets (an even number if bidirectional) and max_distance "
            f"above {exact}"
        )
        raise ValueError(
            f"buckets: got {buckets} with max_distance={max_distance}, expected {expected}"
        )
    relative = jnp.asarray(relative, jnp.int32)
    side = jnp.where(relative > 0, n, 0) if bidirectional else 0
    r = jnp.abs(relative) if bidirectional else jnp.maximum(-relative, 0)
    # Buckets have integer boundaries: a rounded logarithm could fall on the wrong side of one.
    first = [exact * (max_distance / exact) ** (i / (n - exact)) for i in range(1, n - exact)]
    first = np.array([math.ceil(f - 1e-9) for f in first], np.int32)
    wide = exact + jnp.sum(r[..., None] >= first, axis=-1, dtype=jnp.int32)
    return side + jnp.where(r < exact, r, jnp.minimum(wide, n - 1))


class RelativePositions(nnx.Module):
    """Base class of positions inside an attention: a rotation or a bias of the logits."""

    def rotate(self, x: Array, positions: Array) -> Array:
        """Rotates queries or keys x, [B, T, N, H]; the base class returns x unchanged."""
        return x

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array | None:
        """Computes the bias that is added to the scaled logits; the base class returns None.

        The bias is [B, N, T, S], or [1, N, T, S] if it is the same for all examples.
        """
        return None


class AlibiPositions(RelativePositions):
    """`alibi_bias` as a module without parameters."""

    def __init__(self, num_heads: int, head_size: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array:
        return alibi_bias(query_positions, key_positions, self.num_heads)


class T5Positions(RelativePositions):
    """A learned bias for each head and each bucket of distances (Raffel et al. 2020).

        bias_nts = table[t5_buckets(p_s - p_t), n]

    Parameters: table [buckets, N], initialized to 0.

    Args:
      num_heads, head_size: N, H of the attention. T5 does not scale logits by 1 / sqrt(H), so
        pretrained weights of T5 need an attention with scale=1.
      bidirectional, buckets, max_distance: as for `t5_buckets`.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        *,
        bidirectional: bool = True,
        buckets: int = 32,
        max_distance: int = 128,
        rngs: nnx.Rngs,
    ):
        self.options = {
            "bidirectional": bidirectional,
            "buckets": buckets,
            "max_distance": max_distance,
        }
        t5_buckets(np.zeros(1, np.int32), **self.options)
        self.table = nnx.Param(jnp.zeros((buckets, num_heads)))

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array:
        buckets = t5_buckets(_relative(query_positions, key_positions), **self.options)
        return jnp.moveaxis(jnp.take(self.table[...], buckets, axis=0), -1, 1)


class ShawPositions(RelativePositions):
    """Relative keys with a learned vector for each clipped distance (Shaw et al. 2018).

        l_ts = q_t · (k_s + a_{clip(p_s - p_t, ±c)}) / sqrt(H)

    Parameters: table [2c + 1, H], shared by the heads, initialized normal with standard deviation
    0.02.

    Args:
      num_heads, head_size: N, H of the attention.
      max_distance: c, at least 1.
    """

    def __init__(self, num_heads: int, head_size: int, *, max_distance: int = 16, rngs: nnx.Rngs):
        if max_distance < 1:
            raise ValueError(f"max_distance: got {max_distance}, expected at least 1")
        self.max_distance = max_distance
        table = 0.02 * jax.random.normal(rngs.params(), (2 * max_distance + 1, head_size))
        self.table = nnx.Param(table)

    def bias(
        self, query: Array, query_positions: Array, key_positions: Array, *, scale: float
    ) -> Array:
        products = jnp.einsum(
            "BTNH,RH->BNTR",
            query,
            self.table[...].astype(query.dtype),
            preferred_element_type=accumulator(query),
        )
        c = self.max_distance
        index = jnp.clip(_relative(query_positions, key_positions), -c, c) + c
        index = jnp.broadcast_to(index[:, None], (*products.shape[:3], index.shape[-1]))
        return scale * jnp.take_along_axis(products, index, axis=-1)


def _relative(query_positions: Array, key_positions: Array) -> Array:
    """Returns the difference key position - query position of each pair, int [1 or B, T, S]."""
    for name, positions in (
        ("query_positions", query_positions),
        ("key_positions", key_positions),
    ):
        shapes.expect_integer(name, positions)
        if jnp.ndim(positions) not in (1, 2):
            got = shapes.show(jnp.shape(positions))
            raise ValueError(f"{name}: got shape {got}, expected [length] or [B, length]")
    relative = jnp.asarray(key_positions)[..., None, :] - jnp.asarray(query_positions)[..., None]
    return relative if relative.ndim == 3 else relative[None]
