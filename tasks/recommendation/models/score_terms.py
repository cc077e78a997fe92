"""Score terms from co-occurrence counts, weighted by attention over a history or over users.

    scores_i = Σ_j a_j M_ji                         (EASE, Markov chain)
    scores_i = Σ_v α_v r(v, i)                      (similar users)

j runs over the items of the history, v over similar users. The weights a_j are learned, see
`RecencyAttention`. In training, the user's own events are removed from the counts, so that the
model learns to use the events of other users. EASE removes all events of the user; the Markov chain
removes the pairs of events within the sequence.

Some parameters are stored divided by `PACE`, as stated for each class below. This multiplies their
learning rate by `PACE`.

In shapes, B is the number of rows of a batch, T the number of scored positions, S the number of
positions of a history, I the number of items, U the number of users, and k the number of neighbors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import nnx

from attention.collaborative.nais import smoothed_softmax
from attention.collaborative.neighbors import neighbor_weights
from attention.sharding import top_k_by_example
from tasks.recommendation.models.base import Buffer, events, is_event, safe_ids
from tasks.recommendation.models.cooccurrence import (
    SparseRows,
    binarize,
    ridge_inverse,
    transitions,
)

Array = jax.Array

# Factor of the learning rate of scalar parameters.
PACE = 10.0
_BUCKETS = 32
_MINUTES = 24 * 60
# Exponent β of `smoothed_softmax`: 0 gives a sum over the history, 1 gives a weighted mean.
_BETA = 0.5
_LEAST = 1e-4


class History(NamedTuple):
    """Histories and the scored positions in them.

    Attributes:
      items: items of the histories, int [B, S], -1 for padding.
      ages: [B, S], days from each of `items` to the last.
      user: int [B], index of the user, -1 if unknown.
      positions: int [B, T], scored positions; the history of position t contains the items up to t.
      following: int [B], the item after the last of `items`, in training; else None.
      own: [B, I], 1 for each training item of the user, in training with EASE; else None.
    """

    items: Array
    ages: Array
    user: Array
    positions: Array
    following: Array | None = None
    own: Array | None = None


class RecencyAttention(nnx.Module):
    """Attention over the positions of a history by recency, in events and in days.

        a_tj = softmax^β_j(d[t - j] + g[age_j - age_t] + c[item_j]),   j ≤ t,   β = 0.5

    softmax^β is `smoothed_softmax` of He et al. 2018. d and g are tables with 32 entries. The
    index is ⌊4 log2(1 + distance in positions)⌋ for d, and ⌊log2(1 + distance in minutes)⌋ for g.
    The initial half-life is `half_life` positions.

    Parameters, stored divided by `PACE`: distance [32] (d), age [32] (g), item [I] (c).
    """

    def __init__(self, num_items: int, half_life: float):
        distances = 2.0 ** (np.arange(_BUCKETS) / 4) - 1
        start = -distances * math.log(2) / half_life / PACE
        self.distance = nnx.Param(jnp.asarray(start, jnp.float32))
        self.age = nnx.Param(jnp.zeros((_BUCKETS,)))
        self.item = nnx.Param(jnp.zeros((num_items,)))

    def __call__(self, history: History) -> Array:
        """Returns the weights [B, T, S]; 0 at padding and after the scored position."""
        items, positions = history.items, history.positions
        back = positions[:, :, None] - jnp.arange(items.shape[1])
        then = jnp.take_along_axis(history.ages, positions, axis=1)
        minutes = _MINUTES * (history.ages[:, None] - then[:, :, None])
        near = _bucket(4 * jnp.log2(1.0 + jnp.maximum(back, 0)))
        recent = _bucket(jnp.log2(1.0 + jnp.maximum(minutes, 0)))
        logits = self.distance[...][near] + self.age[...][recent]
        logits = PACE * (logits + self.item[...][safe_ids(items)][:, None])
        valid = (back >= 0) & is_event(items)[:, None]
        return smoothed_softmax(jnp.where(valid, logits, -jnp.inf), _BETA)


class ScoreScale(nnx.Module):
    """Map from a count-based score x to a logit: e^s x + c log(max(x, 0) + 10⁻⁴).

    Parameters, stored divided by `PACE`: linear (s) and log (c).
    """

    def __init__(self, linear: float = 3.0, log: float = 0.3):
        self.linear = nnx.Param(jnp.asarray(linear / PACE))
        self.log = nnx.Param(jnp.asarray(log / PACE))

    def __call__(self, x: Array) -> Array:
        linear, log = PACE * self.linear[...], PACE * self.log[...]
        return jnp.exp(linear) * x + log * jnp.log(jnp.maximum(x, 0) + _LEAST)


class Ease(nnx.Module):
    """EASE (Steck 2019) for a history weighted by attention.

        x = Σ_j a_j e_j,   score_i = -(x P)_i / P_ii,   P = (XᵀX + λI)⁻¹

    X is the matrix of events, and e_j the unit vector of the item at position j. The term x_i of
    the paper, which is nonzero only for items of the history, is omitted. In training, the row u of
    the user is removed from X, which changes P to (Sherman & Morrison 1950)

        P + (P u)(P u)ᵀ / (1 - uᵀ P u)

    Only the k most popular items have a score; the score of other items is 0.

    Buffers: chosen int32 [k], the most popular items; place int32 [I], the index of each item in
    `chosen` or -1; inverse/whole, P [k, k]. Parameters: attention, mix (`ScoreScale`).

    Args:
      matrix: training events [U, I].
      strength: λ, ridge penalty.
      half_life: see `RecencyAttention`.
      items: maximum of k, the number of items with a score.
    """

    def __init__(self, matrix: sp.csr_matrix, strength: float, half_life: float, items: int):
        counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
        chosen = np.sort(np.argsort(-counts, kind="stable")[:items])
        place = np.full(matrix.shape[1], -1, np.int32)
        place[chosen] = np.arange(len(chosen))
        self.chosen, self.place = Buffer(jnp.asarray(chosen, jnp.int32)), Buffer(jnp.asarray(place))
        self.inverse = SparseRows(ridge_inverse(matrix[:, chosen], strength), 0)
        self.attention = RecencyAttention(matrix.shape[1], half_life)
        self.mix = ScoreScale()

    def __call__(self, history: History, weights: Array) -> Array:
        """Returns logits [B, T, I], given the weights [B, T, S] of the attention."""
        P, chosen = self.inverse.whole[...], self.chosen[...]
        items = jnp.where(is_event(history.items), self.place[...][safe_ids(history.items)], -1)
        weights = weights * is_event(items)[:, None]
        product = self.inverse.combine(weights, items)
        diagonal = jnp.diagonal(P)[None, None]
        if history.own is not None:
            own = history.own[:, chosen]
            image = own @ P
            left = jnp.maximum(1 - jnp.sum(own * image, axis=1), _LEAST)
            rows = jnp.take_along_axis(image, safe_ids(items), axis=1)
            part = jnp.einsum("BTS,BS->BT", weights, rows) / left[:, None]
            product = product + part[..., None] * image[:, None]
            diagonal = diagonal + (image**2 / left[:, None])[:, None]
        scores = -product / diagonal
        if len(chosen) < len(self.place[...]):
            everything = jnp.zeros((*scores.shape[:2], len(self.place[...])))
            scores = everything.at[..., chosen].set(scores)
        return self.mix(scores)


class MarkovChain(nnx.Module):
    """Markov chain: items that follow items of the history in the histories of other users.

        score_i = (1 + n_i)^(-ρ) Σ_j a_j C_ji / (Σ_i' C_ji' + e^s)

    where C are the counts of `cooccurrence.transitions`, and n_i is the number of training events
    of item i. In training, the pairs of events in the sequence itself are subtracted from C.

    Buffers: counts (C), totals [I] (row sums of C), log_popularity [I]. Parameters: attention, mix
    (`ScoreScale`); and, stored divided by `PACE`, smoothing (s) and discount (ρ).
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        window: int,
        decay: float,
        half_life: float,
        top_k: int,
        both_ways: bool,
    ):
        counts = transitions(matrix, window, decay, both_ways)
        self.window, self.decay, self.both_ways = window, decay, both_ways
        self.counts = SparseRows(counts, top_k)
        self.totals = Buffer(jnp.asarray(np.asarray(counts.sum(axis=1)).ravel(), jnp.float32))
        self.log_popularity = Buffer(log_popularity(matrix))
        self.attention = RecencyAttention(matrix.shape[1], half_life)
        self.mix = ScoreScale()
        self.smoothing = nnx.Param(jnp.asarray(3.0 / PACE))
        self.discount = nnx.Param(jnp.zeros(()))

    def __call__(self, history: History, weights: Array) -> Array:
        """Returns logits [B, T, I], given the weights [B, T, S] of the attention."""
        items = history.items
        totals = self.totals[...][safe_ids(items)]
        own = None if history.following is None else self._own(history)
        if own is not None:
            totals = jnp.maximum(totals - jnp.sum(own, axis=2), 0)
        weights = weights / (totals + jnp.exp(PACE * self.smoothing[...]))[:, None]
        found = self.counts.combine(weights, items)
        if own is not None:
            present = events(items, history.following)
            outside = jnp.where(is_event(present), present, found.shape[2])
            taken = jnp.einsum("BTS,BSE->BTE", weights, own)
            found = jax.vmap(lambda x, e, t: x.at[:, e].add(-t, mode="drop"))(found, outside, taken)
        found = jnp.maximum(found, 0)
        return self.mix(found * jnp.exp(-PACE * self.discount[...] * self.log_popularity[...]))

    def _own(self, history: History) -> Array:
        """Returns the contribution of each pair of events in the sequence to C, [B, S, S + 1]."""
        all_events = events(history.items, history.following)
        ahead = jnp.arange(all_events.shape[1]) - jnp.arange(history.items.shape[1])[:, None]
        apart = jnp.abs(ahead) if self.both_ways else ahead
        counted = (apart >= 1) & (apart <= self.window)
        pairs = is_event(all_events)[:, None] & is_event(history.items)[:, :, None]
        return jnp.where(counted & pairs, self.decay ** (apart - 1.0), 0)


