"""Scores of items by the items that a user had: NAIS, and FISM, which it weighs anew.

He et al. 2018, "NAIS: Neural Attentive Item Similarity Model for Recommendation"; Kabbur et al.
2013, "FISM: Factored Item Similarity Models". An item has two vectors, p where it is to be scored
and q where it is part of a history:

    scores = nais(target[candidates], source[history], bias=b[candidates],
                  valid=without_target(candidates, history, valid))

The history stands for the user: there is no vector of users, and one who comes new has scores.

B users, I candidates, S items of a history, D size of an item's vector, A hidden size of attention.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.collaborative.valid import validate_valid
from attention.numerics import accumulator, softmax
from attention.projection import Projection

Array = jax.Array


def smoothed_softmax(logits: Array, beta: float) -> Array:
    """Softmax with less of its denominator (He et al. 2018).

        a_j = exp(f_j) / (Σ_j' exp(f_j'))^β

    With β < 1 the weights do not sum to 1 but to (Σ exp f)^(1 - β): long histories, whose weights
    would each be small, are punished less. Computed as softmax(f) · (Σ exp f)^(1 - β), so that no
    exp(f) by itself can overflow.

    Args:
      logits: f, [..., S], -inf where masked.
      beta: β, in [0, 1]; 1 is softmax.

    Returns:
      a, [..., S] in at least float32; 0, with finite gradients, where all is masked.

    Raises:
      ValueError: beta is out of range.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta: got {beta}, expected a number in [0, 1]")
    wide = logits.astype(accumulator(logits))
    shares = softmax(wide)
    if beta == 1.0:
        return shares
    some = jnp.any(wide > -jnp.inf, axis=-1, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(some, wide, 0.0), axis=-1, keepdims=True)
    return shares * jnp.exp((1.0 - beta) * total)


def item_similarity(
    candidates: Array,
    history: Array,
    weights: Array,
    bias: Array | None = None,
) -> Array:
    """Scores by the similarity to each item of the history (He et al. 2018).

        y_i = b_i + Σ_j w_ij q_jᵀ p_i

    Args:
      candidates: p, [B, I, D].
      history: q, [B, S, D].
      weights: w, [B, I, S], 0 where there is nothing.
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
    """How the length of a history is evened out (Kabbur et al. 2013).

        c_i = n_i^(-α),   n_i = Σ_j v_ij

    n counts what is summed: not a candidate that is left out of its own history.

    Args:
      valid: bool [B, 1 or I, S].
      alpha: α, from 0 (a sum) to 1 (a mean).

    Returns:
      c, float32 [B, 1 or I, 1]; 1 for an empty history.

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
    """Base: scores = b + Σ_j w_ij q_j·p_i with the weights of `weigh`."""

    def __init__(self, model_size: int, alpha: float, dtype: jnp.dtype):
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha: got {alpha}, expected a number in [0, 1]")
        self.model_size, self.alpha, self.dtype = model_size, alpha, dtype

    def weigh(self, candidates: Array, history: Array, valid: Array) -> Array:
        """[B, I, D], [B, S, D], bool [B, 1 or I, S] -> [B, 1 or I, S] before the length factor."""
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
        """Scores candidates by a history.

        Args:
          candidates: p, [B, I, D].
          history: q, [B, S, D].
          bias: of the candidates, [B, I]; 0 if None.
          valid: bool [B, S], or [B, I, S] as `without_target` gives it; all are real if None.
          return_weights: also return what multiplies the similarities.

        Returns:
          [B, I] in `dtype`, the bias alone where the history is empty; or that and the weights
          [B, 1, I, S] in float32.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = _expect_items(candidates, history, self.model_size)
        seen = validate_valid(valid, sizes)
        candidates, history = candidates.astype(self.dtype), history.astype(self.dtype)
        weights = length_factor(seen, self.alpha) * self.weigh(candidates, history, seen)
        weights = jnp.broadcast_to(weights, (sizes["B"], sizes["I"], sizes["S"]))
        recording.record(lambda: weights[:, None])
        scores = item_similarity(candidates, history, weights, bias)
        return (scores, weights[:, None]) if return_weights else scores


class FISM(_ItemSimilarity):
    """All items of the history alike: the control of NAIS (Kabbur et al. 2013).

        y_i = b_i + n^(-α) Σ_(j ≠ i) q_jᵀ p_i

    Called as `NAIS` is; there is nothing to learn but the items' vectors, which the caller owns.

    Args:
      model_size: D.
      alpha: α, from 0 (a sum over the history) to 1 (a mean).
      dtype: of the vectors.

    Raises:
      ValueError: alpha is out of range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        alpha: float = 0.5,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(model_size, alpha, dtype)

    def weigh(self, candidates: Array, history: Array, valid: Array) -> Array:
        """1 for what is real."""
        return valid.astype(jnp.float32)


class NAIS(_ItemSimilarity):
    """Neural attentive item similarity (He et al. 2018).

        y_i = b_i + n^(-α) Σ_(j ≠ i) a_ij q_jᵀ p_i,   a_ij = exp(f_ij) / (Σ_j' exp(f_ij'))^β

    with f_ij = hᵀ relu(W (p_i ∘ q_j) + b) ("prod") or hᵀ relu(W [p_i; q_j] + b) ("concat"). That
    j ≠ i is the caller's to say, by `attention.collaborative.valid.without_target`.

    Weights: hidden/kernel [D, A] or [2D, A], p's rows first, and hidden/bias [A]; score [A] (h),
    which begins with ones, as the authors' does.

    Args:
      model_size: D.
      form: "prod" or "concat", what attention looks at.
      hidden_size: A; D if None.
      beta: β in [0, 1]; with 1 the weights sum to 1.
      alpha: α, from 0 to 1; 0 in the paper, where the weights take care of length.
      dtype: of the computation; weights are float32.

    Raises:
      ValueError: a word or a number is not one of those.
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
        if A < 1:
            raise ValueError(f"hidden_size: got {A}, expected at least 1, or None")
        self.form, self.beta = form, beta
        inputs = (model_size if form == "prod" else 2 * model_size,)
        self.hidden = Projection(inputs, (A,), dtype=dtype, rngs=rngs)
        self.score = nnx.Param(jnp.ones((A,)))

    def weigh(self, candidates: Array, history: Array, valid: Array) -> Array:
        """a, [B, I, S] in float32."""
        hidden = jax.nn.relu(self._hidden(candidates, history)).astype(jnp.float32)
        logits = hidden @ self.score[...]
        return smoothed_softmax(jnp.where(valid, logits, -jnp.inf), self.beta)

    def _hidden(self, candidates: Array, history: Array) -> Array:
        """[B, I, S, A]"""
        if self.form == "prod":
            return self.hidden(candidates[:, :, None] * history[:, None])
        # W [p; q] = W_p p + W_q q: the product with W is of I + S vectors, not of I · S.
        kernel, sums = self.hidden.kernel[...].astype(self.dtype), accumulator(history)
        ends = (candidates, kernel[: self.model_size]), (history, kernel[self.model_size :])
        p, q = (jnp.matmul(*pair, preferred_element_type=sums) for pair in ends)
        return p[:, :, None] + q[:, None] + self.hidden.bias[...]


def _expect_items(
    candidates: Array, history: Array, model_size: int | None = None
) -> dict[str, int]:
    sizes = {} if model_size is None else {"D": model_size}
    shapes.expect_floating("candidates", candidates)
    shapes.expect_floating("history", history)
    shapes.expect("candidates", candidates, "B I D", sizes)
    shapes.expect("history", history, "B S D", sizes)
    return sizes
