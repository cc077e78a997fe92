"""Text classifiers: attention over embeddings, Transformer encoder, BiGRU with attention.

B batch, T length, D model size, C classes. All are called alike:
`logits = model(tokens, lengths, dropout_key=None)`, with `return_weights=True` also the attention
weights by name.
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
from tasks.common.text.tokenizer import CLS
from tasks.text_classification.finetuning import InitialWeights

Array = jax.Array


def _check_rates(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def _check_embedding(config: Any) -> None:
    for name in ("embedding_scale", "prior_scale"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    if config.prior not in ("none", "naive_bayes"):
        raise ValueError(f"prior must be 'none' or 'naive_bayes', got {config.prior!r}")


def _check_pool(value: str, *more: str) -> None:
    choices = (*registry.names("pool"), *more)
    if value not in choices:
        raise ValueError(f"pooling must be one of {', '.join(choices)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class AttentionPoolingConfig:
    """A pool over embeddings of words and n-grams, and a linear layer.

    Attributes:
      embedding_size: D.
      embedding_scale: standard deviation of the embeddings at the start.
      pooling: a pool of `attention.registry`.
      attention_size: hidden size of the attention's score; only `pooling="attention"` has one.
      length_scaling: multiply the pooled vector by sqrt(T), so that long texts speak louder.
      prior: "naive_bayes" puts the log-count ratios of the train split (Wang & Manning 2012) into
        the first coordinates of the embeddings at the start; "none" starts at random.
      prior_scale: factor on those ratios.
      token_dropout_rate: of whole tokens.
      dropout_rate: of the pooled vector.
    """

    name: str = "attention_pooling"
    embedding_size: int = 32
    embedding_scale: float = 0.1
    pooling: str = "attention"
    attention_size: int = 32
    length_scaling: bool = True
    prior: str = "none"
    prior_scale: float = 0.3
    token_dropout_rate: float = 0.5
    dropout_rate: float = 0.5

    def __post_init__(self):
        _check_positive(self, "embedding_size", "attention_size")
        _check_rates(self, "token_dropout_rate", "dropout_rate")
        _check_pool(self.pooling)
        _check_embedding(self)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    """A Transformer encoder over embeddings of the tokens, a pool and a linear layer.

    Attributes:
      pooling: a pool of `attention.registry`, or "cls": the state of a token put first.
      token_dropout_rate: of whole tokens at the input.
      head_dropout_rate: of the pooled vector.
      embedding_scale, prior, prior_scale: see `AttentionPoolingConfig`.
      init_from: folder of a language_modeling run whose embeddings, encoder and tokenizer this one
        starts from; "": at random.
      For the others see `EncoderConfig`.
    """

    name: str = "transformer"
    pooling: str = "mean"
    token_dropout_rate: float = 0.1
    head_dropout_rate: float = 0.3
    embedding_scale: float = 0.1
    prior: str = "none"
    prior_scale: float = 0.3
    init_from: str = ""

    def __post_init__(self):
        super().__post_init__()
        _check_embedding(self)
        if self.init_from and self.prior != "none":
            raise ValueError(
                f"prior must be 'none' with init_from, which gives the embeddings, got "
                f"{self.prior!r}"
            )
        _check_rates(self, "token_dropout_rate", "head_dropout_rate")
        _check_pool(self.pooling, "cls")
        if self.pooling == "cls" and "always_causal" in self.entry.capabilities:
            raise ValueError(
                f"pooling must not be 'cls' with mixer {self.mixer!r}: its first position sees "
                "nothing of the text"
            )


@dataclasses.dataclass(frozen=True)
class BiGRUConfig:
    """A bidirectional GRU and attention over its states (Yang et al. 2016, one level).

    Attributes:
      embedding_size: size of the token embeddings.
      state_size: of each direction.
      pooling: a pool of `attention.registry`.
      token_dropout_rate: of whole tokens at the input.
      dropout_rate: of embeddings and of the pooled vector.
      embedding_scale, prior, prior_scale: see `AttentionPoolingConfig`.
    """

    name: str = "bigru"
    embedding_size: int = 64
    state_size: int = 64
    pooling: str = "attention"
    token_dropout_rate: float = 0.2
    dropout_rate: float = 0.5
    embedding_scale: float = 0.1
    prior: str = "none"
    prior_scale: float = 0.3

    def __post_init__(self):
        _check_embedding(self)
        _check_positive(self, "embedding_size", "state_size")
        _check_rates(self, "token_dropout_rate", "dropout_rate")
        _check_pool(self.pooling)


MODEL_CONFIGS = {
    "transformer": TransformerConfig,
    "attention_pooling": AttentionPoolingConfig,
    "bigru": BiGRUConfig,
}


class Embedding(nnx.Module):
    """Rows of a table by id; `embedding` [vocabulary, D]."""

    def __init__(
        self, config: Any, vocabulary: int, size: int, prior: np.ndarray | None, *, rngs: nnx.Rngs
    ):
        """Args: model config; sizes; what its first coordinates start with, [vocabulary, k]."""
        table = jax.random.normal(rngs.params(), (vocabulary, size)) * config.embedding_scale
        if prior is not None:
            table = table.at[:, : prior.shape[1]].set(prior * config.prior_scale)
        self.embedding = nnx.Param(table)

    def __call__(self, tokens: Array) -> Array:
        return jnp.take(self.embedding[...], tokens, axis=0)


def positions_valid(tokens: Array, lengths: Array) -> Array:
    """bool [B, T], True where there is a token and not padding."""
    return jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]


def _keys(dropout_key: Array | None, count: int) -> list[Array | None]:
    return [None] * count if dropout_key is None else list(jax.random.split(dropout_key, count))


def _dropped(x: Array, rate: float, key: Array | None) -> Array:
    return x if key is None else dropout(x, rate, key)


def _without(valid: Array, rate: float, key: Array | None) -> Array:
    """`valid` with each position taken out with probability `rate`."""
    if key is None or rate == 0:
        return valid
    return valid & keep_mask(key, rate, valid.shape)


def _chosen_by_pool(config: Any, weights: Array) -> dict[str, Array]:
    """Returns the weights of a pool as "pool"; nothing for the mean, which weights all alike."""
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
        """tokens int [B, T], lengths int [B] -> logits [B, C]; weights "pool" [B, heads, T], none
        for the mean.
        """
        config = self.config
        token_key, pooled_key = _keys(dropout_key, 2)
        valid = _without(positions_valid(tokens, lengths), config.token_dropout_rate, token_key)
        pooled, weights = self.pool(self.tokens(tokens), valid=valid)
        if config.length_scaling:
            count = jnp.sum(valid, axis=1, keepdims=True)
            pooled = pooled * jnp.sqrt(jnp.maximum(count, 1).astype(pooled.dtype))
        logits = self.classify(_dropped(pooled, config.dropout_rate, pooled_key))
        return (logits, _chosen_by_pool(config, weights)) if return_weights else logits


def _prior_readout(columns: int, classes: int) -> np.ndarray:
    """[columns, classes]: each class reads its own column; two classes share one, with signs."""
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
        """tokens int [B, T], lengths int [B] -> logits [B, C].

        Weights: "encoder" [B, L, N, T, T] where the mixer has any and, with a pool other than the
        mean, "pool" [B, heads, T].
        """
        config = self.config
        token_key, encoder_key, pooled_key = _keys(dropout_key, 3)
        if self.pool is None:
            first = jnp.full((tokens.shape[0], 1), CLS, tokens.dtype)
            # The last column goes: texts leave room for the first, see `TextClassification`.
            tokens = jnp.concatenate([first, tokens], axis=1)
            lengths = jnp.where(lengths > 0, lengths + 1, 0)
        valid = positions_valid(tokens, lengths)
        seen = _without(valid, config.token_dropout_rate, token_key)
        if self.pool is None:
            seen = seen.at[:, 0].set(valid[:, 0])
        has_weights = return_weights and "weights" in config.entry.capabilities
        encoded = self.encoder(
            self.tokens(tokens),
            valid=seen,
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
            pooled, taken = self.pool(encoded, valid=seen)
            weights |= _chosen_by_pool(config, taken)
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
        """tokens int [B, T], lengths int [B] -> logits [B, C]; weights "pool" [B, heads, T], none
        for the mean.
        """
        config = self.config
        token_key, input_key, pooled_key = _keys(dropout_key, 3)
        valid = _without(positions_valid(tokens, lengths), config.token_dropout_rate, token_key)
        embedded = _dropped(self.tokens(tokens), config.dropout_rate, input_key)
        states, _ = self.encoder(embedded, valid=valid)
        pooled, weights = self.pool(states, valid=valid)
        logits = self.classify(_dropped(pooled, config.dropout_rate, pooled_key))
        return (logits, _chosen_by_pool(config, weights)) if return_weights else logits


def build(
    config: Any,
    vocabulary: int,
    classes: int,
    *,
    prior: np.ndarray | None,
    start: InitialWeights | None = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The model of a config; `start` where it has `init_from` and is to be trained."""
    kinds = {
        "attention_pooling": AttentionPoolingClassifier,
        "transformer": TransformerClassifier,
        "bigru": BiGRUClassifier,
    }
    options = {} if start is None else {"start": start}
    return kinds[config.name](config, vocabulary, classes, prior=prior, rngs=rngs, **options)
