"""Text classifiers: attention over embeddings, Transformer encoder, BiGRU with attention.

B batch, T length, D model size, C classes, L layers, N heads. All models have the same call:
`logits = model(tokens, lengths, dropout_key=None)`. With `return_weights=True` the call also
returns the attention weights by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import registry
from attention.dropout import keep_mask
from attention.projection import Projection
from attention.sharding import constrain
from tasks.common.backbones.recurrent import Bidirectional
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.common.backbones.transformer_layers import maybe_dropout, split_keys, with_weights
from tasks.common.class_weights import ClassWeightsConfig
from tasks.common.configs import PositiveFloat, PositiveInt, Rate, one_of
from tasks.common.text.tokenizer import CLS, LAST
from tasks.text_classification.finetuning import InitialWeights

Array = jax.Array


Pool = one_of(*registry.names("pool"))
# Number of tokens that a pooling adds around the text; poolings that are not listed add none.
AROUND = {"cls": 1, "bert": 2}
PoolOrCls = one_of(*registry.names("pool"), *AROUND)
Prior = one_of("none", "naive_bayes", "tfidf")


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig(ClassWeightsConfig):
    """Config of the initial values of the token embeddings, and of the class weights.

    Attributes:
      embedding_scale: standard deviation of the initial embeddings.
      prior: initial values of the first coordinates of the embeddings, fitted to the training
        split: "naive_bayes" for log-count ratios (Wang & Manning 2012), "tfidf" for the sum of
        the weights of a linear SVM and of complement naive Bayes on TF-IDF vectors, "none" for
        random values.
      prior_scale: factor by which the values of the prior are multiplied.
      For the other attributes see `ClassWeightsConfig`.
    """

    embedding_scale: PositiveFloat = 0.1
    prior: Prior = "none"
    prior_scale: PositiveFloat = 0.3


@dataclasses.dataclass(frozen=True)
class AttentionPoolingConfig(EmbeddingConfig):
    """Config of a pool over embeddings of words and n-grams, and a linear layer.

    Attributes:
      embedding_size: D, size of the token embeddings.
      pooling: a pool of `attention.registry`.
      attention_size: hidden size of the score network of `pooling="attention"`, else unused.
      length_scaling: whether to multiply the pooled vector by the square root of the text length,
        so that logits of longer texts are larger.
      token_dropout_rate: probability of dropping whole tokens.
      dropout_rate: dropout rate of the pooled vector.
      For the other attributes see `EmbeddingConfig`.
    """

    name: str = "attention_pooling"
    embedding_size: PositiveInt = 32
    pooling: Pool = "attention"
    attention_size: PositiveInt = 32
    length_scaling: bool = True
    token_dropout_rate: Rate = 0.5
    dropout_rate: Rate = 0.5


@dataclasses.dataclass(frozen=True)
class TransformerConfig(EmbeddingConfig, EncoderConfig):
    """Config of token embeddings, a Transformer encoder, a pool and a linear layer.

    Attributes:
      pooling: a pool of `attention.registry`; "cls" for the state of a token before the text; or
        "bert" for tanh(W h + b) with h the state of [CLS] in "[CLS] text [SEP]", as in BERT
        (Devlin et al. 2019). `launch.export_weights` converts such classifiers to the format of
        the library transformers.
      token_dropout_rate: probability of dropping whole tokens at the input.
      head_dropout_rate: dropout rate of the pooled vector.
      init_from: run directory of a language model; its embeddings, encoder and tokenizer initialize
        the classifier. "" for random initialization.
      For the other attributes see `EmbeddingConfig` and `EncoderConfig`.
    """

    name: str = "transformer"
    pooling: PoolOrCls = "mean"
    token_dropout_rate: Rate = 0.1
    head_dropout_rate: Rate = 0.3
    init_from: str = ""

    def __post_init__(self):
        super().__post_init__()
        free = not self.init_from or self.prior == "none"
        self.expect("prior", free, "'none', because init_from sets the embeddings")
        reads = self.pooling not in AROUND or "always_causal" not in self.entry.capabilities
        self.expect(
            "pooling",
            reads,
            f"a pool other than {self.pooling!r}, because the first position of mixer "
            f"{self.mixer!r} does not attend to the text",
        )


@dataclasses.dataclass(frozen=True)
class BiGRUConfig(EmbeddingConfig):
    """Config of a bidirectional GRU with attention over its states (Yang et al. 2016, one level).

    Attributes:
      embedding_size: size of the token embeddings.
      state_size: size of the state of each direction.
      pooling: a pool of `attention.registry`.
      token_dropout_rate: probability of dropping whole tokens at the input.
      dropout_rate: dropout rate of embeddings and of the pooled vector.
      For the other attributes see `EmbeddingConfig`.
    """

    name: str = "bigru"
    embedding_size: PositiveInt = 64
    state_size: PositiveInt = 64
    pooling: Pool = "attention"
    token_dropout_rate: Rate = 0.2
    dropout_rate: Rate = 0.5


class Embedding(nnx.Module):
    """Token embeddings; the parameter `embedding` is [vocabulary, D]."""

    def __init__(self, config: Any, vocabulary: int, prior: np.ndarray | None, *, rngs: nnx.Rngs):
        """Initializes the embeddings.

        Args:
          config: config with `embedding_scale` and `prior_scale`.
          vocabulary: number of token ids.
          prior: values of the first k coordinates, [vocabulary, k], before they are multiplied by
            `prior_scale`; None for random values.
          rngs: random streams of the initialization.
        """
        shape = (vocabulary, embedding_size(config))
        table = jax.random.normal(rngs.params(), shape) * config.embedding_scale
        if prior is not None:
            table = table.at[: len(prior), : prior.shape[1]].set(prior * config.prior_scale)
        self.embedding = nnx.Param(table)

    def __call__(self, tokens: Array) -> Array:
        table = constrain(self.embedding[...], "W D")
        return constrain(jnp.take(table, tokens, axis=0), "B T D")


def tokens_around(config: Any) -> int:
    """Returns the number of tokens that the model adds: [CLS] before a text, [SEP] after it."""
    return AROUND.get(getattr(config, "pooling", ""), 0)


def embedding_size(config: Any) -> int:
    """Returns the size D of the token embeddings."""
    return getattr(config, "embedding_size", None) or config.model_size


def positions_valid(tokens: Array, lengths: Array) -> Array:
    """Returns True for tokens and False for padding, bool [B, T]."""
    return jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]


def _without(valid: Array, rate: float, key: Array | None) -> Array:
    """Sets each True of `valid` to False with probability `rate`; needs a random key."""
    if key is None or rate == 0:
        return valid
    return valid & keep_mask(key, rate, valid.shape)


class TextClassifier(nnx.Module):
    """Base class of the models: logits = dropout(pool(encoder(E[tokens]))) W + b.

    Args:
      config: one of MODEL_CONFIGS.
      vocabulary, classes: number of token ids and number of classes.
      prior: values of the prior [vocabulary, columns], see `EmbeddingConfig`; None without a prior.
      start: initial embeddings and encoder from the run `init_from`; None without such a run.
    """

    # Number of dropout keys; the last one is for the pooled vector.
    keys: ClassVar[int] = 3

    def __init__(
        self,
        config: Any,
        vocabulary: int,
        classes: int,
        *,
        prior: np.ndarray | None = None,
        start: InitialWeights | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        # The rows after the vocabulary embed [MASK] and [SEP], as in a language model.
        rows = vocabulary + len(LAST) if self._is_bert else vocabulary
        self.tokens = Embedding(config, rows, prior, rngs=rngs)
        self.encoder, size = self._encoder(rngs)
        self.pool = self._build_pool(size, rngs)
        if start is not None:
            start.assign_to(self.tokens, self.encoder, self.pool)
        self.classify = Projection((size,), (classes,), rngs=rngs)

    def _encoder(self, rngs: nnx.Rngs) -> tuple[nnx.Module | None, int]:
        """Returns the encoder, or None if there is none, and the size of the pooled states."""
        raise NotImplementedError

    @property
    def _is_bert(self) -> bool:
        return self.config.pooling == "bert"

    def _build_pool(self, size: int, rngs: nnx.Rngs) -> nnx.Module | None:
        if self.config.pooling == "cls":
            return None
        if self._is_bert:
            return Projection((size,), (size,), rngs=rngs)
        options = {}
        if self.config.pooling == "attention" and hasattr(self.config, "attention_size"):
            options["hidden_size"] = self.config.attention_size
        return registry.load("pool", self.config.pooling)(size, rngs=rngs, **options)

    def _pooled(
        self, tokens: Array, lengths: Array, keys: list[Array | None], return_weights: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Returns pooled states [B, D] and attention weights."""
        raise NotImplementedError

    def _pool(self, states: Array, valid: Array) -> tuple[Array, dict[str, Array]]:
        """Pools states; the weights of the pool "mean" are uniform and omitted."""
        pooled, weights = self.pool(states, valid=valid)
        return pooled, {} if self.config.pooling == "mean" else {"pool": weights}

    def __call__(
        self,
        tokens: Array,
        lengths: Array,
        *,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Computes the logits of the classes.

        Args:
          tokens: token ids, int [B, T].
          lengths: int [B], number of tokens before padding.
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights by name.

        Returns:
          Logits [B, C]; with `return_weights` also the attention weights by name: "pool" [B, heads,
          T], unless the pool is "mean"; and, for a Transformer whose mixer has attention weights,
          "encoder" [B, L, N, T, T].
        """
        *keys, last = split_keys(dropout_key, self.keys)
        pooled, weights = self._pooled(tokens, lengths, keys, return_weights)
        rate = getattr(self.config, "head_dropout_rate", self.config.dropout_rate)
        logits = self.classify(maybe_dropout(pooled, rate, last))
        return (logits, weights) if return_weights else logits


class AttentionPoolingClassifier(TextClassifier):
    """Pool over embeddings: logits = dropout(sqrt(length) · pool(E[tokens])) W + b."""

    keys = 2

    def __init__(
        self,
        config: AttentionPoolingConfig,
        vocabulary: int,
        classes: int,
        *,
        prior: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(config, vocabulary, classes, prior=prior, **options)
        if prior is not None:
            columns = prior.shape[1]
            kernel = self.classify.kernel[...].at[:columns].set(_prior_readout(columns, classes))
            self.classify.kernel[...] = kernel

    def _encoder(self, rngs: nnx.Rngs) -> tuple[None, int]:
        return None, self.config.embedding_size

    def _pooled(
        self, tokens: Array, lengths: Array, keys: list[Array | None], return_weights: bool
    ) -> tuple[Array, dict[str, Array]]:
        valid = positions_valid(tokens, lengths)
        valid = _without(valid, self.config.token_dropout_rate, keys[0])
        pooled, weights = self._pool(self.tokens(tokens), valid)
        if self.config.length_scaling:
            count = jnp.sum(valid, axis=1, keepdims=True)
            pooled = pooled * jnp.sqrt(jnp.maximum(count, 1).astype(pooled.dtype))
        return pooled, weights


def _prior_readout(columns: int, classes: int) -> np.ndarray:
    """Returns the initial rows of W for the columns of the prior, [columns, classes].

    Two classes share one column, with the weights -0.5 for class 0 and 0.5 for class 1.
    """
    if columns == 1:
        return np.array([[-0.5, 0.5]], np.float32)
    return np.eye(columns, classes, dtype=np.float32)


class TransformerClassifier(TextClassifier):
    """Transformer: logits = dropout(pool(Encoder(E[tokens]))) W + b."""

    def _encoder(self, rngs: nnx.Rngs) -> tuple[Encoder, int]:
        return Encoder(self.config, rngs=rngs), self.config.model_size

    def _pooled(
        self, tokens: Array, lengths: Array, keys: list[Array | None], return_weights: bool
    ) -> tuple[Array, dict[str, Array]]:
        config, around = self.config, tokens_around(self.config)
        if around:
            end = self.tokens.embedding.shape[0] - 1
            tokens = jnp.pad(tokens, ((0, 0), (1, around - 1))).at[:, 0].set(CLS)
            if self._is_bert:
                after = jnp.arange(tokens.shape[1]) == lengths[:, None] + 1
                tokens = jnp.where(after, end, tokens)
            lengths = jnp.where(lengths > 0, lengths + around, 0)
        valid = positions_valid(tokens, lengths)
        visible = _without(valid, config.token_dropout_rate, keys[0])
        if around:
            visible = visible.at[:, 0].set(valid[:, 0])
        has_weights = return_weights and "weights" in config.entry.capabilities
        encode = with_weights(self.encoder, has_weights, valid=visible, dropout_key=keys[1])
        encoded, layers = encode(self.tokens(tokens))
        weights = {"encoder": jnp.swapaxes(layers, 0, 1)} if has_weights else {}
        if self.pool is None:
            return encoded[:, 0], weights
        if self._is_bert:
            return jnp.tanh(self.pool(encoded[:, 0])), weights
        pooled, pool_weights = self._pool(encoded, visible)
        return pooled, weights | pool_weights


class BiGRUClassifier(TextClassifier):
    """Recurrent classifier: logits = dropout(pool(BiGRU(dropout(E[tokens])))) W + b."""

    def _encoder(self, rngs: nnx.Rngs) -> tuple[Bidirectional, int]:
        config = self.config
        encoder = Bidirectional(config.embedding_size, config.state_size, cell="gru", rngs=rngs)
        return encoder, 2 * config.state_size

    def _pooled(
        self, tokens: Array, lengths: Array, keys: list[Array | None], return_weights: bool
    ) -> tuple[Array, dict[str, Array]]:
        valid = positions_valid(tokens, lengths)
        valid = _without(valid, self.config.token_dropout_rate, keys[0])
        embedded = maybe_dropout(self.tokens(tokens), self.config.dropout_rate, keys[1])
        states, _ = self.encoder(embedded, valid=valid)
        return self._pool(states, valid)


# (config, model) by name.
_MODELS = {
    "transformer": (TransformerConfig, TransformerClassifier),
    "attention_pooling": (AttentionPoolingConfig, AttentionPoolingClassifier),
    "bigru": (BiGRUConfig, BiGRUClassifier),
}
MODEL_CONFIGS = {name: config for name, (config, _) in _MODELS.items()}


def build(config: Any, vocabulary: int, classes: int, **options: Any) -> TextClassifier:
    """Returns the model of a config; the arguments are those of `TextClassifier`."""
    return _MODELS[config.name][1](config, vocabulary, classes, **options)
