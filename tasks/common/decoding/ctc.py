"""Connectionist temporal classification (CTC): sequences of units, without an alignment to frames.

Graves et al. 2006, "Connectionist Temporal Classification" (ICML). Prefix scores follow Watanabe et
al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", algorithm 2. Beam
search can combine prefix scores with the scores of a decoder; beam search with prefix scores alone
is the prefix search of Graves et al.

A path has one unit or blank for each frame. The blank is unit 0, which is also the padding in
labels. In shapes, B is the batch size, S the number of frames, T the number of units of a sequence,
V the number of different units including the blank, and R the number of rows in decoding.
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
    """Computes the CTC loss, -log P(labels | frames), where P sums over all paths of the labels.

    The computation is that of `optax.ctc_loss`.

    Args:
      logits: [B, S, V].
      valid: bool [B, S], True = a real frame; real frames come first.
      labels: int [B, T], BLANK after the last unit of each row.

    Returns:
      The losses, float32 [B], and whether the labels have a path, bool [B]. A path needs a frame
      for each label, and one more between two equal consecutive labels. Without a path the loss is
      0.

    Raises:
      ValueError: shapes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("logits", logits, "B S V", sizes)
    shapes.expect("valid", valid, "B S", sizes)
    shapes.expect("labels", labels, "B T", sizes)
    has_path = min_frames(labels) <= jnp.sum(valid, axis=1)
    # Labels without a path are replaced by blanks; else their rows would have a loss of about 1e5,
    # and gradients of that size.
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        (~valid).astype(jnp.float32),
        jnp.where(has_path[:, None], labels, BLANK),
        (~has_path[:, None] | (labels == BLANK)).astype(jnp.float32),
        blank_id=BLANK,
    )
    return jnp.where(has_path, losses, 0.0), has_path


def min_frames(labels: Array) -> Array:
    """Returns the number of frames of the shortest path of the labels.

    Args:
      labels: int [B, T], BLANK after the last unit of each row.

    Returns:
      int [B].
    """
    is_unit = labels != BLANK
    repeats = (labels[:, 1:] == labels[:, :-1]) & is_unit[:, 1:]
    return jnp.sum(is_unit, axis=1) + jnp.sum(repeats, axis=1)


def best_path(logits: Array, valid: Array) -> Array:
    """Decodes the most likely path: the best unit of each frame, without repeats and blanks.

    Args:
      logits: [B, S, V].
      valid: bool [B, S].

    Returns:
      int32 [B, S], BLANK after the last unit of each row.
    """
    path = jnp.where(valid, jnp.argmax(logits, axis=-1), BLANK).astype(jnp.int32)
    before = jnp.pad(path, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    is_new = (path != BLANK) & (path != before)
    order = jnp.argsort(~is_new, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(is_new, path, BLANK), order, axis=1)


class Prefix(NamedTuple):
    """Forward probabilities of a prefix; every leaf has the leading axis R.

    Attributes:
      log_probs: log-probability of each unit in each frame, float32 [R, S, V]; at padding the blank
        has probability 1.
      ends: [R, S, 2]. For each frame, the log-probabilities of two sets of paths of the prefix that
        end at this frame: paths that end in the last unit of the prefix, and paths that end in the
        blank.
      last: int [R], the last unit of the prefix; BLANK for the empty prefix.
      total: [R], log-probability that the sequence begins with the prefix.
    """

    log_probs: Array
    ends: Array
    last: Array
    total: Array


def empty_prefix(logits: Array, valid: Array) -> Prefix:
    """Returns the empty prefix of each example.

    Args:
      logits: [B, S, V].
      valid: bool [B, S], True = a real frame.
    """
    shapes.expect("valid", valid, "B S", {"B": logits.shape[0], "S": logits.shape[1]})
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    sure = jnp.where(jnp.arange(logits.shape[-1]) == BLANK, 0.0, -jnp.inf)
    log_probs = jnp.where(valid[..., None], log_probs, sure)
    blanks = jnp.cumsum(log_probs[..., BLANK], axis=1)
    ends = jnp.stack([jnp.full_like(blanks, -jnp.inf), blanks], axis=-1)
    R = logits.shape[0]
    return Prefix(log_probs, ends, jnp.full((R,), BLANK, jnp.int32), jnp.zeros((R,), jnp.float32))


def next_scores(prefix: Prefix) -> tuple[Array, Array]:
    """Computes the log-probabilities that a prefix is followed by each unit, or by the end.

    Returns:
      Log-probabilities of the units, [R, V], -inf for BLANK; and of the end, [R]. The probabilities
      of units and end sum to 1 in each row.
    """
    in_unit, in_blank = prefix.ends[..., 0], prefix.ends[..., 1]
    either = jnp.logaddexp(in_unit, in_blank)
    units = _begun(prefix, either)
    # Repeating the last unit requires a blank in between.
    again = _begun(prefix, in_blank)
    is_last = jnp.arange(prefix.log_probs.shape[-1]) == prefix.last[:, None]
    units = jnp.where(is_last, again, units).at[:, BLANK].set(-jnp.inf)
    total = prefix.total
    return _ratio(units, total[:, None]), _ratio(either[:, -1], total)


def extend(prefix: Prefix, units: Array) -> Prefix:
    """Appends one unit to each prefix.

    Args:
      prefix: prefixes of R rows.
      units: units to append, int [R]; none is BLANK.
    """
    log_probs, rows = prefix.log_probs, jnp.arange(units.shape[0])
    scores = next_scores(prefix)[0][rows, units]
    in_unit, in_blank = prefix.ends[..., 0], prefix.ends[..., 1]
    before = jnp.where((units == prefix.last)[:, None], in_blank, jnp.logaddexp(in_unit, in_blank))
    before = jnp.concatenate([_at_the_start(prefix)[:, None], before[:, :-1]], axis=1)
    unit = jnp.take_along_axis(log_probs, units[:, None, None], axis=-1)[..., 0]

    def frame(carry, inputs):
        in_unit, _ = carry
        before_t, unit_t, blank_t = inputs
        new = jnp.logaddexp(in_unit, before_t) + unit_t, jnp.logaddexp(*carry) + blank_t
        return new, jnp.stack(new, axis=-1)

    impossible = jnp.full(units.shape, -jnp.inf)
    by_frame = jax.tree.map(lambda leaf: leaf.T, (before, unit, log_probs[..., BLANK]))
    _, ends = jax.lax.scan(frame, (impossible, impossible), by_frame)
    return Prefix(
        log_probs, jnp.swapaxes(ends, 0, 1), units.astype(jnp.int32), prefix.total + scores
    )


def _begun(prefix: Prefix, before: Array) -> Array:
    """Computes, for each unit, the log-probability that it begins at some frame after the prefix.

    Args:
      prefix: prefixes of R rows.
      before: [R, S], for each frame, the log-probability of the paths that end at this frame and
        that the next unit may follow.

    Returns:
      [R, V].
    """
    before = jnp.concatenate([_at_the_start(prefix)[:, None], before[:, :-1]], axis=1)
    return jax.nn.logsumexp(before[..., None] + prefix.log_probs, axis=1)


def _at_the_start(prefix: Prefix) -> Array:
    """Returns the log-probability of each prefix before the first frame, [R].

    It is 0 for the empty prefix, and -inf for others.
    """
    return jnp.where(prefix.last == BLANK, 0.0, -jnp.inf)


def _ratio(over: Array, under: Array) -> Array:
    """Divides probabilities that are given as logarithms, where 0 / 0 is 0."""
    return jnp.where(over == -jnp.inf, -jnp.inf, over - under)
