"""Beam search with any step function, for all examples at once.

Graves 2012, "Sequence Transduction with Recurrent Neural Networks"; Sutskever et al. 2014. The
rules for finished hypotheses and for stopping are those of the library transformers, so that this
search gives the same tokens as the library. `tasks.common.decoding.generate.generate` calls it.

In shapes, B is the batch size, K the number of beams, T the number of steps, V the vocabulary size,
and N the number of returned sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention.kernels.rows import reorder_rows
from tasks.common.decoding.batching import (
    mask_leaves,
    take_rows,
    unflatten_beams,
    write_step,
)
from tasks.common.decoding.scores import TokenScores

Array = jax.Array


def length_normalized(total: Array, length: Array | int, penalty: float) -> Array:
    """Computes the score of a sequence (simplified from Wu et al. 2016).

        score = Σ log-probabilities / length^p

    Args:
      total: sum of the log-probabilities.
      length: number of tokens.
      penalty: p.
    """
    return total / jnp.asarray(length, jnp.float32) ** penalty


class _Finished(NamedTuple):
    """The best K finished hypotheses of each example. All leaves have shape [B, K].

    Attributes:
      score: score of the hypothesis; -inf if it is missing.
      length: number of tokens, including the end token; 0 if the hypothesis is missing.
      row: index of the prefix to which the last step appended the last token.
      token: the last token.
    """

    score: Array
    length: Array
    row: Array
    token: Array


class _Beams(NamedTuple):
    """State of the search: K prefixes of each example, best first.

    The prefixes are stored as the tokens of each step, with back-pointers to the step before.

    Attributes:
      t: number of steps taken.
      tokens: last token of each prefix, [B, K].
      state: state of the step function, with leaves [B·K, ...].
      total: sum of the log-probabilities of each prefix, [B, K]; -inf for a missing prefix.
      written: int32 [T, B, K], the tokens that each step appended.
      parents: int32 [T, B, K], the index of the prefix to which each of these tokens was appended.
      extras: extra outputs of the steps, [T, B·K, ...], in the order of the prefixes before a step.
      finished: finished hypotheses.
      closed: bool [B], True for examples whose search is over.
    """

    t: Array
    tokens: Array
    state: Any
    total: Array
    written: Array
    parents: Array
    extras: Any
    finished: _Finished
    closed: Array


def beam_search(
    scored: Callable[[Array, Any], tuple[TokenScores, Any, Any]],
    start: Array,
    state: Any,
    extras: Any,
    *,
    K: int,
    N: int,
    max_length: int,
    length_penalty: float,
    exact: bool,
    end: int | None,
    pad: int,
) -> tuple[Array, Array, Any]:
    """Finds the best sequences of each example.

    Each step selects the best 2K of the K·V continuations. Those that end with `end`, and are among
    the best K, become finished hypotheses. The best K that do not end become the new prefixes. In
    step T, all continuations end.

    Args:
      scored: function that takes tokens, int32 [B·K], and a state. It returns the scores of the
        next tokens, the next state, and extra outputs.
      start: tokens before the first step, int32 [B·K].
      state: state before the first step, with leaves [B·K, ...].
      extras: buffers for the extra outputs of each step, with leaves [T, B·K, ...].
      K, N, max_length: number of beams, number of returned sequences, and T.
      length_penalty, exact: see `tasks.common.decoding.generate.DecodingConfig`; `exact` is True
        for the stopping "exact".
      end, pad: see `tasks.common.decoding.generate.generate`.

    Returns:
      The tokens [B, N, T], scores [B, N] and extras [B, N, T, ...] of a `DecodingResult`.
    """
    B, T = start.shape[0] // K, max_length

    def advance(now: _Beams) -> _Beams:
        scores, state, values = scored(now.tokens.reshape(-1), now.state)
        # The best 2K of all K·V continuations are among the best 2K of each prefix.
        best, gained = scores.top(2 * K)
        n = best.shape[-1]
        totals = (now.total[..., None] + gained.reshape(B, K, n)).reshape(B, K * n)
        totals, indices = jax.lax.top_k(totals, min(2 * K, K * n))
        rows = (indices // n).astype(jnp.int32)
        tokens = take_rows(best.reshape(B, K * n), indices)
        length = now.t + 1
        ends = jnp.broadcast_to(length == T, tokens.shape) | (
            False if end is None else tokens == end
        )

        counts = ends & (jnp.arange(tokens.shape[1]) < K) & ~now.closed[:, None]
        new = jnp.where(counts, length_normalized(totals, length, length_penalty), -jnp.inf)
        new = _Finished(new, jnp.where(new == -jnp.inf, 0, length), rows, tokens)
        both = [jnp.concatenate(pair, axis=1) for pair in zip(now.finished, new, strict=True)]
        best = jax.lax.top_k(both[0], K)[1]
        finished = _Finished(*(take_rows(leaf, best) for leaf in both))

        totals, best = jax.lax.top_k(jnp.where(ends, -jnp.inf, totals), K)
        rows, tokens = take_rows(rows, best), take_rows(tokens, best)

        def moved(before: Array, after: Array) -> Array:
            # A leaf that the step returns unchanged is equal in all beams of an example, so it is
            # not reordered.
            if after is before:
                return after
            return reorder_rows(after, rows)

        longest = T if exact and length_penalty > 0 else length
        bound = length_normalized(totals[:, 0], longest, length_penalty)
        return _Beams(
            length,
            tokens,
            jax.tree.map(moved, now.state, state),
            totals,
            now.written.at[now.t].set(tokens),
            now.parents.at[now.t].set(rows),
            write_step(now.extras, now.t, values),
            finished,
            now.closed | (bound <= finished.score[:, -1]),
        )

    # All K prefixes of an example are empty at first, so all but the first one are excluded.
    total = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf)
    zeros = jnp.zeros((B, K), jnp.int32)
    first = _Beams(
        jnp.int32(0),
        start.reshape(B, K),
        state,
        jnp.broadcast_to(total, (B, K)).astype(jnp.float32),
        jnp.zeros((T, B, K), jnp.int32),
        jnp.zeros((T, B, K), jnp.int32),
        extras,
        _Finished(jnp.full((B, K), -jnp.inf, jnp.float32), zeros, zeros, zeros),
        jnp.zeros((B,), bool),
    )
    last = jax.lax.while_loop(lambda now: (now.t < T) & ~jnp.all(now.closed), advance, first)
    return _backtrack(last, N, pad)


def _backtrack(beams: _Beams, N: int, pad: int) -> tuple[Array, Array, Any]:
    """Follows the back-pointers from the best N finished hypotheses of each example.

    Returns:
      As for `beam_search`.
    """
    finished = _Finished(*(leaf[:, :N] for leaf in beams.finished))
    B, K = beams.tokens.shape

    def back(after: Array, step: Any) -> tuple[Array, tuple[Array, Any]]:
        """Follows the back-pointers of one step.

        Args:
          after: indices of the prefixes after the step, [B, N].
          step: index, tokens, parents and extras of the step.

        Returns:
          Indices of the prefixes before the step, [B, N]; tokens and extras of the step.
        """
        t, written, parents, extras = step
        at_end = t + 1 == finished.length
        token = jnp.where(at_end, finished.token, take_rows(written, after))
        row = jnp.where(at_end, finished.row, take_rows(parents, after))
        extras = jax.tree.map(lambda leaf: take_rows(unflatten_beams(leaf, K), row), extras)
        inside = t < finished.length
        return row, (jnp.where(inside, token, pad), mask_leaves(inside, extras))

    steps = (jnp.arange(len(beams.written)), beams.written, beams.parents, beams.extras)
    _, found = jax.lax.scan(back, jnp.zeros((B, N), jnp.int32), steps, reverse=True)
    tokens, extras = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), found)
    return tokens, finished.score, extras
