"""Language models: a Transformer, masked or causal.

Devlin et al. 2019, "BERT"; Radford et al. 2018, "Improving Language Understanding by Generative
Pre-Training".

B batch, T length, D model size, V ids: the tokenizer's and the two of the task.
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
from tasks.common.backbones.transformer import Encoder, EncoderCache, EncoderConfig
from tasks.common.decoding.generate import DecodingConfig, generate
from tasks.common.keys import example_keys
from tasks.common.text.tokenizer import CLS, PAD, UNKNOWN

Array = jax.Array
OBJECTIVES = ("causal", "masked")


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(EncoderConfig):
    """A Transformer over tokens, and what it has to predict.

    BERT is objective="masked", norm="post", input_norm=True, norm_epsilon=1e-12,
    positions="learned", segments=2 and embedding_scale=0.02; what came after it norm="pre",
    normalization="rms", activation="swiglu", positions="rope", use_bias=False and
    mixer="dot_product(qk_norm=True, use_bias=False)".

    Attributes:
      objective: "causal", each token from those before it, or "masked", hidden ones from all
        others.
      embedding_scale: deviation of the embeddings at the start.
      tied: whether the table of the embeddings gives the logits too. Always for "masked".
      segments: 2, or 0 for none: a vector for each of two segments, added to the embeddings.
      next_sentence: whether it also has to tell if the second segment follows the first.
      mask_rate: share of the tokens to be predicted, for "masked".
      whole_words: hide words with all their tokens, for "masked".
      max_new_tokens: longest completion of a prompt, for "causal".
      decoding: how tokens of a completion are chosen, for "causal".
      For the others see `EncoderConfig`.
    """

    name: str = "transformer"
    objective: str = "causal"
    embedding_scale: float = 0.02
    tied: bool = True
    segments: int = 0
    next_sentence: bool = False
    mask_rate: float = 0.15
    whole_words: bool = False
    max_new_tokens: int = 200
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            expected = ", ".join(map(repr, OBJECTIVES))
            raise ValueError(f"objective: got {self.objective!r}, expected one of {expected}")
        if not self.embedding_scale > 0:
            expected = "a number above 0"
            raise ValueError(f"embedding_scale: got {self.embedding_scale}, expected {expected}")
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate: got {self.mask_rate}, expected a rate in (0, 1)")
        if self.max_new_tokens < 1:
            got, expected = self.max_new_tokens, "at least 1"
            raise ValueError(f"max_new_tokens: got {got}, expected {expected}")
        if self.segments not in (0, 2):
            raise ValueError(f"segments: got {self.segments}, expected 0 or 2")
        if self.next_sentence and not self.segments:
            raise ValueError("segments: got 0, expected 2 with next_sentence")
        if self.decoding.n_best != 1:
            raise ValueError(f"decoding.n_best: got {self.decoding.n_best}, expected 1")
        # What an objective does not read would have no effect.
        read = {
            "causal": ("tied", "max_new_tokens", "decoding"),
            "masked": ("segments", "next_sentence", "mask_rate", "whole_words"),
        }
        defaults = {field.name: field for field in dataclasses.fields(self)}
        for objective, names in read.items():
            for name in names:
                field, value = defaults[name], getattr(self, name)
                default = DecodingConfig() if name == "decoding" else field.default
                if objective != self.objective and value != default:
                    expected = f"{default!r}, or objective {objective!r}"
                    raise ValueError(f"{name}: got {value!r}, expected {expected}")
        able = {"causal": {"causal"}, "masked": set()}[self.objective]
        if not able <= self.entry.capabilities:
            fitting = [m.name for m in registry.mechanisms("mixer") if able <= m.capabilities]
            raise ValueError(
                f"mixer: got {self.entry.name!r}, which cannot be causal; expected one of {fitting}"
            )
        if self.objective == "masked" and "always_causal" in self.entry.capabilities:
            raise ValueError(
                f"mixer: got {self.entry.name!r}, which sees nothing of what follows; expected "
                "another for objective 'masked'"
            )


MODEL_CONFIGS = {"transformer": LanguageModelConfig}


class MaskedHead(nnx.Module):
    """logits = norm(gelu(x W + b)) Eᵀ + c, with E the table of the embeddings."""

    def __init__(self, config: LanguageModelConfig, vocabulary: int, *, rngs: nnx.Rngs):
        D = config.model_size
        self.transform = Projection((D,), (D,), rngs=rngs)
        self.norm = LayerNorm(D, epsilon=config.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros((vocabulary,)))

    def __call__(self, x: Array, embedding: TokenEmbedding) -> Array:
        x = self.norm(jax.nn.gelu(self.transform(x.astype(jnp.float32)), approximate=False))
        return embedding.logits(x) + self.bias[...]


class LanguageModel(nnx.Module):
    """hidden = Encoder(E[tokens] + S[segments]), and logits of hidden vectors.

    Weights: embedding/embedding [V, D], segment_embedding/embedding [2, D] where there are
    segments, encoder, and `head`: see `MaskedHead`; of an untied causal model head/kernel [D, V].
    With next_sentence, pooler/kernel [D, D] and follows/kernel [D, 2] with their biases.
    """

    def __init__(self, config: LanguageModelConfig, vocabulary: int, *, rngs: nnx.Rngs):
        """Args: config; V."""
        D, scale = config.model_size, config.embedding_scale
        self.config, self.vocabulary = config, vocabulary
        self.embedding = TokenEmbedding(vocabulary, D, init_scale=scale, rngs=rngs)
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
        """Hidden vectors.

        Args:
          tokens: int [B, T].
          lengths: int [B], how many are real; they come first.
          segments: int [B, T], 0 or 1; all 0 if None.
          dropout_key: None for evaluation.
          return_weights: also return the attention weights.

        Returns:
          [B, T, D], or that and the weights [L, B, N, T, T].
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
        """hidden [..., D] -> float32 [..., V]."""
        if self.head is None:
            return self.embedding.logits(hidden)
        if self.config.objective == "masked":
            return self.head(hidden, self.embedding)
        return self.head(hidden.astype(jnp.float32))

    def next_sentence(self, hidden: Array) -> Array:
        """hidden [B, T, D] -> logits [B, 2] that the second segment is another's, or follows."""
        return self.follows(jnp.tanh(self.pooler(hidden[:, 0].astype(jnp.float32))))

    def step(self, tokens: Array, cache: EncoderCache) -> tuple[Array, EncoderCache, tuple]:
        """One token of each row, for `tasks.common.decoding.generate.generate`."""
        hidden, cache = self.encoder.decode(self._embedded(tokens[:, None], None), cache)
        return self.logits(hidden[:, 0]), cache, ()


