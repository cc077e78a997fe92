"""The next item from the sequence of the ones before: SASRec.

Kang & McAuley 2018, "Self-Attentive Sequential Recommendation", with the losses that came after:
Klenitskiy & Vasilev 2023, "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?"
(cross-entropy over all items) and Petrov & Macdonald 2023 (gBCE).

B users, S places of a history, I items, D model size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, registry
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.recommendation.losses import LossConfig, next_item_loss
from tasks.recommendation.recommender import (
    Batch,
    Recommender,
    at_places,
    is_event,
    known,
    last_places,
)

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
        if "causal" not in self.line.can:
            able = [m.name for m in registry.mechanisms("mixer") if "causal" in m.can]
            got = f"{self.line.name!r}, which cannot be causal"
            raise ValueError(f"mixer: got {got}, expected one of {able}")


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

    def scores(
        self, batch: Batch, *, return_weights: bool = False
    ) -> Array | tuple[Array, dict[str, Array]]:
        """See `Recommender.scores`. The weights "items" are those of the last layer at the latest
        place, averaged over heads.
        """
        items = batch["items"]
        asked = return_weights and "weights" in self.config.line.can
        hidden = self.hidden(items, return_weights=asked)
        hidden, weights = hidden if asked else (hidden, None)
        last = last_places(items)
        # Of an empty history nothing is known.
        some = is_event(items[:, :1])
        logits = self.items.logits(jnp.where(some, at_places(hidden, last), 0))
        logits = logits if self.bias is None else logits + self.bias[...]
        if not return_weights:
            return logits
        if weights is None:
            return logits, {}
        return logits, {"items": at_places(jnp.mean(weights[-1], axis=1), last) * some}

    def reasons(self, batch: Batch, items: Array) -> dict[str, Array]:
        """See `Recommender.reasons`: the attention of the latest place, the same for all items."""
        _, weights = self.scores(batch, return_weights=True)
        if not weights:
            return {}
        weights = weights["items"]
        shape = (*items.shape, weights.shape[1])
        return {"items": jnp.broadcast_to(weights[:, None], shape)}

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
