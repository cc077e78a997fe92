"""Attributions by removal of positions, and deletion and insertion curves that test attributions.

A score is a function of a gate [B, U] in [0, 1] that returns scores [B]. A gate of 1 keeps a
position of the input. A gate of 0 replaces it by a reference, such as the embedding of [MASK] or a
blurred image.

    def score(gate):                                            # [B, U] -> [B]
        return logits(gate[..., None] * x + (1 - gate[..., None]) * reference)[:, label]

B examples, U positions, G groups of positions, K steps of a curve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from attention.numerics import accumulator

Array = jax.Array
Score = Callable[[Array], Array]


class Curve(NamedTuple):
    """Scores while positions are removed or inserted.

    Attributes:
      fractions: fraction of the positions that are removed or inserted, ascending from 0 to 1,
        [K + 1].
      scores: [B, K + 1], scores at these fractions.
    """

    fractions: Array
    scores: Array


def occlusion(score: Score, groups: Array, *, chunk: int = 1) -> Array:
    """Computes the change of the score if groups of positions are replaced (Zeiler & Fergus 2014).

        a_g = f(1) - f(1 - m_g),   m_gu = 1 if position u is in group g

    Args:
      score: f, from gates [B, U] in [0, 1] to scores [B].
      groups: bool [B, G, U], the positions of each group: words, patches, or single positions
        (`jnp.eye(U, dtype=bool)[None]`). Groups may overlap. A group without positions has
        attribution 0.
      chunk: number of groups that are computed together, under `jax.vmap`.

    Returns:
      a, [B, G] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or chunk is below 1.
    """
    shapes.expect_boolean("groups", groups, true_means="a position of the group")
    shapes.expect("groups", groups, "B G U", {})
    kept = 1.0 - jnp.asarray(groups).astype(jnp.float32)
    everything = jnp.ones_like(kept[:, :1])
    scores = _scores(score, jnp.concatenate([everything, kept], axis=1), chunk)
    return scores[:, :1] - scores[:, 1:]


def deletion_curve(
    score: Score,
    order: Array,
    *,
    valid: Array | None = None,
    steps: int | None = None,
    chunk: int = 1,
) -> Curve:
    """Computes scores while the most important positions are removed (Petsiuk et al. 2018, RISE).

        c_k = f(g_k),   g_ku = 0 for the first round(k / K · U) positions of the order, else 1

    A small area under the curve means that the order begins with the positions that matter.

    Args:
      score: f, from gates [B, U] in [0, 1] to scores [B].
      order: int [B, U], indices of the positions, most important first; see `importance_order`.
      valid: bool [B, U], positions to remove or insert; all if None. The gates of other positions
        stay 1, and U in the formula is the number of valid positions.
      steps: K, number of steps of the curve, at least 1; U if None.
      chunk: number of gates that are computed together, under `jax.vmap`.

    Returns:
      `Curve`: fractions k / K, [K + 1], and scores c, [B, K + 1] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or steps or chunk is below 1.
    """
    fractions, chosen, _ = _chosen(order, valid, steps)
    return Curve(fractions, _scores(score, 1.0 - chosen.astype(jnp.float32), chunk))


def insertion_curve(
    score: Score,
    order: Array,
    *,
    valid: Array | None = None,
    steps: int | None = None,
    chunk: int = 1,
) -> Curve:
    """Computes scores while the most important positions are inserted (Petsiuk et al. 2018, RISE).

        c_k = f(g_k),   g_ku = 1 for the first round(k / K · U) positions of the order, else 0

    A large area under the curve means that the order begins with the positions that matter.

    Args:
      score, order, valid, steps, chunk: as for `deletion_curve`.

    Returns:
      `Curve`: fractions k / K, [K + 1], and scores c, [B, K + 1] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or steps or chunk is below 1.
    """
    fractions, chosen, counted = _chosen(order, valid, steps)
    gates = (chosen | ~counted[:, None]).astype(jnp.float32)
    return Curve(fractions, _scores(score, gates, chunk))


def area_under_curve(curve: Curve) -> Array:
    """Computes the area under a curve by the trapezoidal rule (Petsiuk et al. 2018, RISE).

        A = Σ_k (x_k - x_(k-1)) · (c_k + c_(k-1)) / 2

    Args:
      curve: fractions x, [K + 1], and scores c, [B, K + 1].

    Returns:
      A, [B] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    fractions, scores = curve
    shapes.expect_arrays({"fractions": (fractions, "P"), "scores": (scores, "B P")})
    wide = jnp.promote_types(jnp.float32, jnp.result_type(scores))
    return jnp.trapezoid(jnp.asarray(scores, wide), jnp.asarray(fractions, wide), axis=-1)


