"""The next item from the sequence of the ones before: SASRec and BERT4Rec.

Kang & McAuley 2018, "Self-Attentive Sequential Recommendation", with the losses that came after:
Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?"
(cross-entropy over all items) and Petrov & Macdonald 2023 (gBCE). Sun et al. 2019, "BERT4Rec:
Sequential Recommendation with Bidirectional Encoder Representations from Transformer".

B users, S places of a history, I items, D model size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, registry
from attention.normalization import LayerNorm
from attention.projection import Projection
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.recommendation.models.base import (
    Batch,
    Recommender,
    at_places,
    events,
    is_event,
    known,
    last_places,
    shares,
)
from tasks.recommendation.models.losses import LossConfig, next_item_loss

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SASRecConfig(EncoderConfig):
    """A causal Transformer over items.

    Attributes:
      embedding_scale: deviation of the items' vectors at the start.
      item_bias: whether each item has a number of its own added to its score.
      objective: the loss.
      For the others see `EncoderConfig`; max_length is at least the data's.
    """

    name: str = "sasrec"
    model_size: int = 64
    num_heads: int = 2
    feedforward_size: int = 256
    dropout_rate: float = 0.2
    attention_dropout_rate: float = 0.2
    positions: str = "learned"
    max_length: int = 200
    embedding_scale: float = 0.02
    item_bias: bool = False
    objective: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self):
        super().__post_init__()
        expect_scale(self.embedding_scale)
        if "causal" not in self.entry.capabilities:
            able = [m.name for m in registry.mechanisms("mixer") if "causal" in m.capabilities]
            got = f"{self.entry.name!r}, which cannot be causal"
            raise ValueError(f"mixer: got {got}, expected one of {able}")


@dataclasses.dataclass(frozen=True)
class BERT4RecConfig(EncoderConfig):
    """A Transformer that sees both sides of the items it has to tell.

    Attributes:
      embedding_scale: deviation of the items' vectors at the start.
      mask_rate: share of a sequence's items that are hidden.
      objective: the loss.
      For the others see `EncoderConfig`; max_length is that of a history, and at least the data's.
    """

    name: str = "bert4rec"
    model_size: int = 64
    num_heads: int = 2
    feedforward_size: int = 256
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    positions: str = "learned"
    max_length: int = 200
    embedding_scale: float = 0.02
    mask_rate: float = 0.3
    objective: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self):
        super().__post_init__()
        expect_scale(self.embedding_scale)
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate: got {self.mask_rate}, expected a rate in (0, 1)")
        if "always_causal" in self.entry.capabilities:
            got = f"{self.entry.name!r}, which sees nothing of what follows"
            raise ValueError(f"mixer: got {got}, expected another")


def expect_scale(scale: float) -> None:
    """Raises ValueError unless above 0."""
    if not scale > 0:
        raise ValueError(f"embedding_scale: got {scale}, expected a number above 0")


class SASRec(Recommender):
    """Scores of the next item by the vector of the latest place (Kang & McAuley 2018).

        h = Encoder(E[items], causal),   score_i = h_last · E_i (+ b_i)

    Weights: items/embedding, E [I, D]; encoder; bias, b [I], where there is one.
    """

    def __init__(self, config: SASRecConfig, num_items: int, *, rngs: nnx.Rngs):
        """Args: config; I."""
        self.config, self.num_items = config, num_items
        self.items = TokenEmbedding(
            num_items, config.model_size, init_scale=config.embedding_scale, rngs=rngs
        )
        self.encoder = Encoder(config, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((num_items,))) if config.item_bias else None

    def hidden(
        self, items: Array, *, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """Vectors [B, S, D] of the places of items [B, S], or those and weights [L, B, N, S, S]."""
        return self.encoder(
            self.items(known(items)),
            lengths=jnp.sum(is_event(items), axis=1),
            mask=masks.causal(),
            dropout_key=dropout_key,
            return_weights=return_weights,
        )

    def scores(self, batch: Batch) -> Array:
        """See `Recommender.scores`; of an empty history b alone, or 0."""
        items = batch["items"]
        hidden = at_places(self.hidden(items), last_places(items))
        logits = self.items.logits(jnp.where(is_event(items[:, :1]), hidden, 0))
        return logits if self.bias is None else logits + self.bias[...]

    def reasons(self, batch: Batch, items: Array) -> dict[str, Array]:
        """See `Recommender.reasons`: the attention of the latest place in the last layer, the mean
        of its heads and the same for all items; nothing where the mixer has no weights.
        """
        if "weights" not in self.config.entry.capabilities:
            return {}
        _, weights = self.hidden(batch["items"], return_weights=True)
        return alike(at_places(jnp.mean(weights[-1], axis=1), last_places(batch["items"])), items)

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """See `Recommender.loss`: of the next item at every place."""
        dropout_key, negative_key = jax.random.split(key)
        hidden = self.hidden(batch["items"], dropout_key=dropout_key)
        loss = next_item_loss(
            self.config.objective,
            hidden,
            self.items.embedding[...],
            batch["next"],
            batch["weight"],
            negative_key,
            None if self.bias is None else self.bias[...],
        )
        return loss, {}


class BERT4Rec(Recommender):
    """Scores of a hidden item by what stands on both sides of it (Sun et al. 2019).

        h = Encoder(E[items, some of them hidden]),
        score_i = norm(gelu(h W + w)) · E_i + b_i

    The next item is one that is hidden, after the history. Weights: items/embedding, E [I + 1, D],
    whose last row stands for what is hidden; encoder; transform/kernel, W [D, D], and
    transform/bias; norm; bias, b [I].
    """

    def __init__(self, config: BERT4RecConfig, num_items: int, *, rngs: nnx.Rngs):
        """Args: config; I."""
        D = config.model_size
        self.config, self.num_items = config, num_items
        self.items = TokenEmbedding(num_items + 1, D, init_scale=config.embedding_scale, rngs=rngs)
        room = dataclasses.replace(config, max_length=config.max_length + 1)
        self.encoder = Encoder(room, rngs=rngs)
        self.transform = Projection((D,), (D,), rngs=rngs)
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros((num_items,)))

    def _hidden(
        self, items: Array, *, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """items int [B, T] -> [B, T, D], or that and the weights [L, B, N, T, T]."""
        return self.encoder(
            self.items(known(items)),
            lengths=jnp.sum(is_event(items), axis=1),
            dropout_key=dropout_key,
            return_weights=return_weights,
        )

    def _transformed(self, hidden: Array) -> Array:
        hidden = self.transform(hidden.astype(jnp.float32))
        return self.norm(jax.nn.gelu(hidden, approximate=False))

    def _asked(self, items: Array) -> tuple[Array, Array]:
        """Histories with a hidden item after them, [B, S + 1], and where it is, [B]."""
        hidden_item = jnp.full((len(items),), self.num_items, jnp.int32)
        return events(items, hidden_item), jnp.sum(is_event(items), axis=1)

    def scores(self, batch: Batch) -> Array:
        """See `Recommender.scores`."""
        asked, place = self._asked(batch["items"])
        hidden = self._transformed(at_places(self._hidden(asked), place))
        table = self.items.embedding[: self.num_items]
        return jnp.einsum("BD,ID->BI", hidden, table) + self.bias[...]

    def reasons(self, batch: Batch, items: Array) -> dict[str, Array]:
        """See `Recommender.reasons`: as for `SASRec`, of the hidden place, without itself."""
        if "weights" not in self.config.entry.capabilities:
            return {}
        asked, place = self._asked(batch["items"])
        _, weights = self._hidden(asked, return_weights=True)
        weights = at_places(jnp.mean(weights[-1], axis=1), place)[:, :-1]
        return alike(jnp.where(is_event(batch["items"]), weights, 0), items)

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """See `Recommender.loss`: of items hidden at random; the last one where none is."""
        mask_key, dropout_key, negative_key = jax.random.split(key, 3)
        following = at_places(batch["next"], last_places(batch["items"]))
        whole = events(batch["items"], following)
        drawn = jax.random.uniform(mask_key, whole.shape) < self.config.mask_rate
        drawn = drawn & is_event(whole)
        last = jnp.arange(whole.shape[1]) == last_places(whole)[:, None]
        drawn = drawn | (last & ~jnp.any(drawn, axis=1, keepdims=True))
        shown = jnp.where(drawn & is_event(whole), self.num_items, whole)
        hidden = self._transformed(self._hidden(shown, dropout_key=dropout_key))
        loss = next_item_loss(
            self.config.objective,
            hidden,
            self.items.embedding[: self.num_items],
            jnp.where(drawn, whole, -1),
            batch["weight"],
            negative_key,
            self.bias[...],
        )
        return loss, {}


def alike(weights: Array, items: Array) -> dict[str, Array]:
    """Weights over places [B, S], as shares and the same for each of the items [B, R]."""
    found = shares(weights)[:, None]
    return {"items": jnp.broadcast_to(found, (*items.shape, weights.shape[1]))}
