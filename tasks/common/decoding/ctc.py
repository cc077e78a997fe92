"""Connectionist temporal classification: a sequence of units without knowing when each was said.

Graves et al. 2006, "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with
Recurrent Neural Networks". The scores of prefixes are those of Watanabe et al. 2017, "Hybrid
CTC/Attention Architecture for End-to-End Speech Recognition", algorithm 2, by which a beam search
can hear both; alone they are the prefix search of Graves.

B batch, S frames, T units, V units and the blank, R rows of decoding. The blank is unit 0, which in
labels is padding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from attention import shapes

Array = jax.Array

BLANK = 0


def ctc_loss(logits: Array, valid: Array, labels: Array) -> tuple[Array, Array]:
    """-log P(labels | frames), summed over all paths that say the labels (optax.ctc_loss).

    Args:
      logits: [B, S, V].
      valid: bool [B, S], True = a real frame; real ones stand first.
      labels: int [B, T], BLANK after the last of each row.

    Returns:
      Losses float32 [B], and whether there is a path at all, bool [B]: as many frames are needed as
      there are labels, and one more between two that are equal. Without one the loss is 0.

    Raises:
      ValueError: shapes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("logits", logits, "B S V", sizes)
    shapes.expect("valid", valid, "B S", sizes)
    shapes.expect("labels", labels, "B T", sizes)
    possible = min_frames(labels) <= jnp.sum(valid, axis=1)
    # A row without a path would give about 1e5 and gradients of that size.
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        (~valid).astype(jnp.float32),
        jnp.where(possible[:, None], labels, BLANK),
        (~possible[:, None] | (labels == BLANK)).astype(jnp.float32),
        blank_id=BLANK,
    )
    return jnp.where(possible, losses, 0.0), possible


def min_frames(labels: Array) -> Array:
    """int [B, T] -> int [B], frames of the shortest path that says the labels."""
    said = labels != BLANK
    repeats = (labels[:, 1:] == labels[:, :-1]) & said[:, 1:]
    return jnp.sum(said, axis=1) + jnp.sum(repeats, axis=1)


def best_path(logits: Array, valid: Array) -> Array:
    """What the likeliest path says: the likeliest unit of each frame, repeats and blanks removed.

    Args:
      logits: [B, S, V].
      valid: bool [B, S].

    Returns:
      int32 [B, S], BLANK after the last of each row.
    """
    path = jnp.where(valid, jnp.argmax(logits, axis=-1), BLANK).astype(jnp.int32)
    before = jnp.pad(path, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    said = (path != BLANK) & (path != before)
    order = jnp.argsort(~said, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(said, path, BLANK), order, axis=1)


class Prefix(NamedTuple):
    """What is known of the paths that say a prefix; every leaf has the leading axis R.

    Attributes:
      log_probs: float32 [R, S, V] of each frame; where there is none, the blank is sure.
      ends: [R, S, 2], log-probability of the paths up to each frame that say the prefix and end in
        its last unit, or in the blank.
      last: int [R], the prefix's last unit; BLANK of the empty prefix.
      total: [R], log-probability that what is said begins with the prefix.
    """

    log_probs: Array
    ends: Array
    last: Array
    total: Array


def empty_prefix(logits: Array, valid: Array) -> Prefix:
    """logits [B, S, V], valid bool [B, S] -> the prefix of no units, a row for each example."""
    shapes.expect("valid", valid, "B S", {"B": logits.shape[0], "S": logits.shape[1]})
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    sure = jnp.where(jnp.arange(logits.shape[-1]) == BLANK, 0.0, -jnp.inf)
    log_probs = jnp.where(valid[..., None], log_probs, sure)
    blanks = jnp.cumsum(log_probs[..., BLANK], axis=1)
    ends = jnp.stack([jnp.full_like(blanks, -jnp.inf), blanks], axis=-1)
    R = len(logits)
    return Prefix(log_probs, ends, jnp.full((R,), BLANK, jnp.int32), jnp.zeros((R,), jnp.float32))


def next_scores(prefix: Prefix) -> tuple[Array, Array]:
    """Log-probabilities of each unit as the next, and of the end, given the prefix.

    Returns:
      [R, V], of BLANK -inf, and [R]. exp of all of a row sums to 1.
    """
    spoken, silent = prefix.ends[..., 0], prefix.ends[..., 1]
    said = jnp.logaddexp(spoken, silent)
    units = _begun(prefix, said)
    # The last unit again: not without a blank between.
    again = _begun(prefix, silent)
    is_last = jnp.arange(prefix.log_probs.shape[-1]) == prefix.last[:, None]
    units = jnp.where(is_last, again, units).at[:, BLANK].set(-jnp.inf)
    total = prefix.total
    return _ratio(units, total[:, None]), _ratio(said[:, -1], total)


def extend(prefix: Prefix, units: Array) -> Prefix:
    """The prefixes with one more unit each.

    Args:
      prefix: of R rows.
      units: int [R], none of them BLANK.
    """
    log_probs, rows = prefix.log_probs, jnp.arange(len(units))
    scores = next_scores(prefix)[0][rows, units]
    spoken, silent = prefix.ends[..., 0], prefix.ends[..., 1]
    before = jnp.where((units == prefix.last)[:, None], silent, jnp.logaddexp(spoken, silent))
    before = jnp.concatenate([_at_the_start(prefix)[:, None], before[:, :-1]], axis=1)
    unit = jnp.take_along_axis(log_probs, units[:, None, None], axis=-1)[..., 0]

    def frame(carry, inputs):
        spoken, silent = carry
        before_t, unit_t, blank_t = inputs
        new = jnp.logaddexp(spoken, before_t) + unit_t, jnp.logaddexp(spoken, silent) + blank_t
        return new, jnp.stack(new, axis=-1)

    nothing = jnp.full((len(units),), -jnp.inf)
    by_frame = jax.tree.map(lambda leaf: leaf.T, (before, unit, log_probs[..., BLANK]))
    _, ends = jax.lax.scan(frame, (nothing, nothing), by_frame)
    return Prefix(
        log_probs, jnp.swapaxes(ends, 0, 1), units.astype(jnp.int32), prefix.total + scores
    )


def _begun(prefix: Prefix, before: Array) -> Array:
    """Log-probability that each unit is begun at some frame, after paths with `before`: [R, V]."""
    before = jnp.concatenate([_at_the_start(prefix)[:, None], before[:, :-1]], axis=1)
    return jax.nn.logsumexp(before[..., None] + prefix.log_probs, axis=1)


def _at_the_start(prefix: Prefix) -> Array:
    """Before the first frame only the empty prefix has been said: 0 or -inf, [R]."""
    return jnp.where(prefix.last == BLANK, 0.0, -jnp.inf)


def _ratio(over: Array, under: Array) -> Array:
    """Of log-probabilities; -inf where there is no way to either."""
    return jnp.where(over == -jnp.inf, -jnp.inf, over - under)
