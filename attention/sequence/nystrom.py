"""Nyströmformer: attention through landmarks by the Nyström method.

Xiong et al. 2021, "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention".

M landmarks; the other dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, shapes
from attention.dropout import dropout
from attention.masks import MaskLike
from attention.numerics import accumulator, softmax
from attention.sequence.base import MultiHeadMixer

Array = jax.Array


def iterative_inverse(matrix: Array, *, iterations: int = 6) -> Array:
    """Computes the Moore-Penrose inverse iteratively (Xiong et al. 2021, equations 11 and 12).

    The iteration is that of Razavi et al. 2014:

        Z₀ = Aᵀ / (‖A‖₁ ‖A‖_∞),   Z ← ¼ Z (13 I - AZ (15 I - AZ (7 I - AZ)))

    Each matrix is scaled by its own norms, so results do not depend on the batch. A matrix of zeros
    gives 0.

    Args:
      matrix: A, [..., M, M].
      iterations: number of iterations, at least 1.

    Returns:
      [..., M, M] in at least float32.

    Raises:
      ValueError: iterations is below 1.
    """
    shapes.expect_positive(inverse_iterations=iterations)
    A = matrix.astype(accumulator(matrix))
    sizes = jnp.abs(A)
    norms = jnp.max(jnp.sum(sizes, axis=-2), axis=-1) * jnp.max(jnp.sum(sizes, axis=-1), axis=-1)
    Z = A.swapaxes(-1, -2) / jnp.where(norms == 0, 1.0, norms)[..., None, None]
    identity = jnp.eye(A.shape[-1], dtype=A.dtype)
    for _ in range(iterations):
        AZ = _product(A, Z)
        Z = 0.25 * _product(
            Z, 13 * identity - _product(AZ, 15 * identity - _product(AZ, 7 * identity - AZ))
        )
    return Z


def nystrom_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    num_landmarks: int,
    inverse_iterations: int = 6,
    convolution: Array | None = None,
    mask: MaskLike | None = None,
) -> Array:
    """Computes attention through M landmarks (Xiong et al. 2021, equation 13, "Segment-means").

        o = softmax(q k̃ᵀ) · softmax(q̃ k̃ᵀ)⁺ · softmax(q̃ kᵀ) · v + conv(v),   all logits / sqrt(H)

    q̃ and k̃ are means of M segments of the queries and keys, and ⁺ is `iterative_inverse`. Segments
    and convolution are over the L real positions only. A real position with r real positions before
    it is in segment ⌊r M / L⌋. Hidden positions have no effect. If a query is real and the key at
    its position is hidden, the convolution is centered on the next position with a real key.

    If L <= M, each real key is its own landmark. Exact attention is then computed, which equals the
    formula because A A⁺ A = A.

    The computation is in at least float32, because the inverse amplifies rounding errors.

    Args:
      query: [B, T, N, H].
      key: [B, T, N, H].
      value: [B, T, N, V].
      num_landmarks: M, number of landmarks.
      inverse_iterations: number of iterations of `iterative_inverse`.
      convolution: [size, N] with odd size, a kernel for each head over the values of neighboring
        positions, centered on the query; None for no convolution.
      mask: conjunction of `masks.lengths` and `masks.valid`, or None.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
      NotImplementedError: the mask has another term; segment means cannot be causal.
    """
    factors = _factors(
        query, key, num_landmarks, inverse_iterations, convolution, mask, value=value
    )
    wide = value.astype(accumulator(value))
    if factors.key is not None:
        wide = jnp.where(factors.key[:, :, None, None], wide, 0.0)
    # Small factors first, so that [T, S] is never formed.
    through = jnp.einsum("BNMS,BSNV->BNMV", factors.landmark_to_key, wide)
    if factors.inverse is not None:
        through = _product(factors.inverse, through)
    exact = jnp.einsum("BSM,BSNV->BNMV", factors.segments, wide)
    heads = jnp.einsum(
        "BNTM,BNMV->BTNV", factors.query_to_landmark, jnp.where(factors.is_exact, exact, through)
    )
    if convolution is not None:
        heads = heads + _convolved(wide, convolution, factors.key)
    if factors.query is not None:
        heads = jnp.where(factors.query[:, :, None, None], heads, 0.0)
    return heads.astype(query.dtype)


def nystrom_weights(
    query: Array,
    key: Array,
    *,
    num_landmarks: int,
    inverse_iterations: int = 6,
    convolution: Array | None = None,
    mask: MaskLike | None = None,
) -> Array:
    """Computes the matrix that maps values to `nystrom_attention` (Xiong et al. 2021).

        w = softmax(q k̃ᵀ) · softmax(q̃ k̃ᵀ)⁺ · softmax(q̃ kᵀ) + c_{r_s - r_t}

    with c the kernel of the convolution, and r_t the number of real positions before t. The weights
    may be negative. They are 0 at hidden keys.

    Args:
      query, key: [B, T, N, H].
      num_landmarks, inverse_iterations, convolution, mask: as for `nystrom_attention`.

    Returns:
      [B, N, T, T] in at least float32.

    Raises:
      ValueError, NotImplementedError: as for `nystrom_attention`.
    """
    factors = _factors(query, key, num_landmarks, inverse_iterations, convolution, mask)
    through = factors.landmark_to_key
    if factors.inverse is not None:
        through = _product(factors.inverse, through)
    exact = factors.segments.swapaxes(1, 2)[:, None]
    weights = jnp.einsum(
        "BNTM,BNMS->BNTS", factors.query_to_landmark, jnp.where(factors.is_exact, exact, through)
    )
    if convolution is not None:
        size = convolution.shape[0]
        rank = _rank(factors.key, key.shape[1])
        offset = rank[:, None, :] - rank[:, :, None] + size // 2
        taps = jnp.take(convolution.astype(weights.dtype).T, jnp.clip(offset, 0, size - 1), axis=1)
        band = jnp.where((offset >= 0) & (offset < size), taps, 0.0).swapaxes(0, 1)
        weights = weights + band
    if factors.key is not None:
        weights = jnp.where(factors.key[:, None, None], weights, 0.0)
    if factors.query is not None:
        weights = jnp.where(factors.query[:, None, :, None], weights, 0.0)
    return weights


class Nystromformer(MultiHeadMixer):
    """Multi-head self-attention by `nystrom_attention` (Xiong et al. 2021).

        head_n = softmax(q k̃ᵀ) softmax(q̃ k̃ᵀ)⁺ softmax(q̃ kᵀ) v + conv(v),   y = concat_n(head_n) W_o

    Parameters: those of `MultiHeadMixer`, and convolution [kernel_size, N] unless kernel_size is 0.

    Args:
      num_landmarks: M, number of landmarks; with at most M real positions, attention is exact.
      inverse_iterations: number of iterations of `iterative_inverse`.
      kernel_size: kernel size of the convolution, odd; 0 for none.
      options: those of `MultiHeadMixer`. Dropout is applied to the outputs of the heads. `dtype` is
        the dtype of the projections only.

    Raises:
      ValueError: a number is below 1, or kernel_size is even.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        num_landmarks: int = 64,
        inverse_iterations: int = 6,
        kernel_size: int = 33,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        sizes = {"num_landmarks": num_landmarks, "inverse_iterations": inverse_iterations}
        shapes.expect_positive(**sizes)
        if kernel_size < 0 or (kernel_size and kernel_size % 2 == 0):
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd size, or 0 for none")
        super().__init__(model_size, num_heads, rngs=rngs, **options)
        self.num_landmarks, self.inverse_iterations = num_landmarks, inverse_iterations
        limit, shape = 1 / math.sqrt(max(kernel_size, 1)), (kernel_size, num_heads)
        taps = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
        self.convolution = nnx.Param(taps) if kernel_size else None

    def _mix(
        self, x: Array, mask: MaskLike | None, dropout_rate: float, dropout_key: Array | None
    ) -> tuple[Array, Callable[[], Array]]:
        shapes.expect_known_length("x", x)
        query, key, value = self.query(x), self.key(x), self.value(x)
        options = {
            "num_landmarks": self.num_landmarks,
            "inverse_iterations": self.inverse_iterations,
            "convolution": None if self.convolution is None else self.convolution[...],
            "mask": mask,
        }
        heads = dropout(nystrom_attention(query, key, value, **options), dropout_rate, dropout_key)
        return heads, functools.partial(nystrom_weights, query, key, **options)


