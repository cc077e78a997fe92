"""Scores of all items out of what was counted, weighed by attention over a history or over users.

    scores_i = Σ_j a_j M_ji                         (ridge, transitions: items of the history)
    scores_i = Σ_v α_v r(v, i)                      (neighbours: users who are alike)

How much a place counts is learned: `PlaceAttention`. In training a user's own events are taken out
of what was counted, so that what is learned is how to use what others did: exactly so for the
ridge, for pairs of events of one sequence in the transitions.

B rows, T places that are scored, S places of a history, I items, U users, k neighbours.
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
from tasks.recommendation.models.base import Kept, events, is_event, known
from tasks.recommendation.models.cooccurrence import Rows, had, ridge_inverse, transitions

Array = jax.Array

# Numbers that stand alone are learned this much faster than the entries of matrices.
PACE = 10.0
_BUCKETS = 32
_MINUTES = 24 * 60
# β of the weights over places: between a sum over the history and a mean.
_BETA = 0.5
_LEAST = 1e-4


class History(NamedTuple):
    """Histories and the places in them after which items are scored.

    Attributes:
      items: int [B, S], -1 where there is none.
      ages: [B, S], days.
      user: int [B], -1 where unknown.
      places: int [B, T]; place t sees those up to t.
      following: in training, int [B], the event after the last of `items`; else None.
      own: in training, for the ridge, [B, I], 1 for each train item of the user; else None.
    """

    items: Array
    ages: Array
    user: Array
    places: Array
    following: Array | None = None
    own: Array | None = None


class PlaceAttention(nnx.Module):
    """Attention over the places of a history by how long ago they were, in events and in days.

        a_tj = softmax^β_j(d[t - j] + g[age_j - age_t] + c[item_j]),   j ≤ t,   β = 0.5

    with d and g constant between powers of 2^(1/4) events and of 2 minutes; `smoothed_softmax` of
    He et al. 2018. At the start events count half as much every `half_life` places.

    Weights, to be multiplied by `PACE`: distance [32], age [32], item [I].
    """

    def __init__(self, num_items: int, half_life: float):
        distances = 2.0 ** (np.arange(_BUCKETS) / 4) - 1
        start = -distances * math.log(2) / half_life / PACE
        self.distance = nnx.Param(jnp.asarray(start, jnp.float32))
        self.age = nnx.Param(jnp.zeros((_BUCKETS,)))
        self.item = nnx.Param(jnp.zeros((num_items,)))

    def __call__(self, history: History) -> Array:
        """[B, T, S]; 0 at padding and after the place."""
        items, places = history.items, history.places
        back = places[:, :, None] - jnp.arange(items.shape[1])
        then = jnp.take_along_axis(history.ages, places, axis=1)
        minutes = _MINUTES * (history.ages[:, None] - then[:, :, None])
        near = _bucket(4 * jnp.log2(1.0 + jnp.maximum(back, 0)))
        recent = _bucket(jnp.log2(1.0 + jnp.maximum(minutes, 0)))
        logits = self.distance[...][near] + self.age[...][recent]
        logits = PACE * (logits + self.item[...][known(items)][:, None])
        valid = (back >= 0) & is_event(items)[:, None]
        return smoothed_softmax(jnp.where(valid, logits, -jnp.inf), _BETA)


class Mix(nnx.Module):
    """e^s x + c log(max(x, 0) + 10⁻⁴): what is counted, as part of a logit.

    Weights, to be multiplied by `PACE`: linear (s) and log (c).
    """

    def __init__(self, linear: float = 3.0, log: float = 0.3):
        self.linear = nnx.Param(jnp.asarray(linear / PACE))
        self.log = nnx.Param(jnp.asarray(log / PACE))

    def __call__(self, x: Array) -> Array:
        linear, log = PACE * self.linear[...], PACE * self.log[...]
        return jnp.exp(linear) * x + log * jnp.log(jnp.maximum(x, 0) + _LEAST)


class Ridge(nnx.Module):
    """EASE of those who are not the user (Steck 2019), of a history weighed by attention.

        x = Σ_j a_j e_j,   score_i = x_i - (x P)_i / P_ii,   P = (XᵀX + λI)⁻¹

    In training P is that without the user's own row u of X (Sherman & Morrison 1950):

        P + (P u)(P u)ᵀ / (1 - uᵀ P u)

    What x_i adds is left out: it is of items of the history alone. Of many items the most popular
    k take part; the score of the others is 0.

    Kept: chosen int32 [k], the items that take part; place int32 [I], of each in them or -1;
    inverse/whole, P [k, k]. Weights: attention, mix.

    Args:
      matrix: [U, I] of train.
      strength: λ.
      half_life: see `PlaceAttention`.
      items: k at most.
    """

    def __init__(self, matrix: sp.csr_matrix, strength: float, half_life: float, items: int):
        counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
        chosen = np.sort(np.argsort(-counts, kind="stable")[:items])
        place = np.full(matrix.shape[1], -1, np.int32)
        place[chosen] = np.arange(len(chosen))
        self.chosen, self.place = Kept(jnp.asarray(chosen, jnp.int32)), Kept(jnp.asarray(place))
        self.inverse = Rows(ridge_inverse(matrix[:, chosen], strength), 0)
        self.attention = PlaceAttention(matrix.shape[1], half_life)
        self.mix = Mix()

    def __call__(self, history: History, weights: Array) -> Array:
        """Logits [B, T, I] with the attention's weights [B, T, S]."""
        P, chosen = self.inverse.whole[...], self.chosen[...]
        items = jnp.where(is_event(history.items), self.place[...][known(history.items)], -1)
        weights = weights * is_event(items)[:, None]
        product = self.inverse.combine(weights, items)
        diagonal = jnp.diagonal(P)[None, None]
        if history.own is not None:
            own = history.own[:, chosen]
            image = own @ P
            left = jnp.maximum(1 - jnp.sum(own * image, axis=1), _LEAST)
            rows = jnp.take_along_axis(image, known(items), axis=1)
            part = jnp.einsum("BTS,BS->BT", weights, rows) / left[:, None]
            product = product + part[..., None] * image[:, None]
            diagonal = diagonal + (image**2 / left[:, None])[:, None]
        scores = -product / diagonal
        if len(chosen) < len(self.place[...]):
            everything = jnp.zeros((*scores.shape[:2], len(self.place[...])))
            scores = everything.at[..., chosen].set(scores)
        return self.mix(scores)


