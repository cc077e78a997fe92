"""Transformer language models, masked or causal.

Devlin et al. 2019, "BERT"; Radford et al. 2018, "Improving Language Understanding by Generative
Pre-Training".

B batch, T length, D model size, L layers, N heads, V vocabulary: the tokens of the tokenizer, the
mask token and the end token.
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
from tasks.common.backbones.embedding import TokenEmbedding, without_padding
from tasks.common.backbones.stacking import unstacked
from tasks.common.backbones.transformer import Encoder, EncoderCache, EncoderConfig
from tasks.common.configs import NonNegativeInt, PositiveFloat, PositiveInt, one_of, within
from tasks.common.decoding.generate import DecodingConfig, TokenDecoder
from tasks.common.keys import example_keys
from tasks.common.losses import cross_entropy, linear_cross_entropy
from tasks.common.text.tokenizer import CLS, PAD, UNKNOWN

Array = jax.Array
OBJECTIVES = ("causal", "masked")


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(EncoderConfig):
    """Config of a Transformer over tokens, and of its objective.

    BERT is objective="masked", norm="post", input_norm=True, norm_epsilon=1e-12,
    positions="learned", segments=2 and embedding_scale=0.02; recent models have norm="pre",
    normalization="rms", activation="swiglu", positions="rope", use_bias=False and
    mixer="dot_product(qk_norm=True, use_bias=False)".

    Attributes:
      objective: "causal" for next-token prediction, or "masked" for prediction of masked tokens.
      embedding_scale: standard deviation of initial embeddings.
      min_rows: minimum number of rows of the embedding table and of the output layer, such as
        50,304 for the vocabulary of GPT-2. Rows after the vocabulary are padding: their
        probabilities are 0.
      tied: whether the output projection is the embedding table; must be True for "masked".
      loss_chunk_size: number of tokens of the vocabulary whose logits are computed at a time in the
        loss, for "causal"; 0 for all. This saves memory for large vocabularies; results are the
        same.
      segments: number of segment embeddings: 2 for an embedding per segment, 1 for a single
        embedding that all tokens share (RoBERTa, Liu et al. 2019), 0 for none.
      next_sentence: whether the model also predicts if the second segment follows the first one.
      mask_rate: fraction of the tokens that are targets, for "masked".
      whole_words: whether to mask whole words, for "masked".
      max_new_tokens: maximum number of tokens of a completion, for "causal".
      decoding: decoding method of completions, for "causal".
      For the other attributes see `EncoderConfig`.
    """

    name: str = "transformer"
    objective: one_of(*OBJECTIVES) = "causal"
    embedding_scale: PositiveFloat = 0.02
    min_rows: NonNegativeInt = dataclasses.field(default=0, metadata={"later": True})
    tied: bool = True
    loss_chunk_size: NonNegativeInt = 0
    segments: one_of(0, 1, 2) = 0
    next_sentence: bool = False
    mask_rate: within("(0, 1)", "a rate in (0, 1)") = 0.15
    whole_words: bool = False
    max_new_tokens: PositiveInt = 200
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)

    def __post_init__(self):
        super().__post_init__()
        pairs = self.segments == 2 or not self.next_sentence
        self.expect("segments", pairs, "2, because next_sentence is True")
        if self.decoding.n_best != 1:
            raise ValueError(
                f"decoding.n_best: got {self.decoding.n_best}, expected 1, because a prompt has a "
                "single completion"
            )
        # A field that only the other objective reads has no effect, so it must have its default.
        read = {
            "causal": ("tied", "loss_chunk_size", "max_new_tokens", "decoding"),
            "masked": ("segments", "next_sentence", "mask_rate", "whole_words"),
        }
        defaults = {field.name: field for field in dataclasses.fields(self)}
        for objective, names in read.items():
            for name in names:
                default = DecodingConfig() if name == "decoding" else defaults[name].default
                unread = objective != self.objective and getattr(self, name) != default
                self.expect(name, not unread, f"{default!r}, or objective {objective!r}")
        if self.objective == "causal":
            self.expect_causal()
        elif "always_causal" in self.entry.capabilities:
            raise ValueError(
                f"mixer: got {self.entry.name!r}, which is always causal; expected a "
                "bidirectional mixer for objective 'masked'"
            )


MODEL_CONFIGS = {"transformer": LanguageModelConfig}


class MaskedHead(nnx.Module):
    """Output layer: logits = norm(gelu(x W + b)) Eᵀ + c, with E the embedding table."""

    def __init__(self, config: LanguageModelConfig, vocabulary: int, *, rngs: nnx.Rngs):
        D = config.model_size
        self.transform = Projection((D,), (D,), rngs=rngs)
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros((max(vocabulary, config.min_rows),)))

    def __call__(self, x: Array, embedding: TokenEmbedding) -> Array:
        x = self.norm(gelu(self.transform(x.astype(jnp.float32))))
        return embedding.logits(x) + self.bias[...]


class LanguageModel(nnx.Module):
    """Language model that computes hidden states, and logits from hidden states.

        hidden = Encoder(E[tokens] + S[segments])

    Parameters: embedding/embedding, which is E [R, D] with R = max(V, min_rows) rows; encoder; and
    head. The head is a `MaskedHead` for masked models, a kernel [D, R] for causal models without
    tied embeddings, and absent otherwise. With segments also segment_embedding/embedding, which is
    S [segments, D]. With next_sentence also pooler/kernel [D, D] and follows/kernel [D, 2], with
    their biases.
    """

    def __init__(self, config: LanguageModelConfig, vocabulary: int, *, rngs: nnx.Rngs):
        """Initializes the model for a vocabulary of V tokens."""
        D, scale = config.model_size, config.embedding_scale
        self.config, self.vocabulary = config, vocabulary
        self.embedding = TokenEmbedding(
            vocabulary, D, min_rows=config.min_rows, init_scale=scale, rngs=rngs
        )
        self.segment_embedding = (
            TokenEmbedding(config.segments, D, init_scale=scale, rngs=rngs)
            if config.segments
            else None
        )
        self.encoder = Encoder(config, rngs=rngs)
        self.head = _head(config, vocabulary, rngs)
        pairs = config.next_sentence
        self.pooler = Projection((D,), (D,), rngs=rngs) if pairs else None
        self.follows = Projection((D,), (2,), rngs=rngs) if pairs else None

    def __call__(
        self,
        tokens: Array,
        lengths: Array,
        *,
        segments: Array | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Computes hidden states.

        Args:
          tokens: token ids, int [B, T].
          lengths: int [B], number of tokens before padding.
          segments: int [B, T], 0 or 1; all 0 if None.
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights too.

        Returns:
          Hidden states [B, T, D]; with `return_weights` also the attention weights [L, B, N, T,
          T].
        """
        return self.encoder(
            self._embedded(tokens, segments),
            lengths=lengths,
            mask=masks.causal() if self.config.objective == "causal" else None,
            dropout_key=dropout_key,
            return_weights=return_weights,
        )

    def _embedded(self, tokens: Array, segments: Array | None) -> Array:
        x = self.embedding(tokens)
        if self.segment_embedding is None:
            return x
        return x + self.segment_embedding(jnp.zeros_like(tokens) if segments is None else segments)

    def logits(self, hidden: Array) -> Array:
        """Computes the logits of all tokens.

        Args:
          hidden: hidden states [..., D].

        Returns:
          float32 [..., R] with R = max(V, min_rows), -inf for rows after the vocabulary.
        """
        if self.head is None:
            return self.embedding.logits(hidden)
        if self.config.objective == "masked":
            return self.head(hidden, self.embedding)
        return without_padding(self.head(hidden.astype(jnp.float32)), self.vocabulary)

    def compare(self, hidden: Array, targets: Array) -> tuple[Array, Array]:
        """Compares predictions with targets, in chunks of the vocabulary if `loss_chunk_size` > 0.

        Args:
          hidden: hidden states, [..., D].
          targets: true tokens, int [...].

        Returns:
          Cross-entropy, float32 [...]; and whether the target has the largest logit, bool [...].
        """
        if not self.config.loss_chunk_size:
            logits = self.logits(hidden)
            return cross_entropy(logits, targets), jnp.argmax(logits, axis=-1) == targets
        table, x = self.embedding.embedding[...], hidden
        if self.head is not None:
            table, x = self.head.kernel[...].T, hidden.astype(jnp.float32)
        losses, best = linear_cross_entropy(
            x, table, targets, classes=self.vocabulary, chunk_size=self.config.loss_chunk_size
        )
        return losses, best == targets

    def next_sentence(self, hidden: Array) -> Array:
        """Computes the logits [B, 2] of "does not follow" and "follows" for the second segment."""
        return self.follows(jnp.tanh(self.pooler(hidden[:, 0].astype(jnp.float32))))

    def step(self, tokens: Array, cache: EncoderCache) -> tuple[Array, EncoderCache, tuple]:
        """Decodes one token of each row, for `tasks.common.decoding.generate.generate`."""
        hidden, cache = self.encoder.decode(self._embedded(tokens[:, None], None), cache)
        return self.logits(hidden[:, 0]), cache, ()


