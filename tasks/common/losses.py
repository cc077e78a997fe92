"""Cross-entropy of integer labels, with a gradient computed in one pass over the logits.

For the backward pass, the logits and two numbers per row are stored, but no probabilities. The
backward pass compares class indices with labels, which avoids a scatter. `linear_cross_entropy`
computes logits in chunks of classes and does not store them.

In shapes, V is the number of classes, D the size of a hidden state, and B the number of examples.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes the negative log-likelihood of integer labels under softmax(logits).

        l = log Σ_v exp(x_v) - x_y

    Args:
      logits: x, floating point [..., V].
      labels: y, int [...], in [0, V); the loss of any other label is NaN.

    Returns:
      l, [...] in at least float32.
    """
    return _smoothed(logits, labels, 0.0)[0]


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    """Computes cross-entropy with label smoothing (Szegedy et al. 2016).

        log Σ_v exp(x_v) - (1 - ε) x_y - ε · mean over v of x_v

    Args:
      logits, labels: as for `cross_entropy`.
      smoothing: ε, in [0, 1).

    Returns:
      The loss, and the cross-entropy without smoothing, [...] each. The latter has no gradient.

    Raises:
      ValueError: smoothing is outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: got {smoothing}, expected a rate in [0, 1)")
    smoothed, plain = _smoothed(logits, labels, smoothing)
    return smoothed, jax.lax.stop_gradient(plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _smoothed(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    return _forward(logits, labels, smoothing)[0]


def _forward(logits: Array, labels: Array, smoothing: float) -> tuple[tuple[Array, Array], tuple]:
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # An 8-bit label dtype may be too small for the number of classes.
    labels = labels.astype(jnp.int32)
    largest = jnp.max(x, axis=-1)
    log_sum = jnp.log(jnp.sum(jnp.exp(x - largest[..., None]), axis=-1))
    # Both terms are relative to the maximum, so that small losses keep their precision.
    plain = log_sum - (jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0] - largest)
    smoothed = plain
    if smoothing:
        spread = log_sum - (jnp.mean(x, axis=-1) - largest)
        smoothed = (1 - smoothing) * plain + smoothing * spread
    return (smoothed, plain), (logits, labels, largest, log_sum)


def _backward(
    smoothing: float, residuals: tuple, gradients: tuple[Array, Array]
) -> tuple[Array, None]:
    logits, labels, largest, log_sum = residuals
    upstream, shifted = gradients[0][..., None], logits.astype(log_sum.dtype) - largest[..., None]
    base = jnp.exp(shifted - log_sum[..., None]) - smoothing / logits.shape[-1]
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    gradient = jnp.where(classes == labels[..., None], base - (1 - smoothing), base)
    return (upstream * gradient).astype(logits.dtype), None


_smoothed.defvjp(_forward, _backward)


def repeat_examples(batch: dict[str, Array]) -> dict[str, Array]:
    """Repeats every example of a batch, for two passes with different dropout masks.

    Args:
      batch: arrays [B, ...].

    Returns:
      Arrays [2B, ...], in which rows 2b and 2b + 1 are example b. The array "pass", int32 [2B], is
      added; it is 0 in the first of these rows and 1 in the second.
    """
    repeated = {name: jnp.repeat(value, 2, axis=0) for name, value in batch.items()}
    rows = len(next(iter(batch.values())))
    return repeated | {"pass": jnp.tile(jnp.arange(2, dtype=jnp.int32), rows)}


def first_passes(values: Array) -> Array:
    """Selects the first pass over each example: values [2B, ...] become [B, ...]."""
    # A slice with a stride would move rows between devices.
    return values.reshape(-1, 2, *values.shape[1:])[:, 0]


def divergence_of_passes(logits: Array) -> Array:
    """Computes the symmetric divergence of two passes over each example (R-Drop).

        d = 1/2 (KL(p || q) + KL(q || p)) = 1/2 Σ_v (p_v - q_v) (log p_v - log q_v)

    where p and q are the predictions of one example under two dropout masks, from "R-Drop:
    Regularized Dropout for Neural Networks" (Liang et al. 2021, eq. 2). The loss of the
    paper (eq. 4), divided by the number of passes, is the mean cross-entropy plus α/2 times d.

    Args:
      logits: floating point [2B, ..., V], with the rows in the order of `repeat_examples`.

    Returns:
      d, [B, ...] in at least float32.
    """
    return _divergence(logits.reshape(-1, 2, *logits.shape[1:]))


@jax.custom_vjp
def _divergence(pairs: Array) -> Array:
    return _divergence_forward(pairs)[0]


def _divergence_forward(pairs: Array) -> tuple[Array, tuple]:
    """Computes the divergence from logits x and y, as 1/2 Σ_v (p_v - q_v) (x_v - y_v).

    This equals the formula with log-probabilities, because the log-sum-exps cancel.
    """
    x = pairs.astype(jnp.promote_types(pairs.dtype, jnp.float32))
    largest = jnp.max(x, axis=-1)
    log_sum = largest + jnp.log(jnp.sum(jnp.exp(x - largest[..., None]), axis=-1))
    means = jnp.sum(jnp.exp(x - log_sum[..., None]) * (x - x[:, ::-1]), axis=-1)
    return 0.5 * jnp.sum(means, axis=1), (pairs, log_sum, means)


def _divergence_backward(residuals: tuple, upstream: Array) -> tuple[Array]:
    pairs, log_sum, means = residuals
    x = pairs.astype(log_sum.dtype)
    # q is p with the two passes swapped. Swapping the array p would require storing it, so q is
    # computed from the swapped x instead.
    p, q = (jnp.exp(each - total[..., None]) for each, total in _both(x, log_sum))
    gradient = p - q + p * (x - x[:, ::-1] - means[..., None])
    return ((0.5 * upstream[:, None, ..., None] * gradient).astype(pairs.dtype),)


def _both(*arrays: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Returns arrays [B, 2, ...], and the same arrays with the two passes swapped."""
    return arrays, tuple(each[:, ::-1] for each in arrays)