class Transitions(nnx.Module):
    """What came near the items of a history, in the histories of others (a Markov chain).

        score_i = n_i^(-ρ) Σ_j a_j C_ji / (Σ_i' C_ji' + e^s)

    with C of `priors.transitions` and n_i the popularity. In training the pairs of the sequence
    itself are taken from C.

    Kept: counts (C), totals [I], log_popularity [I]. Weights: attention, mix, smoothing (s) and
    discount (ρ), both to be multiplied by `PACE`.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        window: int,
        decay: float,
        half_life: float,
        lists: int,
        both_ways: bool,
    ):
        counts = transitions(matrix, window, decay, both_ways)
        self.window, self.decay, self.both_ways = window, decay, both_ways
        self.counts = Rows(counts, lists)
        self.totals = Kept(jnp.asarray(np.asarray(counts.sum(axis=1)).ravel(), jnp.float32))
        self.log_popularity = Kept(log_popularity(matrix))
        self.attention = PlaceAttention(matrix.shape[1], half_life)
        self.mix = Mix()
        self.smoothing = nnx.Param(jnp.asarray(3.0 / PACE))
        self.discount = nnx.Param(jnp.zeros(()))

    def __call__(self, history: History, weights: Array) -> Array:
        """Logits [B, T, I] with the attention's weights [B, T, S]."""
        items = history.items
        totals = self.totals[...][known(items)]
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
        """[B, S, S + 1]: what each event of the sequence adds to the row of each other in C."""
        all_events = events(history.items, history.following)
        ahead = jnp.arange(all_events.shape[1]) - jnp.arange(history.items.shape[1])[:, None]
        apart = jnp.abs(ahead) if self.both_ways else ahead
        counted = (apart >= 1) & (apart <= self.window)
        pairs = is_event(all_events)[:, None] & is_event(history.items)[:, :, None]
        return jnp.where(counted & pairs, self.decay ** (apart - 1.0), 0)


class Neighbours(nnx.Module):
    """What users had who had the same (after Resnick et al. 1994).

        score_i = Σ_v α_v r(v, i),   α_v = w_v sim_v^p / Σ_v' w_v' sim_v'^p,
        sim_v = Σ_j a_j r(v, j) / (|a| sqrt(n_v))

    over the k users most alike, without the user: see `attention.collaborative.neighbors`. r is 1
    for an item that v had; n_v, how many these are; a, the attention over the user's history; w_v
    and p are learned.

    Kept: users, who had an item [I, U], r / sqrt(n); items, what a user had [U, I], r. Of large
    data, the `lists` largest of each row. Weights: attention, mix, and, to be multiplied by `PACE`,
    weight [U] and sharpness []: w = softplus(weight), p = exp(sharpness).
    """

    def __init__(self, matrix: sp.csr_matrix, k: int, half_life: float, lists: int):
        rated = had(matrix)
        lengths = np.maximum(np.diff(matrix.indptr), 1)
        scaled = sp.diags(1 / np.sqrt(lengths)) @ rated
        self.k = min(k, matrix.shape[0])
        self.users = Rows(scaled.T.tocsr().astype(np.float32), lists)
        self.items = Rows(rated, lists)
        self.attention = PlaceAttention(matrix.shape[1], half_life)
        self.mix = Mix(linear=1.0)
        self.weight = nnx.Param(jnp.full((matrix.shape[0],), math.log(math.expm1(1)) / PACE))
        self.sharpness = nnx.Param(jnp.asarray(math.log(2.0) / PACE))

    def shares(self, history: History, weights: Array) -> tuple[Array, Array]:
        """α [B, T, k] and who the neighbours are, int32 [B, T, k]; α 0 where there are fewer."""
        B, T, _ = weights.shape
        length = jnp.sqrt(jnp.sum(jnp.square(weights), axis=-1, keepdims=True) + 1e-12)
        similarity = self.users.combine(weights / length, history.items)
        others = jnp.arange(similarity.shape[2]) != history.user[:, None]
        similarity, ids = jax.lax.top_k(jnp.where(others[:, None], similarity, 0), self.k)
        flat = similarity.reshape(B * T, self.k)
        valid = flat > 0
        sharp = jnp.exp(PACE * self.sharpness[...]) * jnp.log(jnp.where(valid, flat, 1))
        learned = jax.nn.softplus(PACE * self.weight[...])[ids.reshape(B * T, self.k)]
        shares = neighbor_weights(jnp.exp(sharp), learned, valid)
        return shares.reshape(B, T, self.k), ids.astype(jnp.int32)

    def __call__(self, history: History, weights: Array) -> Array:
        """Logits [B, T, I] with the attention's weights [B, T, S]."""
        return self.mix(self.items.combine_each(*self.shares(history, weights)))


def log_popularity(matrix: sp.csr_matrix) -> Array:
    """log(1 + events) of each item, float32 [I]."""
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return jnp.asarray(np.log1p(counts), jnp.float32)


def _bucket(x: Array) -> Array:
    return jnp.clip(x.astype(jnp.int32), 0, _BUCKETS - 1)
