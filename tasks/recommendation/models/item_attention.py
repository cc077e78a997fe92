"""A user as the items that the user had, in no order: NAIS and ACF.

He et al. 2018, "NAIS: Neural Attentive Item Similarity Model for Recommendation"; Chen et al. 2017,
"Attentive Collaborative Filtering: Multimedia Recommendation with Item- and Component-Level
Attention". The mechanisms are in `attention.collaborative`. Both papers learn from the whole of a
history but the target; here the target is what came next, and the history what was before it.

B users, T places that are scored, S places of a history, I items, U users, D model size, k
negatives, G features, M features of an item.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.collaborative.acf import ComponentAttention, ItemAttention
from attention.collaborative.nais import NAIS
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.recommendation.models.base import (
    Batch,
    Buffer,
    Recommender,
    is_event,
    last_positions,
    safe_ids,
    sample_positions,
    shares,
    weighted_mean,
)
from tasks.recommendation.models.losses import LossConfig, gbce, next_item_loss

Array = jax.Array

# Items that NAIS scores at a time: each of them has weights of its own over the history.
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class NAISConfig:
    """Attention over a history that is another for each item to be scored (He et al. 2018).

    Attributes:
      model_size: D.
      form: how an item asks another, "prod" or "concat".
      hidden_size: of the attention.
      beta: β, from 0 to 1, where the weights sum to 1.
      alpha: α, from 0, a sum over the history, to 1, a mean.
      places: T, places of each sequence that a step learns from, drawn at random.
      negatives: k, items drawn for each of them.
      calibration: t of gBCE; 0 is the paper's binary cross-entropy.
      embedding_scale: deviation of the items' vectors at the start.
    """

    name: str = "nais"
    model_size: int = 32
    form: str = "prod"
    hidden_size: int = 16
    beta: float = 0.5
    alpha: float = 0.0
    places: int = 8
    negatives: int = 16
    calibration: float = 0.75
    embedding_scale: float = 0.1

    def __post_init__(self):
        _expect_sizes(self, "model_size", "hidden_size", "places", "negatives")
        LossConfig("gbce", self.negatives, self.calibration)
        self.build(nnx.Rngs(0))

    def build(self, rngs: nnx.Rngs) -> NAIS:
        """The attention."""
        options = {"form": self.form, "hidden_size": self.hidden_size}
        return NAIS(self.model_size, **options, alpha=self.alpha, beta=self.beta, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class ACFConfig:
    """Attention over a history, and over what each of its items is made of (Chen et al. 2017).

    Attributes:
      model_size: D.
      component_size: of the vector of a feature, where items have features.
      hidden_size: of the attention.
      places: T, places of each sequence that a step learns from, drawn at random.
      embedding_scale: deviation of the vectors at the start.
      objective: the loss; the paper's is pairwise.
    """

    name: str = "acf"
    model_size: int = 64
    component_size: int = 16
    hidden_size: int = 32
    places: int = 8
    embedding_scale: float = 0.1
    objective: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self):
        _expect_sizes(self, "model_size", "component_size", "hidden_size", "places")


def _expect_sizes(config: NAISConfig | ACFConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least 1")
    if not config.embedding_scale > 0:
        got = config.embedding_scale
        raise ValueError(f"embedding_scale: got {got}, expected a number above 0")


class ItemSimilarity(Recommender):
    """Scores by attention over a history's similarities to each item (He et al. 2018).

    Weights: target/embedding (p) and source/embedding (q), [I, D]; bias [I]; attention.
    """

    def __init__(self, config: NAISConfig, num_items: int, *, rngs: nnx.Rngs):
        """Args: config; I."""
        D, scale = config.model_size, config.embedding_scale
        self.config, self.num_items = config, num_items
        self.target = TokenEmbedding(num_items, D, init_scale=scale, rngs=rngs)
        self.source = TokenEmbedding(num_items, D, init_scale=scale, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((num_items,)))
        self.attention = config.build(rngs)

    def _of(
        self, items: Array, candidates: Array, valid: Array, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """Scores of candidates [B, C] by histories [B, S], of which valid, [B, S] or [B, C, S]."""
        return self.attention(
            self.target(candidates),
            self.source(safe_ids(items)),
            bias=self.bias[...][candidates],
            valid=valid,
            return_weights=return_weights,
        )

    def scores(self, batch: Batch) -> Array:
        """See `Recommender.scores`."""
        items = batch["items"]
        count = -(-self.num_items // _BLOCK)
        blocks = jnp.arange(count * _BLOCK, dtype=jnp.int32).reshape(count, _BLOCK)

        def block(candidates: Array) -> Array:
            candidates = jnp.minimum(candidates, self.num_items - 1)
            candidates = jnp.broadcast_to(candidates, (len(items), _BLOCK))
            return self._of(items, candidates, is_event(items))

        found = jnp.moveaxis(jax.lax.map(block, blocks), 0, 1)
        return found.reshape(len(items), -1)[:, : self.num_items]

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """See `Recommender.attributions`: what each place adds to an item's score, a_ij q_j·p_i."""
        history = batch["items"]
        _, weights = self._of(history, items, is_event(history), return_weights=True)
        source, target = self.source(safe_ids(history)), self.target(items)
        return {"items": shares(weights[:, 0] * jnp.einsum("BRD,BSD->BRS", target, source))}

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """See `Recommender.loss`: gBCE at places drawn at random against items drawn at random."""
        place_key, negative_key = jax.random.split(key)
        items, k, T = batch["items"], self.config.negatives, self.config.places
        B, S = items.shape
        places, targets, count = sample_positions(place_key, batch["next"], T)
        drawn = jax.random.randint(negative_key, (B, T, k), 0, self.num_items, jnp.int32)
        candidates = jnp.concatenate([safe_ids(targets)[..., None], drawn], axis=2)
        before = jnp.arange(S) <= places[..., None]
        valid = jnp.repeat(before & is_event(items)[:, None], 1 + k, axis=1)
        logits = self._of(items, candidates.reshape(B, T * (1 + k)), valid).reshape(B, T, 1 + k)
        negatives = jnp.where(drawn == targets[..., None], -jnp.inf, logits[..., 1:])
        losses = gbce(logits[..., 0], negatives, self.num_items, self.config.calibration)
        counted = batch["weight"][:, None] * count * is_event(targets)
        return weighted_mean(losses, counted), {}


