"""Hybrid of co-occurrence counts and a Transformer, with attention over histories and users.

The logits of the items are a sum of terms: EASE, transitions and similar users (`score_terms.py`),
and the logits of a causal Transformer (`sequential.py`). With similar users as the only term, the
model is user-based collaborative filtering with learned weights.

In shapes, B is the number of users of a batch, T the number of scored positions, S the number of
positions of a history, I the number of items, and U the number of users of the training split.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import scipy.sparse as sp
from flax import nnx

from tasks.common.configs import (
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    within,
)
from tasks.common.losses import cross_entropy
from tasks.recommendation.models.base import (
    Batch,
    Buffer,
    Recommender,
    fractions,
    gather_positions,
    is_event,
    last_positions,
    safe_ids,
    sample_positions,
    weighted_mean,
)
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

# Maximum number of logits of a training step.
LOGITS = 2**23


@dataclasses.dataclass(frozen=True)
class HybridConfig(Config):
    """Config of the hybrid and its terms.

    Attributes:
      ridge: λ of EASE; 0 for no EASE term.
      ridge_items: number r of most popular items in EASE, which stores an r x r matrix.
      transition_window: maximum distance, in positions, from an event to a later event that the
        transition term counts; 0 for no transition term.
      cooccurrence_window: maximum distance, in positions, of two events that the co-occurrence term
        counts in both orders; 0 for no co-occurrence term.
      decay: γ, decay of transition and co-occurrence counts with the distance.
      `neighbours`: k, number of similar users; 0 for no term of similar users.
      sequence: whether there is a Transformer over the history, configured by model_size and the
        fields below it; see `SASRecConfig`.
      half_life: initial half-life of the weights of events, in positions.
      top_k_entries: number of entries that each row of a sparse matrix keeps, if the matrix has
        more than 2²³ entries.
      positions_per_step: T, number of positions sampled from each sequence; fewer if a training
        step would compute more than 2²³ logits.
      model_size, num_layers, num_heads, feedforward_size, dropout_rate, max_length: see
        `SASRecConfig`.
    """

    name: str = "hybrid"
    ridge: NonNegativeFloat = 300.0
    ridge_items: PositiveInt = 6000
    transition_window: NonNegativeInt = dataclasses.field(
        default=20, metadata={"formerly": "transitions"}
    )
    cooccurrence_window: NonNegativeInt = dataclasses.field(
        default=0, metadata={"formerly": "together"}
    )
    decay: within("(0, 1]") = 0.9
    neighbours: NonNegativeInt = 100
    sequence: bool = False
    half_life: PositiveFloat = 8.0
    top_k_entries: PositiveInt = dataclasses.field(default=64, metadata={"formerly": "lists"})
    positions_per_step: PositiveInt = dataclasses.field(default=24, metadata={"formerly": "places"})
    model_size: int = 64
    num_layers: int = 1
    num_heads: int = 2
    feedforward_size: int = 128
    dropout_rate: float = 0.3
    max_length: int = 200

    def __post_init__(self):
        super().__post_init__()
        counted = any(
            (self.ridge, self.transition_window, self.cooccurrence_window, self.neighbours)
        )
        others = "`transition_window`, `cooccurrence_window` and `neighbours`"
        self.expect("ridge", counted, f"a number above 0 if {others} are 0")
        if self.sequence:
            self.transformer()

    def transformer(self) -> SASRecConfig:
        """Returns the config of the Transformer."""
        return SASRecConfig.of(self, attention_dropout_rate=self.dropout_rate)


@dataclasses.dataclass(frozen=True)
class UserNeighboursConfig(Config):
    """Config of attention over similar users with learned weights (after Resnick et al. 1994).

    For the attributes see `HybridConfig`.
    """

    name: str = "user_neighbours"
    neighbours: PositiveInt = 100
    half_life: PositiveFloat = 8.0
    top_k_entries: PositiveInt = dataclasses.field(default=64, metadata={"formerly": "lists"})
    positions_per_step: PositiveInt = dataclasses.field(default=24, metadata={"formerly": "places"})

    def as_hybrid(self) -> HybridConfig:
        """Returns the config of a hybrid with the term of similar users alone."""
        return HybridConfig(
            ridge=0,
            transition_window=0,
            sequence=False,
            neighbours=self.neighbours,
            half_life=self.half_life,
            top_k_entries=self.top_k_entries,
            positions_per_step=self.positions_per_step,
        )


class Hybrid(Recommender):
    """Sum of the logits of the terms, of the popularity, and of a bias of each item.

        z_i = Σ_terms z_i + e^s log(1 + n_i) + b_i

    with n_i the number of training events of item i. Parameters: counted/<number>, the terms from
    counts; sequence, the Transformer; popular, s / `PACE`; and bias, b [I]. Buffers: log_popularity
    [I] and the buffers of the terms.
    """

    def __init__(self, config: HybridConfig, matrix: sp.csr_matrix, *, rngs: nnx.Rngs):
        """Builds the terms from the training events [U, I]."""
        self.config, self.num_items = config, matrix.shape[1]
        half_life, top_k = config.half_life, config.top_k_entries
        counted: list[nnx.Module] = []
        # Names of the terms from counts, for `score_parts`.
        self.terms: tuple[str, ...] = ()
        if config.ridge:
            counted.append(Ease(matrix, config.ridge, half_life, config.ridge_items))
            self.terms += ("similar_items",)
        for window, both_ways in (
            (config.transition_window, False),
            (config.cooccurrence_window, True),
        ):
            if window:
                counts = (window, config.decay, half_life, top_k, both_ways)
                counted.append(MarkovChain(matrix, *counts))
                self.terms += ("cooccurrence" if both_ways else "transitions",)
        if config.neighbours:
            counted.append(UserKnn(matrix, config.neighbours, half_life, top_k))
            self.terms += ("similar_users",)
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
        """Returns logits [B, T, I], given the weights [B, T, S] of each term from counts."""
        return sum(self._parts(history, weights, dropout_key).values())

    def _parts(
        self, history: History, weights: list[Array], dropout_key: Array | None = None
    ) -> dict[str, Array]:
        """Returns the terms of the logits by name, each [B, T, I] or [1, 1, I]."""
        prior = jnp.exp(PACE * self.popular[...]) * self.log_popularity[...] + self.bias[...]
        found = {"popularity": prior[None, None]}
        for name, part, own in zip(self.terms, self.counted, weights, strict=True):
            found[name] = part(history, own)
        if self.sequence is None:
            return found
        hidden = self.sequence.hidden(history.items, dropout_key=dropout_key)
        chosen = jnp.take_along_axis(hidden, history.positions[..., None], axis=1)
        some = is_event(history.items[:, :1])[..., None]
        found["sequence"] = self.sequence.items.logits(jnp.where(some, chosen, 0))
        return found

    def _weights(self, history: History) -> list[Array]:
        return [part.attention(history) for part in self.counted]

    def scores(self, batch: Batch) -> Array:
        history = _after_last(batch)
        return self._logits(history, self._weights(history))[:, 0]

    def score_parts(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns popularity and bias, the terms from counts, and the term of the Transformer."""
        history = _after_last(batch)
        parts = self._parts(history, self._weights(history))
        shape = (items.shape[0], self.num_items)
        return {
            name: jnp.take_along_axis(jnp.broadcast_to(part[:, 0], shape), items, axis=1)
            for name, part in parts.items()
        }

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns the fraction that each similar user or position contributes to the scores.

        If similar users are the only term from counts, the contributions are α_v r(v, i) of
        `UserKnn`. Otherwise they are a_j ∂z_i/∂a_j for each position j with attention weight a_j.
        z_i is the sum of the terms from counts, without the Transformer.
        """
        history = _after_last(batch)
        weights = self._weights(history)
        if len(self.counted) == 1 and isinstance(self.counted[0], UserKnn):
            part = self.counted[0]
            alphas, ids = (x[:, 0] for x in part.neighbor_weights(history, weights[0]))
            return {
                "neighbours": fractions(alphas[:, None] * part.items.entry(ids, items)),
                "neighbour_ids": ids,
            }

        def counted(weights: list[Array]) -> Array:
            parts = zip(self.counted, weights, strict=True)
            logits = sum(part(history, own) for part, own in parts)[:, 0]
            return jnp.take_along_axis(logits, items, axis=1)

        _, back = jax.vjp(counted, weights)
        one_hot = jnp.eye(items.shape[1])[:, None] * jnp.ones((items.shape[0], 1))
        (gradients,) = jax.vmap(back)(one_hot)
        parts = zip(weights, gradients, strict=True)
        added = sum(own[None, :, 0] * gradient[:, :, 0] for own, gradient in parts)
        return {"items": fractions(jnp.swapaxes(added, 0, 1))}

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Computes cross-entropy at sampled positions, over items that are not in the history."""
        position_key, dropout_key = jax.random.split(key)
        items, B = batch["items"], len(batch["items"])
        T = min(self.config.positions_per_step, max(1, LOGITS // (B * self.num_items)))
        positions, targets, count = sample_positions(position_key, batch["next"], T)
        own = None
        if self.config.ridge:
            outside = jnp.where(is_event(batch["seen"]), batch["seen"], self.num_items)
            none = jnp.zeros((self.num_items,))
            own = jax.vmap(lambda row: none.at[row].set(1, mode="drop"))(outside)
        last = gather_positions(batch["next"], last_positions(items))
        history = History(items, batch["ages"], batch["user"], positions, last, own)
        logits = self._logits(history, self._weights(history), dropout_key)
        # `first` is the position at which each item first occurs, or past the end if it is absent.
        outside = jnp.where(is_event(items), items, self.num_items)
        never, numbers = jnp.full((self.num_items,), items.shape[1]), jnp.arange(items.shape[1])
        first = jax.vmap(lambda row: never.at[row].min(numbers, mode="drop"))(outside)
        again = first[:, None] <= positions[:, :, None]
        again = again & (jnp.arange(self.num_items) != safe_ids(targets)[..., None])
        losses = cross_entropy(jnp.where(again, -jnp.inf, logits), safe_ids(targets))
        counted = batch["weight"][:, None] * count * is_event(targets)
        return weighted_mean(losses, counted), {}


def _after_last(batch: Batch) -> History:
    items = batch["items"]
    return History(items, batch["ages"], batch["user"], last_positions(items)[:, None])
