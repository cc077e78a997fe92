"""Sequential recommenders: SASRec and BERT4Rec.

Kang & McAuley 2018, "Self-Attentive Sequential Recommendation", with later losses:
Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?"
(cross-entropy over all items) and Petrov & Macdonald 2023 (gBCE). Sun et al. 2019, "BERT4Rec:
Sequential Recommendation with Bidirectional Encoder Representations from Transformer".

In shapes, B is the number of users of a batch, S the number of positions of a history, I the number
of items, D the model size, L the number of layers, N the number of heads, and R the number of items
whose scores are attributed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks
from attention.activations import gelu
from attention.normalization import LayerNorm
from attention.projection import Projection
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.common.configs import PositiveFloat, within
from tasks.recommendation.models.base import (
    Batch,
    Recommender,
    events,
    fractions,
    gather_positions,
    is_event,
    last_positions,
    safe_ids,
)
from tasks.recommendation.models.losses import LossConfig, next_item_loss

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SequentialConfig(EncoderConfig):
    """Base class of the configs of Transformers over items; see `EncoderConfig`.

    Attributes:
      embedding_scale: standard deviation of initial embeddings.
      max_length: maximum number of events of a history, at least config.data.max_length.
      objective: config of the loss.
    """

    model_size: int = 64
    num_heads: int = 2
    feedforward_size: int = 256
    positions: str = "learned"
    max_length: int = 200
    embedding_scale: PositiveFloat = 0.02
    objective: LossConfig = dataclasses.field(default_factory=LossConfig)


@dataclasses.dataclass(frozen=True)
class SASRecConfig(SequentialConfig):
    """Config of a causal Transformer over items; see `SequentialConfig`.

    Attributes:
      item_bias: whether scores include a bias of each item.
    """

    name: str = "sasrec"
    dropout_rate: float = 0.2
    attention_dropout_rate: float = 0.2
    item_bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.expect_causal()


@dataclasses.dataclass(frozen=True)
class BERT4RecConfig(SequentialConfig):
    """Config of a bidirectional Transformer over partially masked items; see `SequentialConfig`.

    Attributes:
      mask_rate: fraction of the items of a sequence that are masked in training.
    """

    name: str = "bert4rec"
    mask_rate: within("(0, 1)", "a rate in (0, 1)") = 0.3

    def __post_init__(self):
        super().__post_init__()
        if "always_causal" in self.entry.capabilities:
            got = f"{self.entry.name!r}, which is always causal"
            raise ValueError(f"mixer: got {got}, expected a bidirectional mixer")


class SequentialRecommender(Recommender):
    """Base class of recommenders with a Transformer over the embedded items of the history."""

    def hidden(
        self, items: Array, *, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """Returns hidden states [B, S, D] of items [B, S].

        With `return_weights` also returns the attention weights [L, B, N, S, S]."""
        return self.encoder(
            self.items(safe_ids(items)),
            lengths=jnp.sum(is_event(items), axis=1),
            mask=masks.causal() if isinstance(self.config, SASRecConfig) else None,
            dropout_key=dropout_key,
            return_weights=return_weights,
        )

    def _last_layer(self, items: Array, positions: Array) -> Array:
        """Returns the attention weights [B, S] of one position of each row in the last layer.

        The weights are averaged over heads.
        """
        _, weights = self.hidden(items, return_weights=True)
        return gather_positions(jnp.mean(weights[-1], axis=1), positions)


class SASRec(SequentialRecommender):
    """SASRec: scores of the next item from the last hidden state (Kang & McAuley 2018).

        h = Encoder(E[items], causal),   score_i = h_last · E_i (+ b_i)

    Parameters: items/embedding, E [I, D]; encoder; with `item_bias` also bias, b [I].
    """

    def __init__(self, config: SASRecConfig, num_items: int, *, rngs: nnx.Rngs):
        """Initializes the model for `num_items` items."""
        self.config, self.num_items = config, num_items
        self.items = TokenEmbedding(
            num_items, config.model_size, init_scale=config.embedding_scale, rngs=rngs
        )
        self.encoder = Encoder(config, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((num_items,))) if config.item_bias else None

    def scores(self, batch: Batch) -> Array:
        """Scores all items; with an empty history the score is the bias, or 0 without a bias."""
        items = batch["items"]
        hidden = gather_positions(self.hidden(items), last_positions(items))
        logits = self.items.logits(jnp.where(is_event(items[:, :1]), hidden, 0))
        return logits if self.bias is None else logits + self.bias[...]

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns the last layer's attention weights of the last position, averaged over heads.

        They are the same for all R items.
        """
        if "weights" not in self.config.entry.capabilities:
            return {}
        weights = self._last_layer(batch["items"], last_positions(batch["items"]))
        return broadcast_weights(weights, items)

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Computes the loss of the next item at every position."""
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


class BERT4Rec(SequentialRecommender):
    """BERT4Rec: scores of a masked item from the items on both sides (Sun et al. 2019).

        h = Encoder(E[partially masked items]),
        score_i = norm(gelu(h W + w)) · E_i + b_i

    To predict the next item, a masked item is appended to the history. Parameters: items/embedding,
    E [I + 1, D], whose last row is the mask; encoder; transform/kernel, W [D, D], and
    transform/bias, w [D]; norm; bias, b [I].
    """

    def __init__(self, config: BERT4RecConfig, num_items: int, *, rngs: nnx.Rngs):
        """Initializes the model for `num_items` items."""
        D = config.model_size
        self.config, self.num_items = config, num_items
        self.items = TokenEmbedding(num_items + 1, D, init_scale=config.embedding_scale, rngs=rngs)
        room = dataclasses.replace(config, max_length=config.max_length + 1)
        self.encoder = Encoder(room, rngs=rngs)
        self.transform = Projection((D,), (D,), rngs=rngs)
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros((num_items,)))

    def _transformed(self, hidden: Array) -> Array:
        hidden = self.transform(hidden.astype(jnp.float32))
        return self.norm(gelu(hidden))

    def _with_mask(self, items: Array) -> tuple[Array, Array]:
        """Appends a masked item to each history.

        Returns:
          Items [B, S + 1], and the position of the masked item in each row, [B].
        """
        mask = jnp.full((items.shape[0],), self.num_items, jnp.int32)
        return events(items, mask), jnp.sum(is_event(items), axis=1)

    def scores(self, batch: Batch) -> Array:
        asked, position = self._with_mask(batch["items"])
        hidden = self._transformed(gather_positions(self.hidden(asked), position))
        table = self.items.embedding[: self.num_items]
        return jnp.einsum("BD,ID->BI", hidden, table) + self.bias[...]

    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Returns the last layer's attention weights of the masked position, averaged over heads.

        They are the same for all R items.
        """
        if "weights" not in self.config.entry.capabilities:
            return {}
        asked, position = self._with_mask(batch["items"])
        weights = self._last_layer(asked, position)[:, :-1]
        return broadcast_weights(jnp.where(is_event(batch["items"]), weights, 0), items)

    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Computes the loss of randomly masked items, or of the last item if none is masked."""
        mask_key, dropout_key, negative_key = jax.random.split(key, 3)
        following = gather_positions(batch["next"], last_positions(batch["items"]))
        whole = events(batch["items"], following)
        drawn = jax.random.uniform(mask_key, whole.shape) < self.config.mask_rate
        drawn = drawn & is_event(whole)
        last = jnp.arange(whole.shape[1]) == last_positions(whole)[:, None]
        drawn = drawn | (last & ~jnp.any(drawn, axis=1, keepdims=True))
        shown = jnp.where(drawn & is_event(whole), self.num_items, whole)
        hidden = self._transformed(self.hidden(shown, dropout_key=dropout_key))
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


def broadcast_weights(weights: Array, items: Array) -> dict[str, Array]:
    """Returns attributions that are the same for all items.

    Args:
      weights: weights of the positions, [B, S], which are normalized.
      items: items whose scores are attributed, int [B, R].

    Returns:
      "items" [B, R, S].
    """
    found = fractions(weights)[:, None]
    return {"items": jnp.broadcast_to(found, (*items.shape, weights.shape[1]))}
