"""A hybrid: attention over a user's history and over users alike, on what is counted and learned.

Parts, each a logit for every item: the ridge of EASE, transitions, neighbours (`parts.py`), and the
latest vector of a causal Transformer (`sequential.py`). With the neighbours alone it is user-based
collaborative filtering with learned weights.

B users, T places that are scored, S places of a history, I items, U users of the train split.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import scipy.sparse as sp
from flax import nnx

from tasks.recommendation.models.base import (
    Batch,
    Buffer,
    Recommender,
    gather_positions,
    is_event,
    last_positions,
    safe_ids,
    sample_positions,
    shares,
    weighted_mean,
)
from tasks.recommendation.models.losses import cross_entropy
from tasks.recommendation.models.score_terms import (
    PACE,
    Ease,
    History,
    MarkovChain,
    UserKnn,
    log_popularity,
)
from tasks.recommendation.models.sequential import SASRec, SASRecConfig

Array = jax.Array

# Logits of a step.
LOGITS = 2**23


@dataclasses.dataclass(frozen=True)
class HybridConfig:
    """Which parts there are and what they count.

    Attributes:
      ridge: λ of EASE; 0 leaves it out.
      ridge_items: how many items, the most popular, it knows; its matrix has their square.
      transitions: how far apart two events are that are counted as one after the other; 0 leaves
        them out.
      together: the same for pairs in either order; 0 leaves them out.
      decay: γ of both: what a place farther apart adds.
      neighbours: k, users alike; 0 leaves them out.
      sequence: whether there is a Transformer over the history; see `SASRecConfig`, of which
        model_size and what follows are read.
      half_life: places after which an event counts half as much, at the start.
      lists: of matrices with millions of entries, how many each row keeps.
      places: T, places of each sequence that a step learns from, drawn at random; fewer where a
        step would have more than 2²³ logits.
    """

    name: str = "hybrid"
    ridge: float = 300.0
    ridge_items: int = 6000
    transitions: int = 20
    together: int = 0
    decay: float = 0.9
    neighbours: int = 100
    sequence: bool = False
    half_life: float = 8.0
    lists: int = 64
    places: int = 24
    model_size: int = 64
    num_layers: int = 1
    num_heads: int = 2
    feedforward_size: int = 128
    dropout_rate: float = 0.3
    max_length: int = 200

    def __post_init__(self):
        for name in ("ridge", "transitions", "together", "neighbours"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        if not any((self.ridge, self.transitions, self.together, self.neighbours)):
            raise ValueError("ridge: got 0, expected above 0, or one of the other counted parts")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay: got {self.decay}, expected a number in (0, 1]")
        if not self.half_life > 0:
            raise ValueError(f"half_life: got {self.half_life}, expected a number above 0")
        for name in ("ridge_items", "lists", "places"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.sequence:
            self.transformer()

    def transformer(self) -> SASRecConfig:
        """The config of the part over the sequence."""
        names = ("model_size", "num_layers", "num_heads", "feedforward_size", "max_length")
        return SASRecConfig(
            **{name: getattr(self, name) for name in names},
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.dropout_rate,
        )


@dataclasses.dataclass(frozen=True)
class UserNeighboursConfig:
    """Attention over users alike, each with a learned weight (after Resnick et al. 1994).

    Attributes: see `HybridConfig`.
    """

    name: str = "user_neighbours"
    neighbours: int = 100
    half_life: float = 8.0
    lists: int = 64
    places: int = 24

    def __post_init__(self):
        if self.neighbours < 1:
            raise ValueError(f"neighbours: got {self.neighbours}, expected at least 1")
        self.as_hybrid()

    def as_hybrid(self) -> HybridConfig:
        """The hybrid that has this part alone."""
        return HybridConfig(
            ridge=0,
            transitions=0,
            sequence=False,
            neighbours=self.neighbours,
            half_life=self.half_life,
            lists=self.lists,
            places=self.places,
        )


class Hybrid(Recommender):
    """The sum of the parts' logits, of the popularity's and of a number for each item.

        z_i = Σ_parts z_i + e^s log(1 + n_i) + b_i

    Weights: counted/<number>, sequence, and, to be multiplied by `PACE`, popular (s); bias, b [I].
    Kept: log_popularity [I] and what the parts keep.
    """

    def __init__(self, config: HybridConfig, matrix: sp.csr_matrix, *, rngs: nnx.Rngs):
        """Args: config; train matrix [U, I]."""
        self.config, self.num_items = config, matrix.shape[1]
        half_life, lists = config.half_life, config.lists
        counted: list[nnx.Module] = []
        if config.ridge:
            counted.append(Ease(matrix, config.ridge, half_life, config.ridge_items))
        for window, both_ways in ((config.transitions, False), (config.together, True)):
            if window:
                counts = (window, config.decay, half_life, lists, both_ways)
                counted.append(MarkovChain(matrix, *counts))
        if config.neighbours:
            counted.append(UserKnn(matrix, config.neighbours, half_life, lists))
        self.counted = nnx.List(counted)
        self.sequence = (
            SASRec(config.transformer(), self.num_items, rngs=rngs) if config.sequence else None
        )
        self.log_popularity = Buffer(log_popularity(matrix))
        self.popular = nnx.Param(jnp.asarray(-1.0 / PACE))
        self.bias = nnx.Param(jnp.zeros((self.num_items,)))

    def _logits(
        self, history: History, weights: list[Array], dropout_key: Array | None = None
    ) -> Array:
        """[B, T, I] with the weights [B, T, S] of each counted part."""
        prior = jnp.exp(PACE * self.popular[...]) * self.log_popularity[...] + self.bias[...]
        logits = prior[None, None]
        for part, own in zip(self.counted, weights, strict=True):
            logits = logits + part(history, own)
        if self.sequence is None:
            return logits
        hidden = self.sequence.hidden(history.items, dropout_key=dropout_key)
        chosen = jnp.take_along_axis(hidden, history.places[..., None], axis=1)
        some = is_event(history.items[:, :1])[..., None]
        return logits + self.sequence.items.logits(jnp.where(some, chosen, 0))

    def _weights(self, history: History) -> list[Array]:
        return [part.attention(history) for part in self.counted]

    def scores(self, batch: Batch) -> Array:
        """See `Recommender.scores`."""
        history = _after_last(batch)
        return self._logits(history, self._weights(history))[:, 0]

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns α_v r(v, i) for neighbors alone; else, for each position j, the contribution of
        its attention, a_j ∂z_i/∂a_j over all parts but the Transformer.
        """
        history = _after_last(batch)
        weights = self._weights(history)
        if len(self.counted) == 1 and isinstance(self.counted[0], UserKnn):
            part = self.counted[0]
            alike, ids = (x[:, 0] for x in part.shares(history, weights[0]))
            return {
                "neighbours": shares(alike[:, None] * part.items.entry(ids, items)),
                "neighbour_ids": ids,
            }

        def counted(weights: list[Array]) -> Array:
            parts = zip(self.counted, weights, strict=True)
            logits = sum(part(history, own) for part, own in parts)[:, 0]
            return jnp.take_along_axis(logits, items, axis=1)

        _, back = jax.vjp(counted, weights)
        one_hot = jnp.eye(items.shape[1])[:, None] * jnp.ones((len(items), 1))
        (slopes,) = jax.vmap(back)(one_hot)
        parts = zip(weights, slopes, strict=True)
        added = sum(own[None, :, 0] * slope[:, :, 0] for own, slope in parts)
        return {"items": shares(jnp.swapaxes(added, 0, 1))}

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """See `Recommender.loss`: cross-entropy of the next item over all that the sequence has
        not had before, at places drawn at random.
        """
        place_key, dropout_key = jax.random.split(key)
        items, B = batch["items"], len(batch["items"])
        T = min(self.config.places, max(1, LOGITS // (B * self.num_items)))
        places, targets, count = sample_positions(place_key, batch["next"], T)
        rows, own = jnp.arange(B)[:, None], None
        if self.config.ridge:
            outside = jnp.where(is_event(batch["seen"]), batch["seen"], self.num_items)
            own = jnp.zeros((B, self.num_items)).at[rows, outside].set(1, mode="drop")
        last = gather_positions(batch["next"], last_positions(items))
        history = History(items, batch["ages"], batch["user"], places, last, own)
        logits = self._logits(history, self._weights(history), dropout_key)
        # Where an item stood first; of an item that did not, after all places.
        outside = jnp.where(is_event(items), items, self.num_items)
        first = jnp.full((B, self.num_items), items.shape[1])
        first = first.at[rows, outside].min(jnp.arange(items.shape[1]), mode="drop")
        again = first[:, None] <= places[:, :, None]
        again = again & (jnp.arange(self.num_items) != safe_ids(targets)[..., None])
        losses = cross_entropy(jnp.where(again, -jnp.inf, logits), targets)
        counted = batch["weight"][:, None] * count * is_event(targets)
        return weighted_mean(losses, counted), {}


def _after_last(batch: Batch) -> History:
    items = batch["items"]
    return History(items, batch["ages"], batch["user"], last_positions(items)[:, None])
