"""Scores of the next tokens. Only the scores of selected tokens are normalized.

On a CPU, XLA's argmax and top-k read one number at a time. Both are replaced by methods that first
compute maxima, which are vectorized. In shapes, R is the number of rows, and V the vocabulary size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Number of tokens in a block of `top_k`, and the vocabulary size from which blocks are faster.
_BLOCK = 64
_LARGE = 2048


class TokenScores(NamedTuple):
    """Unnormalized scores of all tokens, and the terms that normalize them.

    Attributes:
      values: float32 [R, V]; -inf for excluded tokens.
      shift, log_sum: [R, 1] each. The log-probabilities are values - shift - log_sum. Both are None
        if the values are log-probabilities already.
    """

    values: Array
    shift: Array | None
    log_sum: Array | None

    @classmethod
    def of(cls, logits: Array, forbidden: Array, are_log_probs: bool) -> TokenScores:
        """Computes the scores from logits; the normalization includes excluded tokens.

        Args:
          logits: [R, V].
          forbidden: bool [V], True for tokens that are excluded.
          are_log_probs: whether the logits are log-probabilities.
        """
        logits = logits.astype(jnp.float32)
        values = jnp.where(forbidden, -jnp.inf, logits)
        if are_log_probs:
            return cls(values, None, None)
        shift = jnp.max(logits, axis=-1, keepdims=True)
        sums = jnp.sum(jnp.exp(logits - shift), axis=-1, keepdims=True)
        return cls(values, shift, jnp.log(sums))

    def log_probs(self, values: Array) -> Array:
        """Converts the values of some tokens, [R, n], to log-probabilities."""
        if self.shift is None or self.log_sum is None:
            return values
        return jnp.where(values == -jnp.inf, -jnp.inf, values - self.shift - self.log_sum)

    def best(self) -> tuple[Array, Array]:
        """Returns the most likely token of each row, and its log-probability.

        Of several tokens with equal scores, the first is returned.
        """
        most = jnp.max(self.values, axis=-1, keepdims=True)
        V = self.values.shape[-1]
        token = jnp.min(jnp.where(self.values < most, V, jnp.arange(V)), axis=-1)
        return token, self.log_probs(most)[:, 0]

    def top(self, count: int) -> tuple[Array, Array]:
        """Returns the `count` most likely tokens, int32 [R, n], and their log-probabilities.

        n is `count`, or V if that is smaller.
        """
        values, tokens = top_k(self.values, min(count, self.values.shape[-1]))
        return tokens.astype(jnp.int32), self.log_probs(values)


def top_k(values: Array, k: int) -> tuple[Array, Array]:
    """Computes the result of `jax.lax.top_k` for values [R, V], in two steps if V is large.

    The first step finds the k blocks with the largest maxima. A value in another block is not among
    the best k, because each of these k maxima is larger, or is equal and has a smaller index. The
    second step therefore searches only these k blocks, and the rest after the last full block.
    """
    R, V = values.shape
    blocks = V // _BLOCK
    if V < _LARGE or k >= blocks:
        return jax.lax.top_k(values, k)
    full = values[:, : blocks * _BLOCK].reshape(R, blocks, _BLOCK)
    # The blocks keep the order of the tokens, so that the first of equal values is chosen.
    chosen = jnp.sort(jax.lax.top_k(jnp.max(full, axis=-1), k)[1], axis=-1)
    kept = jnp.take_along_axis(full, chosen[..., None], axis=1).reshape(R, k * _BLOCK)
    kept = jnp.concatenate([kept, values[:, blocks * _BLOCK :]], axis=1)
    tokens = (chosen[..., None] * _BLOCK + jnp.arange(_BLOCK)).reshape(R, k * _BLOCK)
    rest = jnp.broadcast_to(jnp.arange(blocks * _BLOCK, V), (R, V - blocks * _BLOCK))
    found, places = jax.lax.top_k(kept, k)
    return found, jnp.take_along_axis(jnp.concatenate([tokens, rest], axis=1), places, axis=1)
