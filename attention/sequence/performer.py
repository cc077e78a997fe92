"""Performer (FAVOR+): linear attention with random features of the softmax or ReLU kernel.

Choromanski et al. 2021, "Rethinking Attention with Performers". F random features; the other
dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.numerics import accumulator
from attention.sequence.linear import FeatureAttention, LinearState, linear_attention
from attention.sequence.log_linear import (
    LogLinearState,
    expect_power_of_two,
    log_linear_attention,
)

Array = jax.Array

KERNELS = ("softmax", "relu")


class RandomFeatures(nnx.Variable):
    """Random directions, which are not trained but are stored in checkpoints."""


def draw_directions(key: Array, features: int, head_size: int, *, orthogonal: bool = True) -> Array:
    """Draws directions ω_1 ... ω_F, each from N(0, I) (Choromanski et al. 2021, section 2.4).

        ω_f = |g_f| · u_f,   g_f ~ N(0, I_H)

    If orthogonal, the u_f are rows of orthogonal matrices that are drawn uniformly, one matrix for
    every H directions, and the |g_f| are independent chi-distributed lengths. Each single ω_f is
    still distributed as N(0, I), so estimates of the kernel have the same mean, and their variance
    is smaller. Otherwise u_f = g_f / |g_f|.

    Args:
      key: a key of `jax.random`, [].
      features: F, number of random features.
      head_size: H, size of a head.
      orthogonal: whether directions are orthogonal in blocks of H.

    Returns:
      [F, H], float32.

    Raises:
      ValueError: a size is below 1.
    """
    shapes.expect_positive(features=features, head_size=head_size)
    normal_key, orthogonal_key = jax.random.split(key)
    normal = jax.random.normal(normal_key, (features, head_size), jnp.float32)
    if not orthogonal:
        return normal
    blocks = (-(-features // head_size),)
    # Uniform (Haar) matrices. Those of a plain QR decomposition have biased signs.
    matrices = jax.random.orthogonal(orthogonal_key, head_size, blocks, jnp.float32)
    lengths = jnp.linalg.norm(normal, axis=-1, keepdims=True)
    return lengths * matrices.reshape(-1, head_size)[:features]


def softmax_log_features(x: Array, directions: Array) -> Array:
    """Computes the logarithms of positive softmax features (Choromanski et al. 2021, lemma 1).

        log φ_f(x) = ω_f·x' - |x'|²/2 - log(F)/2,   x' = x / H^¼,   E φ(q)·φ(k) = exp(q·k / sqrt(H))

    Args:
      x: queries or keys, [..., H].
      directions: ω, [F, H].

    Returns:
      [..., F], in at least float32.

    Raises:
      ValueError: the sizes do not fit.
    """
    x, directions = _scaled(x, directions)
    size = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x @ directions.T - size / 2 - jnp.log(jnp.asarray(len(directions), x.dtype)) / 2


def relu_features(x: Array, directions: Array, *, epsilon: float = 1e-3) -> Array:
    """Computes features of the ReLU kernel (Choromanski et al. 2021, section 2.2, appendix B.3).

        φ_f(x) = (max(ω_f·x', 0) + ε) / sqrt(F),   x' = x / H^¼

    Args:
      x: queries or keys, [..., H].
      directions: ω, [F, H].
      epsilon: ε, above 0, so that no row has only zero features.

    Returns:
      [..., F], in at least float32.

    Raises:
      ValueError: the sizes do not fit.
    """
    x, directions = _scaled(x, directions)
    return (jax.nn.relu(x @ directions.T) + epsilon) / len(directions) ** 0.5


def _scaled(x: Array, directions: Array) -> tuple[Array, Array]:
    shapes.expect_floating("x", x)
    shapes.expect("directions", directions, "F H", {"H": x.shape[-1]})
    x = x.astype(accumulator(x))
    return x / x.shape[-1] ** 0.25, directions.astype(x.dtype)


class Performer(FeatureAttention):
    """Linear attention with random features (Choromanski et al. 2021, FAVOR+).

        head_n = linear_attention(φ(x W_q,n), φ(x W_k,n), x W_v,n),   y = concat_n(head_n) W_o

    Features of the softmax kernel are stored as logarithms (see `log_linear_attention`), so that
    they cannot overflow and each query and key has its own scale.

    Parameters: those of `MultiHeadMixer`. Buffer: directions [F, H], shared by all heads.

    Args:
      features: F, number of random features.
      kernel: "softmax", an approximation of dot-product attention, or "relu".
      orthogonal: whether directions are orthogonal in blocks of H.
      chunk_size: as for `FeatureAttention`; a power of two with the softmax kernel.
      options: those of `FeatureAttention`.

    Raises:
      ValueError: a size is below 1, the kernel is unknown, or the kernel does not support the
        chunk_size.
    """

    name = "performer"

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        features: int = 256,
        kernel: str = "softmax",
        orthogonal: bool = True,
        chunk_size: int = 64,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(model_size, num_heads, chunk_size=chunk_size, rngs=rngs, **options)
        if kernel not in KERNELS:
            raise ValueError(f"kernel: got {kernel!r}, expected one of {list(KERNELS)}")
        if kernel == "softmax":
            expect_power_of_two(chunk_size)
        self.features, self.kernel, self.orthogonal = features, kernel, orthogonal
        self.directions = RandomFeatures(self._drawn(rngs.params()))

    def _drawn(self, key: Array) -> Array:
        return draw_directions(key, self.features, self.head_size, orthogonal=self.orthogonal)

    def redraw(self, key: Array) -> None:
        """Redraws the directions, as the paper does repeatedly in training.

        Args:
          key: a key of `jax.random`.
        """
        self.directions[...] = self._drawn(key)

    def _linear_attention(self, query: Array, key: Array, value: Array, **options: Any) -> Any:
        directions = self.directions[...]
        softmax = self.kernel == "softmax"
        features = softmax_log_features if softmax else relu_features
        attention = log_linear_attention if softmax else linear_attention
        query, key = features(query, directions), features(key, directions)
        return attention(query, key, value, chunk_size=self.chunk_size, **options)

    def _empty_state(self, batch_size: int, dtype: jnp.dtype) -> LinearState | LogLinearState:
        shape = (batch_size, self.num_heads, self.features)
        sums, total = jnp.zeros((*shape, self.head_size), dtype), jnp.zeros(shape, dtype)
        if self.kernel == "relu":
            return LinearState(sums, total)
        return LogLinearState(sums, total, jnp.full(shape, -jnp.inf, dtype))
