"""Text classifiers: attention over embeddings, Transformer encoder, BiGRU with attention.

B batch, T length, D model size, C classes. All have the same call:
`logits = model(tokens, lengths, dropout_key=None)`; with `return_weights=True` it also returns the
attention weights by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import registry
from attention.dropout import dropout, keep_mask
from attention.projection import Projection
from tasks.common.backbones.recurrent import Bidirectional
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.common.configs import Config, PositiveFloat, PositiveInt, Rate, one_of
from tasks.common.text.tokenizer import CLS
from tasks.text_classification.finetuning import InitialWeights

Array = jax.Array


Pool = one_of(*registry.names("pool"))
PoolOrCls = one_of(*registry.names("pool"), "cls")
Prior = one_of("none", "naive_bayes")


@dataclasses.dataclass(frozen=True)
class AttentionPoolingConfig(Config):
    """A pool over embeddings of words and n-grams, and a linear layer.

    Attributes:
      embedding_size: D.
      embedding_scale: standard deviation of the initial embeddings.
      pooling: a pool of `attention.registry`.
      attention_size: hidden size of the attention's score; only for `pooling="attention"`.
      length_scaling: whether to multiply the pooled vector by sqrt(T), so that the logits of longer
        texts are larger.
      prior: "naive_bayes" initializes the first coordinates of the embeddings by the log-count
        ratios of the training split (Wang & Manning 2012); "none": all random.
      prior_scale: factor of those ratios.
      token_dropout_rate: probability of dropping whole tokens.
      dropout_rate: dropout rate of the pooled vector.
    """

    name: str = "attention_pooling"
    embedding_size: PositiveInt = 32
    embedding_scale: PositiveFloat = 0.1
    pooling: Pool = "attention"
    attention_size: PositiveInt = 32
    length_scaling: bool = True
    prior: Prior = "none"
    prior_scale: PositiveFloat = 0.3
    token_dropout_rate: Rate = 0.5
    dropout_rate: Rate = 0.5


@dataclasses.dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    """Token embeddings, a Transformer encoder, a pool and a linear layer.

    Attributes:
      pooling: a pool of `attention.registry`, or "cls": the state of a token before the text.
      token_dropout_rate: probability of dropping whole tokens at the input.
      head_dropout_rate: head dropout rate of the pooled vector.
      embedding_scale, prior, prior_scale: see `AttentionPoolingConfig`.
      init_from: run directory of language_modeling whose embeddings, encoder and tokenizer this run
        starts from; "": random initialization.
      For the others see `EncoderConfig`.
    """

    name: str = "transformer"
    pooling: PoolOrCls = "mean"
    token_dropout_rate: Rate = 0.1
    head_dropout_rate: Rate = 0.3
    embedding_scale: PositiveFloat = 0.1
    prior: Prior = "none"
    prior_scale: PositiveFloat = 0.3
    init_from: str = ""

    def __post_init__(self):
        super().__post_init__()
        free = not self.init_from or self.prior == "none"
        self.expect("prior", free, "'none' with init_from, which gives the embeddings")
        reads = self.pooling != "cls" or "always_causal" not in self.entry.capabilities
        self.expect(
            "pooling",
            reads,
            f"a pool with mixer {self.mixer!r}, whose first position does not attend to the text",
        )


@dataclasses.dataclass(frozen=True)
class BiGRUConfig(Config):
    """A bidirectional GRU and attention over its states (Yang et al. 2016, one level).

    Attributes:
      embedding_size: size of the token embeddings.
      state_size: state size of each direction.
      pooling: a pool of `attention.registry`.
      token_dropout_rate: probability of dropping whole tokens at the input.
      dropout_rate: dropout rate of embeddings and of the pooled vector.
      embedding_scale, prior, prior_scale: see `AttentionPoolingConfig`.
    """

    name: str = "bigru"
    embedding_size: PositiveInt = 64
    state_size: PositiveInt = 64
    pooling: Pool = "attention"
    token_dropout_rate: Rate = 0.2
    dropout_rate: Rate = 0.5
    embedding_scale: PositiveFloat = 0.1
    prior: Prior = "none"
    prior_scale: PositiveFloat = 0.3


MODEL_CONFIGS = {
    "transformer": TransformerConfig,
    "attention_pooling": AttentionPoolingConfig,
    "bigru": BiGRUConfig,
}


class Embedding(nnx.Module):
    """Token embeddings; `embedding` [vocabulary, D]."""

    def __init__(
        self, config: Any, vocabulary: int, size: int, prior: np.ndarray | None, *, rngs: nnx.Rngs
    ):
        """Args: model config; sizes; initial values of the first coordinates, [vocabulary, k]."""
        table = jax.random.normal(rngs.params(), (vocabulary, size)) * config.embedding_scale
        if prior is not None:
            table = table.at[:, : prior.shape[1]].set(prior * config.prior_scale)
        self.embedding = nnx.Param(table)

    def __call__(self, tokens: Array) -> Array:
        return jnp.take(self.embedding[...], tokens, axis=0)


def positions_valid(tokens: Array, lengths: Array) -> Array:
    """Returns True for tokens and False for padding, bool [B, T]."""
    return jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]


def _keys(dropout_key: Array | None, count: int) -> list[Array | None]:
    return [None] * count if dropout_key is None else list(jax.random.split(dropout_key, count))


def _dropped(x: Array, rate: float, key: Array | None) -> Array:
    return x if key is None else dropout(x, rate, key)


def _without(valid: Array, rate: float, key: Array | None) -> Array:
    """Returns `valid` without positions that are dropped with probability `rate`."""
    if key is None or rate == 0:
        return valid
    return valid & keep_mask(key, rate, valid.shape)


def _pool_weights(config: Any, weights: Array) -> dict[str, Array]:
    """Returns the weights of a pool as "pool"; nothing for the mean, whose weights are uniform."""
    return {} if config.pooling == "mean" else {"pool": weights}


class AttentionPoolingClassifier(nnx.Module):
    """logits = dropout(sqrt(T) · pool(E[tokens])) W + b."""

    def __init__(
        self,
        config: AttentionPoolingConfig,
        vocabulary: int,
        classes: int,
        *,
        prior: np.ndarray | None = None,
        rngs: nnx.Rngs,
    ):
        """Args: vocabulary, classes: sizes; prior: [vocabulary, columns], see the config."""
        self.config = config
        self.tokens = Embedding(config, vocabulary, config.embedding_size, prior, rngs=rngs)
        options = {"hidden_size": config.attention_size} if config.pooling == "attention" else {}
        self.pool = registry.load("pool", config.pooling)(
            config.embedding_size, rngs=rngs, **options
        )
        self.classify = Projection((config.embedding_size,), (classes,), rngs=rngs)
        if prior is not None:
            columns = prior.shape[1]
            kernel = self.classify.kernel[...].at[:columns].set(_prior_readout(columns, classes))
            self.classify.kernel[...] = kernel

    def __call__(
        self,
        tokens: Array,
        lengths: Array,
        *,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Computes logits [B, C] of tokens int [B, T] with lengths int [B].

        Weights: "pool" [B, heads, T], except for the mean.
        """
        config = self.config
        token_key, pooled_key = _keys(dropout_key, 2)
        valid = _without(positions_valid(tokens, lengths), config.token_dropout_rate, token_key)
        pooled, weights = self.pool(self.tokens(tokens), valid=valid)
        if config.length_scaling:
            count = jnp.sum(valid, axis=1, keepdims=True)
            pooled = pooled * jnp.sqrt(jnp.maximum(count, 1).astype(pooled.dtype))
        logits = self.classify(_dropped(pooled, config.dropout_rate, pooled_key))
        return (logits, _pool_weights(config, weights)) if return_weights else logits