class AttentiveFiltering(Recommender):
    """Scores by a user's vector and by attention over the history (Chen et al. 2017).

        score_i = (u + Σ_l α_l p_l) · v_i + b_i

    with α of the user, the item and its features as the user sees them. A user who is not of the
    train split has u = 0.

    Weights: users/embedding (u) [U, D]; items/embedding (v) and auxiliary/embedding (p), [I, D];
    bias [I]; attention; where there are features, components/embedding [G, C] and
    component_attention. Buffer, where there are features: features int32 [I, M], -1 for none.
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
        """Args: config; I; U; float [I, G] or None."""
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

    def _profile(self, batch: Batch, places: Array) -> tuple[Array, Array]:
        """u + s after places int [B, T], of what is up to each: [B, T, D]; and α [B, T, S]."""
        items, (B, T) = batch["items"], places.shape
        S = items.shape[1]
        valid = is_event(items)[:, None] & (jnp.arange(S) <= places[..., None])
        some = is_event(batch["user"])[:, None]
        user = jnp.where(some, self.users(safe_ids(batch["user"])), 0)

        def each(x: Array) -> Array:
            """The same for all places: [B, ...] -> [B T, ...]."""
            return jnp.repeat(x, T, axis=0)

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
        return user[:, None] + profile.reshape(B, T, -1), weights.reshape(B, T, S)

    def scores(self, batch: Batch) -> Array:
        """See `Recommender.scores`."""
        whole, _ = self._profile(batch, last_positions(batch["items"])[:, None])
        return self.items.logits(whole[:, 0]) + self.bias[...]

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """See `Recommender.attributions`: what each place adds to an item's score, α_l p_l·v_i."""
        _, weights = self._profile(batch, last_positions(batch["items"])[:, None])
        auxiliary = self.auxiliary(safe_ids(batch["items"]))
        similarity = jnp.einsum("BRD,BSD->BRS", self.items(items), auxiliary)
        return {"items": shares(weights * similarity)}

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """See `Recommender.loss`: of the next item at places drawn at random."""
        place_key, negative_key = jax.random.split(key)
        places, targets, count = sample_positions(place_key, batch["next"], self.config.places)
        whole, _ = self._profile(batch, places)
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
    """The features that each item has: int32 [I, M], -1 where it has fewer than M."""
    present = np.asarray(features) > 0
    M = int(present.sum(axis=1).max())
    order = np.argsort(~present, axis=1, kind="stable")[:, :M]
    return np.where(np.take_along_axis(present, order, axis=1), order, -1).astype(np.int32)