def importance_order(attributions: Array) -> Array:
    """Returns the positions in descending order of attribution (Petsiuk et al. 2018, RISE).

        order = argsort(-a), so that a_order_0 ≥ a_order_1 ≥ ...

    Ties keep the order of the positions. NaN comes last.

    Args:
      attributions: a, [B, U], of either sign.

    Returns:
      order, int32 [B, U].

    Raises:
      ValueError: shape or dtype does not fit.
    """
    shapes.expect_arrays({"attributions": (attributions, "B U")})
    return jnp.argsort(-jnp.asarray(attributions), axis=-1, stable=True).astype(jnp.int32)


def uniform_order(batch_size: int, length: int) -> Array:
    """Returns a fixed order of positions in which the first k, for any k, are spread evenly.

        order = positions u sorted by the bit-reversed binary digits of u

    This is the sequence of van der Corput 1935. When methods are compared, use it for attributions
    that are all equal, because `importance_order` would return the positions from first to last.

    Args:
      batch_size: B, number of examples.
      length: U, number of positions.

    Returns:
      order, int32 [B, U].

    Raises:
      ValueError: a size is below 1.
    """
    shapes.expect_positive(batch_size=batch_size, length=length)
    digits = max(length - 1, 1).bit_length()
    reverse = [int(f"{u:0{digits}b}"[::-1], 2) for u in range(length)]
    return jnp.broadcast_to(jnp.asarray(np.argsort(reverse), jnp.int32), (batch_size, length))


def random_order(key: Array, batch_size: int, length: int) -> Array:
    """Returns a random order of the positions for each example (a control, Petsiuk et al. 2018).

        order_b ~ uniform over all permutations of the positions

    Args:
      key: random key, `jax.random.key(seed)`; a key array of shape [].
      batch_size: B, number of examples.
      length: U, number of positions.

    Returns:
      order, int32 [B, U].

    Raises:
      ValueError: a size is below 1.
    """
    shapes.expect_positive(batch_size=batch_size, length=length)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch_size, length))
    return jax.random.permutation(key, positions, axis=1, independent=True)


def _chosen(order: Array, valid: Array | None, steps: int | None) -> tuple[Array, Array, Array]:
    """Selects the first fraction k / K of the valid positions in `order`, for k = 0, ..., K.

    Args:
      order, valid, steps: as for `deletion_curve`.

    Returns:
      The fractions, [K + 1]; the positions chosen at each fraction, bool [B, K + 1, U]; and the
      valid positions, bool [B, U].
    """
    sizes: dict[str, int] = {}
    shapes.expect_integer("order", order)
    shapes.expect("order", order, "B U", sizes)
    shapes.expect_positive(steps=steps)
    counted = jnp.ones(jnp.shape(order), bool)
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="a position to remove or insert")
        shapes.expect("valid", valid, "B U", sizes)
        counted = jnp.asarray(valid)
    K = max(sizes["U"], 1) if steps is None else steps
    fractions = jnp.arange(K + 1, dtype=jnp.float32) / K
    # Ranks of the positions in the order, counting only valid positions.
    order = jnp.asarray(order)
    in_order = jnp.take_along_axis(counted, order, axis=1)
    ranks = jnp.take_along_axis(jnp.cumsum(in_order, axis=1) - 1, jnp.argsort(order), axis=1)
    # Rounded with integer arithmetic: in floats, an exact half may become slightly more or less.
    total = jnp.sum(counted, axis=1)[:, None] * jnp.arange(K + 1)
    number = (2 * total + K) // (2 * K)
    return fractions, (ranks[:, None] < number[..., None]) & counted[:, None], counted


def _scores(score: Score, gates: Array, chunk: int) -> Array:
    """Returns the scores [B, K] of gates [B, K, U]."""
    shapes.expect_positive(chunk=chunk)
    B = gates.shape[0]

    def checked(gate: Array) -> Array:
        scores = score(gate)
        if jnp.shape(scores) != (B,):
            raise ValueError(f"score: got shape {shapes.show(jnp.shape(scores))}, expected [B={B}]")
        shapes.expect_floating("score", scores)
        return scores.astype(accumulator(scores))

    by_gate = jnp.moveaxis(gates, 1, 0)
    # Without a batch size, `map` does not apply `vmap`, which some kernels do not support.
    scores = jax.lax.map(checked, by_gate, batch_size=None if chunk == 1 else chunk)
    return jnp.moveaxis(scores, 0, 1)