def _head(config: LanguageModelConfig, vocabulary: int, rngs: nnx.Rngs) -> nnx.Module | None:
    """What comes before the table of the embeddings, or in its place."""
    if config.objective == "masked":
        return MaskedHead(config, vocabulary, rngs=rngs)
    if config.tied:
        return None
    return Projection((config.model_size,), (vocabulary,), use_bias=False, rngs=rngs)


def complete(model: LanguageModel, prompt: Array, lengths: Array, ids: Array, end: int | None):
    """Writes what comes after a prompt, max_new_tokens of it.

    The model reads no more than max_length ids. What is longer is written part by part: each time
    the last max_length // 2 ids are read anew, and the rest of the room is written, so that every
    token is drawn from at least that many before it.

    Args:
      model: a causal one whose mixer decodes step by step.
      prompt: int [B, max_length // 2], padded at the end.
      lengths: int [B], at least 1.
      ids: int [B], by which samples differ.
      end: the token that ends a text; None: none does, and it is never written.

    Returns:
      int32 [B, max_new_tokens], `PAD` after the end token.
    """
    config = model.config
    B, kept = prompt.shape
    room = config.max_length - kept
    # Ids that say nothing of a text; the last two are the task's.
    signs = {PAD, UNKNOWN, CLS, model.vocabulary - 2, model.vocabulary - 1}
    rows = jnp.arange(B)

    def part(carry: tuple[Array, Array, Array], number: Array):
        window, length, ended = carry
        cache = model.encoder.init_cache(B, config.max_length)
        _, cache = model.encoder.decode(model._embedded(window, None), cache, length - 1)
        keys = None
        if config.decoding.method == "sample":
            keys = jax.vmap(jax.random.fold_in, (0, None))(
                example_keys(config.decoding.seed, ids), number
            )
        written = generate(
            model.step,
            cache,
            config=config.decoding,
            batch_size=B,
            max_length=room,
            start=window[rows, length - 1],
            end=end,
            pad=PAD,
            keys=keys,
            forbidden=sorted(signs - {end}),
        ).tokens[:, 0]
        written = jnp.where(ended[:, None], PAD, written)
        ended = ended | jnp.any(written == (PAD if end is None else end), axis=1)
        # The last ids of what there is now; a row that has ended is not read any more.
        places = jnp.maximum(length + room - kept, 0)[:, None] + jnp.arange(kept)
        all_ids = jnp.concatenate([window, written], axis=1)
        after = kept + places - length[:, None]
        window = all_ids[rows[:, None], jnp.where(places < length[:, None], places, after)]
        return (window, jnp.minimum(length + room, kept), ended), written

    first = (prompt, lengths, jnp.zeros((B,), bool))
    count = -(-config.max_new_tokens // room)
    _, parts = jax.lax.scan(part, first, jnp.arange(count))
    return jnp.swapaxes(parts, 0, 1).reshape(B, -1)[:, : config.max_new_tokens]