def _head(config: LanguageModelConfig, vocabulary: int, rngs: nnx.Rngs) -> nnx.Module | None:
    """Returns the module that maps hidden states to logits, or None if there is none.

    Without a module, logits are the products of hidden states and token embeddings. With the
    objective "masked", the module transforms the hidden states before these products.
    """
    if config.objective == "masked":
        return MaskedHead(config, vocabulary, rngs=rngs)
    if config.tied:
        return None
    rows = max(vocabulary, config.min_rows)
    return Projection((config.model_size,), (rows,), use_bias=False, rngs=rngs)


def decoding(model: LanguageModel, prompt: Array, lengths: Array, end: int | None) -> TokenDecoder:
    """Returns the decoder that continues prompts by at most max_length - T tokens.

    Args:
      model, prompt, lengths, end: as for `complete`.
    """
    config, model = model.config, unstacked(model)
    B, kept = prompt.shape
    cache = model.encoder.init_cache(B, config.max_length)
    _, cache = model.encoder.decode(model._embedded(prompt, None), cache, lengths - 1)
    # Tokens that are not text; the last two ids are the mask token and the end token.
    reserved = {PAD, UNKNOWN, CLS, model.vocabulary - 2, model.vocabulary - 1}
    return TokenDecoder(
        model.step,
        cache,
        batch_size=B,
        max_length=config.max_length - kept,
        start=prompt[jnp.arange(B), lengths - 1],
        end=end,
        pad=PAD,
        forbidden=sorted(reserved - {end}),
    )


