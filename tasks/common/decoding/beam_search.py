"""Beam search over anything that steps, all examples at once.

Graves 2012, "Sequence Transduction with Recurrent Neural Networks"; Sutskever et al. 2014. What
is finished and when to stop is as in the library transformers, whose tokens these are. To be called
by `tasks.common.decoding.generate.generate`.

B batch, K beams, T steps, V words, N sequences wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tasks.common.decoding.batching import (
    flatten_beams,
    mask_leaves,
    take_rows,
    unflatten_beams,
    write_step,
)

Array = jax.Array


def length_normalized(total: Array, length: Array | int, penalty: float) -> Array:
    """score = Σ log-probabilities / length^p."""
    return total / jnp.asarray(length, jnp.float32) ** penalty


class _Finished(NamedTuple):
    """The best K of each example that are finished so far, each leaf [B, K].

    Attributes:
      score: -inf where there is none.
      length: tokens, the end token included; 0 where there is none.
      row: which prefix the last token was written after, token: that one.
    """

    score: Array
    length: Array
    row: Array
    token: Array


class _Beams(NamedTuple):
    """Prefixes [B, K], best first; steps are kept with what they came from, and joined at the end.

    Attributes:
      t: steps taken.
      tokens, state, total: the last token, state [B·K, ...] and summed log-probability of each
        prefix; -inf where there is none.
      written, parents: int32 [T, B, K], the token of each step and the prefix it was written after.
      extras: [T, B·K, ...], of the prefixes before each step.
      finished: what has ended.
      closed: bool [B], examples that look no further.
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
    scored: Callable[[Array, Any], tuple[Array, Any, Any]],
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
    """The best sequences of each example.

    Of the K·V continuations the best 2K are looked at: among the first K, those that end are
    finished; the best K that do not end go on. After T steps all are finished.

    Args:
      scored: tokens [B·K], state -> log-probabilities [B·K, V], -inf of what must not be written;
        the next state; extras.
      start, state: int32 [B·K] and leaves [B·K, ...], before the first step.
      extras: where those of each step go, leaves [T, B·K, ...].
      K, N, max_length: K, N and T.
      length_penalty, exact: see `tasks.common.decoding.generate.DecodingConfig`.
      end, pad: see `tasks.common.decoding.generate.generate`.

    Returns:
      Tokens [B, N, T], scores [B, N] and extras [B, N, T, ...] of `generate.DecodingResult`.
    """
    B, T = len(start) // K, max_length

    def write(now: _Beams) -> _Beams:
        scores, state, seen = scored(now.tokens.reshape(-1), now.state)
        V = scores.shape[-1]
        totals = (now.total[..., None] + scores.reshape(B, K, V)).reshape(B, K * V)
        totals, places = jax.lax.top_k(totals, min(2 * K, K * V))
        rows, tokens = (places // V).astype(jnp.int32), (places % V).astype(jnp.int32)
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
            # What a step hands on as it got it is the same in all beams of an example.
            if after is before:
                return after
            return flatten_beams(take_rows(unflatten_beams(after, K), rows))

        farthest = T if exact and length_penalty > 0 else length
        hope = length_normalized(totals[:, 0], farthest, length_penalty)
        return _Beams(
            length,
            tokens,
            jax.tree.map(moved, now.state, state),
            totals,
            now.written.at[now.t].set(tokens),
            now.parents.at[now.t].set(rows),
            write_step(now.extras, now.t, seen),
            finished,
            now.closed | (hope <= finished.score[:, -1]),
        )

    # At first all prefixes of an example are the same empty one: only one of them counts.
    total = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf)
    nothing = jnp.zeros((B, K), jnp.int32)
    first = _Beams(
        jnp.int32(0),
        start.reshape(B, K),
        state,
        jnp.broadcast_to(total, (B, K)).astype(jnp.float32),
        jnp.zeros((T, B, K), jnp.int32),
        jnp.zeros((T, B, K), jnp.int32),
        extras,
        _Finished(jnp.full((B, K), -jnp.inf, jnp.float32), nothing, nothing, nothing),
        jnp.zeros((B,), bool),
    )
    last = jax.lax.while_loop(lambda now: (now.t < T) & ~jnp.all(now.closed), write, first)
    return _joined(last, N, pad)


def _joined(beams: _Beams, N: int, pad: int) -> tuple[Array, Array, Any]:
    """The best N finished sequences of each example, followed from their ends to their starts."""
    finished = _Finished(*(leaf[:, :N] for leaf in beams.finished))
    B, K = beams.tokens.shape

    def back(after: Array, step: Any) -> tuple[Array, tuple[Array, Any]]:
        """after: which prefix, of those after this step, each sequence goes on with, [B, N]."""
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
