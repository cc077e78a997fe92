"""Which ids are hidden from a masked language model (Devlin et al. 2019, "BERT").

B batch, T length, M places that are hidden at most.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# Of the ids chosen: hidden, replaced by another, left as they are.
HIDDEN, REPLACED = 0.8, 0.1


class Masked(NamedTuple):
    """Sequences with some ids hidden, and which.

    Attributes:
      tokens: int32 [B, T], as the model reads them.
      places: int32 [B, M] of the ids to be predicted, ascending.
      targets: int32 [B, M], what stood there.
      weight: float32 [B, M], 0 where fewer than M were chosen.
    """

    tokens: Array
    places: Array
    targets: Array
    weight: Array


def most_places(T: int, rate: float, whole_words: bool) -> int:
    """M: the share of T, at least one; for whole words twice that, for words have many ids."""
    count = max(1, math.floor(rate * T + 0.5))
    return min(T, 2 * count if whole_words else count)


def mask_tokens(
    tokens: Array,
    keys: Array,
    *,
    first: int,
    mask: int,
    rate: float,
    words: Array | None = None,
) -> Masked:
    """Chooses ids to be predicted: of n that could be, max(1, round(rate · n)).

    Of these, 80 % become `mask`, 10 % an id drawn evenly from [first, mask), 10 % stay. What is
    drawn for an example depends on its own key and nothing else.

    Args:
      tokens: int [B, T].
      keys: [B].
      first, mask: ids from `first` to below `mask` may be chosen.
      rate: share of the ids, or of the words.
      words: int [B, T], number of the word that an id belongs to, -1 for none: the words are chosen
        then, with all their ids, up to M ids in all. Each id for itself if None.

    Returns:
      See `Masked`. An example that has no such id has weight 0 everywhere.
    """
    M = most_places(tokens.shape[1], rate, words is not None)
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
    # A word all of whose ids are unknown has none to be predicted: it takes no part.
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
    places = jnp.argsort(~chosen, stable=True)[:M]
    return (
        jnp.where(chosen, changed, tokens).astype(jnp.int32),
        places.astype(jnp.int32),
        tokens[places].astype(jnp.int32),
        chosen[places].astype(jnp.float32),
    )
