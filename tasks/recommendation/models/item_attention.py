"""Recommenders with order-independent attention over the items of a user: NAIS and ACF.

He et al. 2018, "NAIS: Neural Attentive Item Similarity Model for Recommendation"; Chen et al. 2017,
"Attentive Collaborative Filtering: Multimedia Recommendation with Item- and Component-Level
Attention". The mechanisms are in `attention.collaborative`. In both papers, the training history
contains all other items of the user, including items after the target. Here the history ends before
the target, which is the next item.

In shapes, B is the number of users of a batch, T the number of scored positions, S the number of
positions of a history, I the number of items, U the number of users, D the model size, k the number
of negatives, G the number of item features, M the maximum number of features of an item, and R the
number of items whose scores are attributed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.collaborative.acf import ComponentAttention, ItemAttention
from attention.collaborative.nais import NAIS
from attention.sharding import constrain, constrain_examples
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.configs import Config, PositiveFloat, PositiveInt, within
from tasks.recommendation.models.base import (
    Batch,
    Buffer,
    Recommender,
    fractions,
    is_event,
    last_positions,
    safe_ids,
    sample_positions,
    weighted_mean,
)
from tasks.recommendation.models.losses import LossConfig, gbce, next_item_loss

Array = jax.Array

# Number of items that NAIS scores at a time. It bounds memory, because each item has its own
# weights over the history.
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class ItemAttentionConfig(Config):
    """Base class of the configs of NAIS and ACF.

    Attributes:
      model_size: D, size of the embeddings.
      hidden_size: hidden size of the attention.
      positions_per_step: T, number of positions sampled from each sequence.
      embedding_scale: standard deviation of initial embeddings.
    """

    model_size: PositiveInt = 64
    hidden_size: PositiveInt = 32
    positions_per_step: PositiveInt = dataclasses.field(default=8, metadata={"formerly": "places"})
    embedding_scale: PositiveFloat = 0.1


@dataclasses.dataclass(frozen=True)
class NAISConfig(ItemAttentionConfig):
    """Config of attention over a history with each scored item as query (He et al. 2018).

    For the other attributes see `ItemAttentionConfig`.

    Attributes:
      form: form of the attention logits, "prod" or "concat".
      beta: β, exponent of the softmax denominator, from 0 to 1. At 1 the weights sum to 1.
      alpha: α, from 0 (sum over the history) to 1 (mean): the sum over n items is divided by n^α.
      negatives: k, number of negatives sampled for each position.
      calibration: t of gBCE; 0 gives the binary cross-entropy of the paper.
    """

    name: str = "nais"
    model_size: PositiveInt = 32
    form: str = "prod"
    hidden_size: PositiveInt = 16
    beta: float = 0.5
    alpha: float = 0.0
    negatives: PositiveInt = 16
    calibration: within("[0, 1]") = 0.75

    def __post_init__(self):
        super().__post_init__()
        self.build(nnx.Rngs(0))

    def build(self, rngs: nnx.Rngs) -> NAIS:
        """Builds the attention module."""
        options = {"form": self.form, "hidden_size": self.hidden_size}
        return NAIS(self.model_size, **options, alpha=self.alpha, beta=self.beta, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class ACFConfig(ItemAttentionConfig):
    """Config of attention over a history, and over the features of its items (Chen et al. 2017).

    For the other attributes see `ItemAttentionConfig`.

    Attributes:
      component_size: size of feature embeddings, if items have features.
      objective: config of the loss; the paper has a pairwise loss.
    """

    name: str = "acf"
    component_size: PositiveInt = 16
    objective: LossConfig = dataclasses.field(default_factory=LossConfig)


class ItemSimilarity(Recommender):
    """NAIS: attention over the similarities of a history to each item (He et al. 2018).

    Parameters: target/embedding (p) and source/embedding (q), [I, D]; bias [I]; attention.
    """

    def __init__(self, config: NAISConfig, num_items: int, *, rngs: nnx.Rngs):
        """Initializes the model for `num_items` items."""
        D, scale = config.model_size, config.embedding_scale
        self.config, self.num_items = config, num_items
        self.target = TokenEmbedding(num_items, D, init_scale=scale, rngs=rngs)
        self.source = TokenEmbedding(num_items, D, init_scale=scale, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((num_items,)))
        self.attention = config.build(rngs)

    def _of(
        self, items: Array, candidates: Array, valid: Array, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """Scores candidate items for histories.

        Args:
          items: items of the histories, int [B, S].
          candidates: C items to score for each history, int [B, C].
          valid: bool [B, S] or [B, C, S], True for positions that may be attended to.
          return_weights: whether to return the attention weights too.
        """
        return self.attention(
            self.target(candidates),
            self.source(safe_ids(items)),
            bias=self.bias[...][candidates],
            valid=valid,
            return_weights=return_weights,
        )

    def scores(self, batch: Batch) -> Array:
        items = batch["items"]
        count = -(-self.num_items // _BLOCK)
        blocks = jnp.arange(count * _BLOCK, dtype=jnp.int32).reshape(count, _BLOCK)

        def block(candidates: Array) -> Array:
            candidates = jnp.minimum(candidates, self.num_items - 1)
            candidates = jnp.broadcast_to(candidates, (items.shape[0], _BLOCK))
            return self._of(items, candidates, is_event(items))

        found = jnp.moveaxis(jax.lax.map(block, blocks), 0, 1)
        return found.reshape(items.shape[0], -1)[:, : self.num_items]

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns the contribution of each position to the score of an item as a fraction.

        The contribution of position j to item i is a_ij q_j·p_i, with the attention weight a_ij."""
        history = batch["items"]
        _, weights = self._of(history, items, is_event(history), return_weights=True)
        source, target = self.source(safe_ids(history)), self.target(items)
        return {"items": fractions(weights[:, 0] * jnp.einsum("BRD,BSD->BRS", target, source))}

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Computes gBCE at sampled positions with sampled negatives."""
        position_key, negative_key = jax.random.split(key)
        items, k, T = batch["items"], self.config.negatives, self.config.positions_per_step
        B, S = items.shape
        positions, targets, count = sample_positions(position_key, batch["next"], T)
        drawn = jax.random.randint(negative_key, (B, T, k), 0, self.num_items, jnp.int32)
        candidates = jnp.concatenate([safe_ids(targets)[..., None], drawn], axis=2)
        before = jnp.arange(S) <= positions[..., None]
        valid = jnp.repeat(before & is_event(items)[:, None], 1 + k, axis=1)
        logits = self._of(items, candidates.reshape(B, T * (1 + k)), valid).reshape(B, T, 1 + k)
        negatives = jnp.where(drawn == targets[..., None], -jnp.inf, logits[..., 1:])
        losses = gbce(logits[..., 0], negatives, self.num_items, self.config.calibration)
        counted = batch["weight"][:, None] * count * is_event(targets)
        return weighted_mean(losses, counted), {}


class AttentiveFiltering(Recommender):
    """ACF: a user embedding plus attention over the history (Chen et al. 2017).

        score_i = (u + Σ_l α_l p_l) · v_i + b_i

    The weight α_l of position l depends on the user, on the item at l, and on the features of this
    item, which are averaged by attention. Users outside the training split have u = 0.

    Parameters: users/embedding (u) [U, D]; items/embedding (v) and auxiliary/embedding (p), [I, D];
    bias (b) [I]; attention. With item features also components/embedding [G, component_size] and
    component_attention, and the buffer features int32 [I, M], padded with -1.
    """

    def __init__(
        self,
        config: ACFConfig,
        num_items: int,
        num_users: int,
        features: np.ndarray | None,
        *,
        rngs: nnx.Rngs,
    ):
        """Initializes the model for item features [I, G], or None without features."""
        D, A, scale = config.model_size, config.hidden_size, config.embedding_scale
        self.config, self.num_items = config, num_items
        self.users = TokenEmbedding(num_users, D, init_scale=scale, rngs=rngs)
        self.items = TokenEmbedding(num_items, D, init_scale=scale, rngs=rngs)
        self.auxiliary = TokenEmbedding(num_items, D, init_scale=scale, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((num_items,)))
        some = features is not None and bool(np.any(features))
        content_size = config.component_size if some else None
        self.features = Buffer(jnp.asarray(_lists(features))) if some else None
        self.components = (
            TokenEmbedding(features.shape[1], content_size, init_scale=scale, rngs=rngs)
            if some
            else None
        )
        self.component_attention = (
            ComponentAttention(D, content_size, hidden_size=A, rngs=rngs) if some else None
        )
        self.attention = ItemAttention(D, content_size=content_size, hidden_size=A, rngs=rngs)

    def _user(self, batch: Batch) -> Array:
        """Returns the embeddings u [B, D] of the users; 0 for users who are not in the data."""
        some = is_event(batch["user"])[:, None]
        return jnp.where(some, self.users(safe_ids(batch["user"])), 0)

    def _profile(self, batch: Batch, positions: Array) -> tuple[Array, Array]:
        """Computes the profile of each user from the history up to each scored position.

        Args:
          batch: examples.
          positions: scored positions, int [B, T].

        Returns:
          u + Σ_l α_l p_l, [B, T, D]; and the weights α, [B, T, S].
        """
        items, (B, T) = batch["items"], positions.shape
        S = items.shape[1]
        valid = is_event(items)[:, None] & (jnp.arange(S) <= positions[..., None])
        user = self._user(batch)

        def each(x: Array) -> Array:
            """Repeats each row T times, once for each position: [B, ...] -> [B T, ...]."""
            return constrain_examples(jnp.repeat(x, T, axis=0))

        rows, content = safe_ids(items), None
        if self.features is not None:
            features = self.features[...][rows]
            components = self.components(safe_ids(features))
            content = self.component_attention(user, components, valid=is_event(features))
            content = each(content)
        profile, weights = self.attention(
            each(user),
            each(self.items(rows)),
            each(self.auxiliary(rows)),
            content=content,
            valid=valid.reshape(B * T, S),
            return_weights=True,
        )
        whole = constrain(user[:, None] + profile.reshape(B, T, -1), "B T D")
        return whole, weights.reshape(B, T, S)

    def scores(self, batch: Batch) -> Array:
        whole, _ = self._profile(batch, last_positions(batch["items"])[:, None])
        return self.items.logits(whole[:, 0]) + self.bias[...]

    def score_parts(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns the term of the user, the term of the history, and the bias of the item."""
        whole, _ = self._profile(batch, last_positions(batch["items"])[:, None])
        user = self._user(batch)
        chosen = self.items(items)
        return {
            "user": jnp.einsum("BD,BRD->BR", user, chosen),
            "history": jnp.einsum("BD,BRD->BR", whole[:, 0] - user, chosen),
            "popularity": self.bias[...][items],
        }

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns the contributions α_l p_l·v_i of positions l to items i, as fractions."""
        _, weights = self._profile(batch, last_positions(batch["items"])[:, None])
        auxiliary = self.auxiliary(safe_ids(batch["items"]))
        similarity = jnp.einsum("BRD,BSD->BRS", self.items(items), auxiliary)
        return {"items": fractions(weights * similarity)}

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Computes the loss of the next item at sampled positions."""
        position_key, negative_key = jax.random.split(key)
        positions, targets, count = sample_positions(
            position_key, batch["next"], self.config.positions_per_step
        )
        whole, _ = self._profile(batch, positions)
        loss = next_item_loss(
            self.config.objective,
            whole,
            self.items.embedding[...],
            targets,
            batch["weight"] * count[:, 0],
            negative_key,
            self.bias[...],
        )
        return loss, {}


def _lists(features: np.ndarray) -> np.ndarray:
    """Returns the indices of the features of each item, int32 [I, M], padded with -1."""
    present = np.asarray(features) > 0
    M = int(present.sum(axis=1).max())
    order = np.argsort(~present, axis=1, kind="stable")[:, :M]
    return np.where(np.take_along_axis(present, order, axis=1), order, -1).astype(np.int32)
