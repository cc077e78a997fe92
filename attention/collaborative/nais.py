"""Item scores computed from the items of a history: NAIS, and FISM, its form without attention.

He et al. 2018, "NAIS: Neural Attentive Item Similarity Model for Recommendation"; Kabbur et al.
2013, "FISM: Factored Item Similarity Models". An item has two vectors: p as a candidate and q as
part of a history:

    scores = nais(target[candidates], source[history], bias=b[candidates],
                  valid=without_target(candidates, history, valid))

The history represents the user. There are no user vectors, so new users can be scored too.

B users, I candidates, S items of a history, D size of an item's vector, A hidden size of attention.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.collaborative.valid import validate_valid
from attention.numerics import accumulator, softmax
from attention.projection import Projection

Array = jax.Array


def smoothed_softmax(logits: Array, beta: float) -> Array:
    """Computes a softmax whose denominator has the exponent β (He et al. 2018).

        a_j = exp(f_j) / (Σ_j' exp(f_j'))^β

    With β < 1 the weights sum to (Σ exp f)^(1 - β) instead of 1, which penalizes long histories
    less. They are computed as softmax(f) · (Σ exp f)^(1 - β), because exp(f) alone could overflow.

    Args:
      logits: f, [..., S], -inf where masked.
      beta: β, in [0, 1]; 1 is softmax.

    Returns:
      a, [..., S] in at least float32; 0, with finite gradients, if all logits are masked.

    Raises:
      ValueError: beta is out of range.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta: got {beta}, expected a number in [0, 1]")
    wide = logits.astype(accumulator(logits))
    weights = softmax(wide)
    if beta == 1.0:
        return weights
    some = jnp.any(wide > -jnp.inf, axis=-1, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(some, wide, 0.0), axis=-1, keepdims=True)
    return weights * jnp.exp((1.0 - beta) * total)


def item_similarity(
    candidates: Array,
    history: Array,
    weights: Array,
    bias: Array | None = None,
) -> Array:
    """Computes scores from the similarity to each item of the history (He et al. 2018).

        y_i = b_i + Σ_j w_ij q_jᵀ p_i

    Args:
      candidates: p, [B, I, D].
      history: q, [B, S, D].
      weights: w, [B, I, S], 0 at padding.
      bias: b, [B, I]; 0 if None.

    Returns:
      y, [B, I] in the candidates' dtype, summed in at least float32. Its sigmoid is a probability.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = _expect_items(candidates, history)
    shapes.expect("weights", weights, "B I S", sizes)
    sums = accumulator(candidates)
    similarity = jnp.einsum("BID,BSD->BIS", candidates, history, preferred_element_type=sums)
    scores = jnp.sum(weights * similarity, axis=-1)
    if bias is not None:
        shapes.expect_floating("bias", bias)
        shapes.expect("bias", bias, "B I", sizes)
        scores = scores + bias
    return scores.astype(candidates.dtype)


def length_factor(valid: Array, alpha: float) -> Array:
    """Computes the normalization by the length of a history (Kabbur et al. 2013).

        c_i = n_i^(-α),   n_i = Σ_j v_ij

    n is the number of summed items; a candidate that is excluded from its own history is not
    counted.

    Args:
      valid: v, bool [B, I, S], or [B, 1, S] if it is the same for all candidates.
      alpha: α, from 0 (a sum) to 1 (a mean).

    Returns:
      c, float32 [B, I, 1] or [B, 1, 1]; 1 for an empty history.

    Raises:
      ValueError: alpha is out of range, or valid does not fit.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: got {alpha}, expected a number in [0, 1]")
    shapes.expect_boolean("valid", valid, true_means="a real item")
    shapes.expect("valid", valid, "B I S", {})
    count = jnp.sum(valid, axis=-1, keepdims=True, dtype=jnp.float32)
    return jnp.maximum(count, 1.0) ** -alpha