def _prior_readout(columns: int, classes: int) -> np.ndarray:
    """Returns the classifier of the prior, [columns, classes]; two classes share a column."""
    if columns == 1:
        return np.array([[-0.5, 0.5]], np.float32)
    return np.eye(columns, classes, dtype=np.float32)


class TransformerClassifier(nnx.Module):
    """logits = dropout(pool(Encoder(E[tokens]))) W + b."""

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: int,
        classes: int,
        *,
        prior: np.ndarray | None = None,
        start: InitialWeights | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        D = config.model_size
        self.tokens = Embedding(config, vocabulary, D, prior, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        if start is not None:
            start.assign_to(self.tokens, self.encoder)
        self.pool = (
            None if config.pooling == "cls" else registry.load("pool", config.pooling)(D, rngs=rngs)
        )
        self.classify = Projection((D,), (classes,), rngs=rngs)

    def __call__(
        self,
        tokens: Array,
        lengths: Array,
        *,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Computes logits [B, C] of tokens int [B, T] with lengths int [B].

        Weights: "encoder" [B, L, N, T, T] if the mixer has weights, and "pool" [B, heads, T]
        except for the mean.
        """
        config = self.config
        token_key, encoder_key, pooled_key = _keys(dropout_key, 3)
        if self.pool is None:
            first = jnp.full((tokens.shape[0], 1), CLS, tokens.dtype)
            tokens = jnp.concatenate([first, tokens], axis=1)
            lengths = jnp.where(lengths > 0, lengths + 1, 0)
        valid = positions_valid(tokens, lengths)
        visible = _without(valid, config.token_dropout_rate, token_key)
        if self.pool is None:
            visible = visible.at[:, 0].set(valid[:, 0])
        has_weights = return_weights and "weights" in config.entry.capabilities
        encoded = self.encoder(
            self.tokens(tokens),
            valid=visible,
            dropout_key=encoder_key,
            return_weights=has_weights,
        )
        weights = {}
        if has_weights:
            encoded, layers = encoded
            weights["encoder"] = jnp.swapaxes(layers, 0, 1)
        if self.pool is None:
            pooled = encoded[:, 0]
        else:
            pooled, pool_weights = self.pool(encoded, valid=visible)
            weights |= _pool_weights(config, pool_weights)
        logits = self.classify(_dropped(pooled, config.head_dropout_rate, pooled_key))
        return (logits, weights) if return_weights else logits


class BiGRUClassifier(nnx.Module):
    """logits = dropout(pool(BiGRU(dropout(E[tokens])))) W + b."""

    def __init__(
        self,
        config: BiGRUConfig,
        vocabulary: int,
        classes: int,
        *,
        prior: np.ndarray | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.tokens = Embedding(config, vocabulary, config.embedding_size, prior, rngs=rngs)
        self.encoder = Bidirectional(
            config.embedding_size, config.state_size, cell="gru", rngs=rngs
        )
        self.pool = registry.load("pool", config.pooling)(2 * config.state_size, rngs=rngs)
        self.classify = Projection((2 * config.state_size,), (classes,), rngs=rngs)

    def __call__(
        self,
        tokens: Array,
        lengths: Array,
        *,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Computes logits [B, C] of tokens int [B, T] with lengths int [B].

        Weights: "pool" [B, heads, T], except for the mean.
        """
        config = self.config
        token_key, input_key, pooled_key = _keys(dropout_key, 3)
        valid = _without(positions_valid(tokens, lengths), config.token_dropout_rate, token_key)
        embedded = _dropped(self.tokens(tokens), config.dropout_rate, input_key)
        states, _ = self.encoder(embedded, valid=valid)
        pooled, weights = self.pool(states, valid=valid)
        logits = self.classify(_dropped(pooled, config.dropout_rate, pooled_key))
        return (logits, _pool_weights(config, weights)) if return_weights else logits


def build(
    config: Any,
    vocabulary: int,
    classes: int,
    *,
    prior: np.ndarray | None,
    start: InitialWeights | None = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Returns the model of a config; `start` has parameters for `init_from`."""
    kinds = {
        "attention_pooling": AttentionPoolingClassifier,
        "transformer": TransformerClassifier,
        "bigru": BiGRUClassifier,
    }
    options = {} if start is None else {"start": start}
    return kinds[config.name](config, vocabulary, classes, prior=prior, rngs=rngs, **options)