def complete(model: LanguageModel, prompt: Array, lengths: Array, ids: Array, end: int | None):
    """Completes prompts by max_new_tokens tokens.

    The context is at most max_length tokens. Longer completions are decoded in parts. Each part
    re-encodes the last T tokens, and decodes until the context is full. Therefore every token has a
    context of at least T tokens, or of all previous tokens if these are fewer.

    Args:
      model: a causal model whose mixer supports decoding.
      prompt: int [B, T], padded at the end; T is at most max_length // 2.
      lengths: number of tokens of each prompt, int [B], at least 1.
      ids: int [B], ids of the examples, from which the sampling seeds are derived.
      end: the end token; None for models that never end a text.

    Returns:
      int32 [B, max_new_tokens], `PAD` after the end token.
    """
    config = model.config
    B, kept = prompt.shape
    room = config.max_length - kept
    rows = jnp.arange(B)

    def part(carry: tuple[Array, Array, Array], number: Array):
        window, length, ended = carry
        keys = None
        if config.decoding.method == "sample":
            keys = jax.vmap(jax.random.fold_in, (0, None))(
                example_keys(config.decoding.seed, ids), number
            )
        decoder = decoding(model, window, length, end)
        written = decoder.generate(config.decoding, keys).tokens[:, 0]
        written = jnp.where(ended[:, None], PAD, written)
        ended = ended | jnp.any(written == (PAD if end is None else end), axis=1)
        # Positions of the last tokens, which are the next window. In rows that have ended, the
        # window has no effect.
        positions = jnp.maximum(length + room - kept, 0)[:, None] + jnp.arange(kept)
        all_ids = jnp.concatenate([window, written], axis=1)
        after = kept + positions - length[:, None]
        window = all_ids[rows[:, None], jnp.where(positions < length[:, None], positions, after)]
        return (window, jnp.minimum(length + room, kept), ended), written

    first = (prompt, lengths, jnp.zeros((B,), bool))
    count = -(-config.max_new_tokens // room)
    _, parts = jax.lax.scan(part, first, jnp.arange(count))
    return jnp.swapaxes(parts, 0, 1).reshape(B, -1)[:, : config.max_new_tokens]