class UserKnn(nnx.Module):
    """Items of similar users (after Resnick et al. 1994).

        score_i = Σ_v α_v r(v, i),   α_v = w_v sim_v^p / Σ_v' w_v' sim_v'^p,
        sim_v = Σ_j a_j r(v, j) / (|a| sqrt(n_v))

    The sums are over the k most similar other users v, see `attention.collaborative.neighbors`, and
    over the positions j of the history. r(v, i) is 1 if user v has item i, else 0; r(v, j) is 1 if
    user v has the item at position j, else 0; n_v is the number of items of v; and a is the
    attention over the history. w_v = softplus(weight_v) and p = exp(sharpness) are learned.

    Buffers: users [I, U], r / sqrt(n); items [U, I], r. For large data sets these keep the `top_k`
    largest entries of each row. Parameters: attention, mix (`ScoreScale`); and, stored divided by
    `PACE`, weight [U] and sharpness [].
    """

    def __init__(self, matrix: sp.csr_matrix, k: int, half_life: float, top_k: int):
        rated = binarize(matrix)
        lengths = np.maximum(np.diff(matrix.indptr), 1)
        scaled = sp.diags(1 / np.sqrt(lengths)) @ rated
        self.k = min(k, matrix.shape[0])
        self.users = SparseRows(scaled.T.tocsr().astype(np.float32), top_k)
        self.items = SparseRows(rated, top_k)
        self.attention = RecencyAttention(matrix.shape[1], half_life)
        self.mix = ScoreScale(linear=1.0)
        self.weight = nnx.Param(jnp.full((matrix.shape[0],), math.log(math.expm1(1)) / PACE))
        self.sharpness = nnx.Param(jnp.asarray(math.log(2.0) / PACE))

    def neighbor_weights(self, history: History, weights: Array) -> tuple[Array, Array]:
        """Finds the k users most similar to the history up to each position, and their weights.

        Args:
          history: histories and scored positions.
          weights: attention weights of each position over the items of the history, [B, T, S].

        Returns:
          Weights α [B, T, k], 0 for missing neighbors; and indices of the users, int32 [B, T, k].
        """
        B, T, _ = weights.shape
        length = jnp.sqrt(jnp.sum(jnp.square(weights), axis=-1, keepdims=True) + 1e-12)
        similarity = self.users.combine(weights / length, history.items)
        others = jnp.arange(similarity.shape[2]) != history.user[:, None]
        similarity = jnp.where(others[:, None], similarity, 0)
        similarity, ids = top_k_by_example(similarity, self.k)
        flat = similarity.reshape(B * T, self.k)
        valid = flat > 0
        sharp = jnp.exp(PACE * self.sharpness[...]) * jnp.log(jnp.where(valid, flat, 1))
        learned = jax.nn.softplus(PACE * self.weight[...])[ids.reshape(B * T, self.k)]
        alphas = neighbor_weights(jnp.exp(sharp), learned, valid)
        return alphas.reshape(B, T, self.k), ids.astype(jnp.int32)

    def __call__(self, history: History, weights: Array) -> Array:
        """Returns logits [B, T, I], given the weights [B, T, S] of the attention."""
        return self.mix(self.items.combine_each(*self.neighbor_weights(history, weights)))


def log_popularity(matrix: sp.csr_matrix) -> Array:
    """Returns log(1 + number of events) of each item, float32 [I]."""
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return jnp.asarray(np.log1p(counts), jnp.float32)


def _bucket(x: Array) -> Array:
    return jnp.clip(x.astype(jnp.int32), 0, _BUCKETS - 1)