@dataclasses.dataclass(frozen=True)
class _Factors:
    """Factors of the matrix that maps values to outputs.

    Attributes:
      query_to_landmark: softmax(q k̃ᵀ), [B, N, T, M].
      inverse: inverse of softmax(q̃ k̃ᵀ), [B, N, M, M]; None if M = T, where attention is exact.
      landmark_to_key: softmax(q̃ kᵀ), [B, N, M, S].
      segments: [B, S, M], 1 / (size of the segment) if the key is in the segment, else 0.
      is_exact: bool [B, 1, 1, 1], whether each key of the example is its own landmark.
      query, key: bool [B, T], real positions; None for all.
    """

    query_to_landmark: Array
    inverse: Array | None
    landmark_to_key: Array
    segments: Array
    is_exact: Array
    query: Array | None
    key: Array | None


def _factors(
    query, key, num_landmarks, inverse_iterations, convolution, mask, value=None
) -> _Factors:
    sizes = shapes.expect_attention(query, key, value)
    shapes.expect("key", key, "B T N H", sizes)
    B, T, N = sizes["B"], sizes["T"], sizes["N"]
    shapes.expect_positive(num_landmarks=num_landmarks)
    if convolution is not None:
        shapes.expect("convolution", convolution, "size N", {"N": N})
        if convolution.shape[0] % 2 == 0:
            got = shapes.show(convolution.shape)
            raise ValueError(f"convolution: got shape {got}, expected an odd first axis")
    marks = masks.padding(mask, B, T, T, of="nystromformer", causal=False)
    M, wide = min(num_landmarks, T), accumulator(query)
    query, key = query.astype(wide) * sizes["H"] ** -0.5, key.astype(wide)
    # Without a query mask, segments of queries contain the positions of real keys.
    asking, _, _ = _segments(marks.key if marks.query is None else marks.query, B, T, M, wide)
    segments, used, is_exact = _segments(marks.key, B, T, M, wide)
    query_landmarks = jnp.einsum("BTM,BTNH->BMNH", asking, query)
    key_landmarks = jnp.einsum("BSM,BSNH->BMNH", segments, key)
    used, seen = used[:, None, None], None if marks.key is None else marks.key[:, None, None]
    inverse = None
    if M < T:
        # A segment without queries is a row of zeros, without effect on the inverse.
        between = _softmax(query_landmarks, key_landmarks, used)
        between = between * (jnp.sum(asking, axis=1) > 0)[:, None, :, None]
        inverse = iterative_inverse(between, iterations=inverse_iterations)
    return _Factors(
        query_to_landmark=_softmax(query, key_landmarks, used),
        inverse=inverse,
        landmark_to_key=_softmax(query_landmarks, key, seen),
        segments=segments,
        is_exact=is_exact[:, None, None, None],
        query=marks.query,
        key=marks.key,
    )


