"""FNet: mixing by a Fourier transform, a control without attention or parameters.

Lee-Thorp et al. 2022, "FNet: Mixing Tokens with Fourier Transforms".

B examples, T positions, D model size.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, shapes
from attention.dropout import dropout
from attention.numerics import accumulator

Array = jax.Array


def fourier_mix(
    x: Array, *, mask: masks.Mask | Array | None = None, orthonormal: bool = False
) -> Array:
    """Computes the real part of the 2D Fourier transform (Lee-Thorp et al. 2022, equation 3).

        y = Re(F_seq F_hidden x),   y_td = Re Σ_s Σ_c x_sc exp(-2πi (r_t r_s / L + d c / D))

    where L is the number of visible positions, and r_t the number of visible positions before t.
    Hidden positions have no effect. Without hidden positions, r_t is t, L is T, and the FFT is
    used. With hidden positions, each example has its own matrices [T, T] of cosines and sines. Both
    computations are in at least float32.

    Args:
      x: [B, T, D].
      mask: conjunction of `masks.lengths` and `masks.valid`, or None.
      orthonormal: whether to divide by sqrt(L D), which keeps the norm of x; not done in the paper.

    Returns:
      [B, T, D] in x's dtype; 0 at hidden queries, and for examples without real positions.

    Raises:
      ValueError: the shape or dtype does not fit.
      NotImplementedError: the mask has another term; the transform cannot be causal.
    """
    sizes = shapes.expect_arrays({"x": (x, "B T D")})
    B, T = sizes["B"], sizes["T"]
    marks = masks.padding(mask, B, T, T, of="fourier", causal=False)
    wide = jnp.asarray(x).astype(accumulator(x))
    if marks.key is None:
        mixed = jnp.real(jnp.fft.fft2(wide, axes=(1, 2)))
    else:
        mixed = _mixed_by_matrix(jnp.where(marks.key[..., None], wide, 0.0), marks.key)
    if orthonormal:
        count = sizes["T"] if marks.key is None else jnp.sum(marks.key, axis=1)[:, None, None]
        mixed = mixed * jax.lax.rsqrt(jnp.maximum(count, 1) * jnp.asarray(sizes["D"], wide.dtype))
    if marks.query is not None:
        mixed = jnp.where(marks.query[..., None], mixed, 0.0)
    return mixed.astype(x.dtype)


class Fourier(nnx.Module):
    """`fourier_mix` as a mixer without parameters (Lee-Thorp et al. 2022, FNet).

        y = Re(F_T x F_D) / sqrt(T D)

    Args:
      model_size: D of x and of the result.
      num_heads: has no effect; every mixer has this argument.
      orthonormal: whether to divide by sqrt(T D). FNet does not, and normalizes y + x afterwards.
        With pre-norm, y without this factor dominates x, and training fails.
      dropout_rate: dropout rate of the result, active if a dropout_key is given.
      dtype: dtype of the result.
      rngs: has no effect.

    Raises:
      ValueError: a size is below 1, or the rate is out of range.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int = 1,
        *,
        orthonormal: bool = True,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shapes.expect_positive(model_size=model_size, num_heads=num_heads)
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        self.model_size, self.dropout_rate, self.dtype = model_size, dropout_rate, dtype
        self.orthonormal = orthonormal

    def __call__(
        self,
        x: Array,
        *,
        mask: masks.Mask | Array | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array:
        """Mixes the positions and the features of x.

        Args:
          x: [B, T, D].
          mask: conjunction of `masks.lengths` and `masks.valid`, or None.
          dropout_key: random key for dropout; None for evaluation.
          return_weights: not supported.

        Returns:
          [B, T, D].

        Raises:
          ValueError: shapes do not fit.
          NotImplementedError: the mask has another term, or return_weights is True.
        """
        if return_weights:
            raise NotImplementedError(
                "return_weights: got True, expected False, because fourier also mixes features; "
                "use a mixer with the capability 'weights'"
            )
        shapes.expect("x", x, "B T D", {"D": self.model_size})
        x = jnp.asarray(x, self.dtype)
        mixed = fourier_mix(x, mask=mask, orthonormal=self.orthonormal)
        return dropout(mixed, 0.0 if dropout_key is None else self.dropout_rate, dropout_key)


def _mixed_by_matrix(x: Array, valid: Array) -> Array:
    """Computes the transform over the valid positions by a matrix product.

    Args:
      x: [B, T, D], 0 where not valid.
      valid: bool [B, T].
    """
    rank = jnp.cumsum(valid, axis=1) - valid
    count = jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]
    # Full turns (multiples of 2π) are removed with integer arithmetic, because float32 angles of
    # thousands of turns would be inaccurate.
    turns = rank[:, :, None] * rank[:, None, :] % count
    angles = (2 * math.pi / count.astype(x.dtype)) * turns.astype(x.dtype)
    features = jnp.fft.fft(x, axis=-1)

    def transformed(matrix, part):
        # Some platforms multiply matrices at lower precision by default.
        return jnp.matmul(matrix, part, precision=jax.lax.Precision.HIGHEST)

    # Re((cos - i sin)(a + i b)) = cos a + sin b.
    return transformed(jnp.cos(angles), features.real) + transformed(jnp.sin(angles), features.imag)
