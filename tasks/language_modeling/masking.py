"""Masking of tokens for masked language models (Devlin et al. 2019, "BERT").

B batch, T length, M largest number of masked positions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Fractions of chosen tokens that are masked or replaced by random tokens; the others are unchanged.
HIDDEN, REPLACED = 0.8, 0.1


class Masked(NamedTuple):
    """Masked sequences and their targets.

    Attributes:
      tokens: int32 [B, T], input of the model.
      positions: int32 [B, M], positions of the targets, ascending.
      targets: int32 [B, M], original tokens at these positions.
      weight: float32 [B, M], 1 for targets, 0 for padding if a row has fewer than M targets.
    """

    tokens: Array
    positions: Array
    targets: Array
    weight: Array


def max_masked(T: int, rate: float, whole_words: bool) -> int:
    """Returns M, the largest number of masked positions of an example.

    M is rate · T, rounded and at least 1. For whole words it is twice that number, at most T.
    """
    count = max(1, math.floor(rate * T + 0.5))
    return min(T, 2 * count if whole_words else count)


def mask_tokens(
    tokens: Array, keys: Array, *, first: int, mask: int, rate: float, words: Array | None = None
) -> Masked:
    """Selects max(1, round(rate · n)) of n candidate tokens as targets, and masks them.

    80 % of the targets become `mask`, 10 % become a token drawn uniformly from [first, mask), and
    10 % stay. The random numbers of an example depend only on its own key.

    Args:
      tokens: unmasked tokens, int [B, T].
      keys: random key of each example, [B].
      first, mask: candidates are the tokens with ids in [first, mask). `mask` is the mask token.
      rate: fraction of the candidate tokens, or of their words, that are targets.
      words: index of the word of each token for whole-word masking, int [B, T], -1 for tokens
        without a word; at most `max_masked` tokens are targets. None for masking of single tokens.

    Returns:
      The masked sequences. An example without candidates has weight 0 everywhere.
    """
    M = max_masked(tokens.shape[1], rate, words is not None)
    one = jax.vmap(lambda *row: _mask_row(*row, first=first, mask=mask, rate=rate, M=M))
    able = (tokens >= first) & (tokens < mask)
    if words is None:
        words = jnp.cumsum(able, axis=1) - 1
    return Masked(*one(tokens, jnp.where(able, words, -1), keys))


def _mask_row(
    tokens: Array, words: Array, key: Array, *, first: int, mask: int, rate: float, M: int
) -> tuple[Array, Array, Array, Array]:
    T = len(tokens)
    word_key, how_key, other_key = jax.random.split(key, 3)
    # Words without a candidate token, such as unknown words, cannot be selected.
    present = jnp.zeros((T,), bool).at[jnp.where(words >= 0, words, T)].set(True, mode="drop")
    count = jnp.sum(present)
    wanted = jnp.maximum(1, jnp.floor(rate * count + 0.5)).astype(jnp.int32)
    scores = jnp.where(present, jax.random.uniform(word_key, (T,)), 2.0)
    rank = jnp.argsort(jnp.argsort(scores))
    picked = present & (rank < wanted)
    chosen = (words >= 0) & picked[jnp.maximum(words, 0)]
    chosen = chosen & (jnp.cumsum(chosen) <= M)

    how = jax.random.uniform(how_key, (T,))
    other = jax.random.randint(other_key, (T,), first, mask, tokens.dtype)
    changed = jnp.where(how < HIDDEN, mask, jnp.where(how < HIDDEN + REPLACED, other, tokens))
    positions = jnp.argsort(~chosen, stable=True)[:M]
    return (
        jnp.where(chosen, changed, tokens).astype(jnp.int32),
        positions.astype(jnp.int32),
        tokens[positions].astype(jnp.int32),
        chosen[positions].astype(jnp.float32),
    )