def _segments(valid: Array | None, B: int, T: int, M: int, dtype) -> tuple[Array, Array, Array]:
    """Divides the real positions into M segments.

    Returns:
      The matrix that computes the mean of each segment, [B, T, M]; whether a segment has positions,
      bool [B, M]; and whether L <= M, bool [B].
    """
    real = jnp.ones((B, T), bool) if valid is None else valid
    count = jnp.sum(real, axis=1)
    segment = _rank(real, T) * M // jnp.maximum(count, 1)[:, None]
    members = (segment[..., None] == jnp.arange(M)) & real[..., None]
    sizes = jnp.sum(members, axis=1)
    means = members.astype(dtype) / jnp.maximum(sizes, 1)[:, None]
    return means, sizes > 0, count <= M


def _rank(valid: Array | None, T: int) -> Array:
    """Returns the number of real positions before each position, int [B or 1, T]."""
    if valid is None:
        return jnp.arange(T)[None]
    return jnp.cumsum(valid, axis=1) - valid


def _softmax(query: Array, key: Array, seen: Array | None) -> Array:
    """Computes softmax(q kᵀ), [B, N, T, S], over the visible keys.

    Args:
      query, key: [B, T, N, H] and [B, S, N, H].
      seen: visible keys, bool [B, 1, 1, S]; all if None.
    """
    logits = jnp.einsum("BTNH,BSNH->BNTS", query, key)
    return softmax(logits if seen is None else jnp.where(seen, logits, -jnp.inf))


def _convolved(value: Array, taps: Array, valid: Array | None) -> Array:
    """Convolves the values of the real positions with the kernel of each head.

    Args:
      value: [B, T, N, V].
      taps: the kernels, [size, N].
      valid: real positions, bool [B, T]; all if None.

    Returns:
      [B, T, N, V].
    """
    size, T = taps.shape[0], value.shape[1]
    rank = _rank(valid, T)
    if valid is not None:
        # Real positions are moved to the front; hidden ones are written out of range and dropped.
        index = jnp.where(valid, rank, T)
        value = jax.vmap(lambda v, i: jnp.zeros_like(v).at[i].set(v, mode="drop"))(value, index)
    half = size // 2
    padded = jnp.pad(value, ((0, 0), (half, half), (0, 0), (0, 0)))
    taps = taps.astype(value.dtype)[:, :, None]
    terms = (taps[i] * padded[:, i : i + T] for i in range(size))
    result = sum(terms, jnp.zeros((), value.dtype))
    if valid is not None:
        result = jnp.take_along_axis(result, rank[:, :, None, None], axis=1)
    return result


def _product(a: Array, b: Array) -> Array:
    # Some platforms multiply at lower precision by default, and iteration amplifies the errors.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