_divergence.defvjp(_divergence_forward, _divergence_backward)


def linear_cross_entropy(
    x: Array, table: Array, labels: Array, *, classes: int, chunk_size: int
) -> tuple[Array, Array]:
    """Computes the cross-entropy of logits x Eᵀ in chunks of classes.

        l = log Σ_v exp(x · e_v) - x · e_y

    The logits of `chunk_size` classes are computed at a time. An online softmax (Milakov &
    Gimelshein 2018) combines them. The backward pass computes them again, as in Wijmans et al.
    2024, "Cut Your Losses in Large-Vocabulary Language Models". Each row of E is read once per
    pass, so that a sharded E is gathered once, and its gradient is reduced once.

    Args:
      x: floating point [..., D].
      table: E, floating point [R, D] with R ≥ V. It is cast to the dtype of x; products are summed
        in at least float32. Rows after the first V are ignored.
      labels: y, int [...], in [0, V); the loss of any other label is NaN.
      classes: V.
      chunk_size: number of rows of E in a chunk, at least 1.

    Returns:
      l, [...] in at least float32, and the class with the largest logit, int32 [...]. The latter
      has no gradient.

    Raises:
      ValueError: chunk_size is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1")
    return _linear(x, table, labels.astype(jnp.int32), classes, min(chunk_size, table.shape[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _linear(
    x: Array, table: Array, labels: Array, classes: int, chunk_size: int
) -> tuple[Array, Array]:
    return _linear_forward(x, table, labels, classes, chunk_size)[0]


def _linear_forward(
    x: Array, table: Array, labels: Array, classes: int, chunk_size: int
) -> tuple[tuple[Array, Array], tuple]:
    def add(carry: tuple[Array, ...], chunk: tuple[Array, Array]) -> tuple[tuple[Array, ...], None]:
        largest, total, of_label, best = carry
        logits, ids = _chunk_logits(x, *chunk, classes)
        found = jnp.max(logits, axis=-1)
        best = jnp.where(found > largest, chunk[1] + jnp.argmax(logits, axis=-1), best)
        new = jnp.maximum(largest, found)
        total = total * jnp.exp(largest - new)
        total = total + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        here = ids == labels[..., None]
        of_chunk = jnp.sum(jnp.where(here, logits, 0), axis=-1)
        return (new, total, jnp.where(jnp.any(here, axis=-1), of_chunk, of_label), best), None

    sums = jnp.promote_types(x.dtype, jnp.float32)
    start = [jnp.full(labels.shape, value, sums) for value in (-jnp.inf, 0, jnp.nan)]
    first = (*start, jnp.zeros(labels.shape, jnp.int32))
    (largest, total, of_label, best), _ = jax.lax.scan(add, first, _chunks(x, table, chunk_size))
    log_sum = jnp.log(total)
    # Both terms are relative to the maximum, so that small losses keep their precision.
    loss = log_sum - (of_label - largest)
    return (loss, best), (x, table, labels, largest, log_sum)


def _linear_backward(
    classes: int, chunk_size: int, residuals: tuple, gradients: tuple[Array, Array]
) -> tuple[Array, Array, None]:
    x, table, labels, largest, log_sum = residuals

    def add(by_x: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        logits, ids = _chunk_logits(x, *chunk, classes)
        shifted = logits - largest[..., None] - log_sum[..., None]
        by_logits = jnp.exp(shifted) - (ids == labels[..., None])
        by_logits = (gradients[0][..., None] * by_logits).astype(x.dtype)
        by_x = by_x + jnp.einsum(
            "...V,VD->...D", by_logits, chunk[0], preferred_element_type=by_x.dtype
        )
        return by_x, jnp.einsum(
            "...V,...D->VD", by_logits, x, preferred_element_type=by_x.dtype
        ).astype(table.dtype)

    start = jnp.zeros(x.shape, log_sum.dtype)
    by_x, by_chunk = jax.lax.scan(add, start, _chunks(x, table, chunk_size))
    by_table = by_chunk.reshape(-1, table.shape[1])[: table.shape[0]]
    return by_x.astype(x.dtype), by_table, None


_linear.defvjp(_linear_forward, _linear_backward)


def _chunks(x: Array, table: Array, chunk_size: int) -> tuple[Array, Array]:
    """Splits the table into chunks, [chunks, chunk_size, D], in the dtype of x.

    Returns the chunks, and the row index at which each chunk starts.
    """
    count = -(-table.shape[0] // chunk_size)
    rows = jnp.pad(table.astype(x.dtype), ((0, count * chunk_size - table.shape[0]), (0, 0)))
    return rows.reshape(count, chunk_size, -1), jnp.arange(count, dtype=jnp.int32) * chunk_size


def _chunk_logits(x: Array, rows: Array, first: Array, classes: int) -> tuple[Array, Array]:
    """Computes the logits of one chunk of classes.

    Args:
      x: [..., D].
      rows: rows of the table in this chunk, [chunk_size, D].
      first: index of the first of these rows.
      classes: V.

    Returns:
      The logits, [..., chunk_size], -inf for rows after the first V; and the index of the row that
      each logit belongs to, int32 [..., chunk_size].
    """
    sums = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.einsum("...D,VD->...V", x, rows, preferred_element_type=sums)
    ids = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(ids < classes, logits, -jnp.inf), ids