class _ItemSimilarity(nnx.Module):
    """Base class of `FISM` and `NAIS`.

        y_i = b_i + Σ_j c_i a_ij q_j·p_i

    A subclass computes the weights a in `weigh`; c is the `length_factor`.
    """

    def __init__(self, model_size: int, alpha: float, dtype: jnp.dtype):
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha: got {alpha}, expected a number in [0, 1]")
        self.model_size, self.alpha, self.dtype = model_size, alpha, dtype

    def weigh(self, candidates: Array, history: Array, valid: Array) -> Array:
        """Computes the weights a of the items of the history, without the length factor.

        Args:
          candidates: [B, I, D].
          history: [B, S, D].
          valid: bool [B, I, S], or [B, 1, S] if it is the same for all candidates.

        Returns:
          a, [B, I, S], or [B, 1, S] if the weights are the same for all candidates.
        """
        raise NotImplementedError

    def __call__(
        self,
        candidates: Array,
        history: Array,
        *,
        bias: Array | None = None,
        valid: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Computes scores of candidates from a history.

        Args:
          candidates: p, [B, I, D].
          history: q, [B, S, D].
          bias: bias of the candidates, [B, I]; 0 if None.
          valid: bool [B, S], real items of the history, or [B, I, S] from `without_target`; all
            are real if None.
          return_weights: whether to return the weights of the similarities too.

        Returns:
          The scores, [B, I] in `dtype`; only the bias for an empty history. With `return_weights`,
          also the weights of the similarities, [B, 1, I, S] in float32.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = _expect_items(candidates, history, self.model_size)
        seen = validate_valid(valid, sizes)
        candidates, history = candidates.astype(self.dtype), history.astype(self.dtype)
        weights = length_factor(seen, self.alpha) * self.weigh(candidates, history, seen)
        weights = jnp.broadcast_to(weights, (sizes["B"], sizes["I"], sizes["S"]))
        scores = recording.record_result(
            item_similarity(candidates, history, weights, bias),
            lambda: weights[:, None],
            mix=lambda w: item_similarity(candidates, history, w[:, 0], bias),
        )
        return (scores, weights[:, None]) if return_weights else scores


class FISM(_ItemSimilarity):
    """FISM: equal weights for all items of the history, a baseline of NAIS (Kabbur et al. 2013).

        y_i = b_i + n^(-α) Σ_(j ≠ i) q_jᵀ p_i

    The module is called like `NAIS`. It has no parameters; the caller owns the items' vectors.

    Args:
      model_size: D, size of an item's vector.
      alpha: α, from 0 (a sum over the history) to 1 (a mean).
      dtype: dtype of the vectors.

    Raises:
      ValueError: alpha is out of range.
    """

    def __init__(
        self, model_size: int, *, alpha: float = 0.5, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(model_size, alpha, dtype)

    def weigh(self, candidates: Array, history: Array, valid: Array) -> Array:
        return valid.astype(jnp.float32)


class NAIS(_ItemSimilarity):
    """Neural attentive item similarity (He et al. 2018).

        y_i = b_i + n^(-α) Σ_(j ≠ i) a_ij q_jᵀ p_i,   a_ij = exp(f_ij) / (Σ_j' exp(f_ij'))^β

    with f_ij = hᵀ relu(W (p_i ∘ q_j) + b) ("prod") or hᵀ relu(W [p_i; q_j] + b) ("concat"). The
    caller excludes j = i by `attention.collaborative.valid.without_target`.

    Parameters: hidden/kernel [D, A] or [2D, A], p's rows first, and hidden/bias [A]; score [A] (h),
    initialized to ones as in the authors' code.

    Args:
      model_size: D, size of an item's vector.
      form: "prod" or "concat", the input of the attention.
      hidden_size: A, size of the hidden layer; D if None.
      beta: β in [0, 1]; with 1 the weights sum to 1.
      alpha: α, from 0 to 1; 0 in the paper, whose weights already depend on the length.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        form: str = "prod",
        hidden_size: int | None = None,
        beta: float = 0.5,
        alpha: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(model_size, alpha, dtype)
        if form not in ("prod", "concat"):
            raise ValueError(f"form: got {form!r}, expected 'prod' or 'concat'")
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta: got {beta}, expected a number in [0, 1]")
        A = model_size if hidden_size is None else hidden_size
        shapes.expect_positive(hidden_size=A)
        self.form, self.beta = form, beta
        inputs = (model_size if form == "prod" else 2 * model_size,)
        self.hidden = Projection(inputs, (A,), dtype=dtype, rngs=rngs)
        self.score = nnx.Param(jnp.ones((A,)))

    def weigh(self, candidates: Array, history: Array, valid: Array) -> Array:
        hidden = jax.nn.relu(self._hidden(candidates, history)).astype(jnp.float32)
        logits = hidden @ self.score[...]
        return smoothed_softmax(jnp.where(valid, logits, -jnp.inf), self.beta)

    def _hidden(self, candidates: Array, history: Array) -> Array:
        """Returns the hidden layer before ReLU, [B, I, S, A]."""
        if self.form == "prod":
            return self.hidden(candidates[:, :, None] * history[:, None])
        # W [p; q] = W_p p + W_q q: W is applied to I + S vectors, not to I · S.
        kernel, sums = self.hidden.kernel[...].astype(self.dtype), accumulator(history)
        ends = (candidates, kernel[: self.model_size]), (history, kernel[self.model_size :])
        p, q = (jnp.matmul(*pair, preferred_element_type=sums) for pair in ends)
        return p[:, :, None] + q[:, None] + cast(nnx.Param, self.hidden.bias)[...]


def _expect_items(
    candidates: Array, history: Array, model_size: int | None = None
) -> dict[str, int]:
    sizes = {} if model_size is None else {"D": model_size}
    named = {"candidates": (candidates, "B I D"), "history": (history, "B S D")}
    return shapes.expect_arrays(named, sizes)
