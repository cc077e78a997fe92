"""Config and layers of Transformer encoders and decoders.

The memory of a decoder is the encoder states that it attends to. The mixer of a layer is its
self-attention, or a mechanism that replaces it. In shapes, B is the batch size, T the length, S the
length of the memory, D the model size, D_m the size of the memory, N the number of heads, and F the
feed-forward size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from attention import MultiHeadAttention, activations, masks, recording, registry
from attention.dropout import dropout
from attention.normalization import LayerNorm, RMSNorm
from attention.positions import ADDED_POSITIONS, POSITIONS, build_added_positions
from attention.projection import Projection
from attention.sharding import constrain
from tasks.common.configs import Config, Dtype, PositiveFloat, PositiveInt, Rate, one_of, spec_of

Array = jax.Array

_ACTIVATIONS = {
    "gelu": activations.gelu,
    "gelu_tanh": activations.gelu_tanh,
    "relu": jax.nn.relu,
    "silu": activations.silu,
    "swiglu": activations.silu,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Config):
    """Config of a Transformer encoder or decoder.

    Attributes:
      model_size: D, size of the vectors between the layers.
      num_layers: L, number of layers.
      num_heads: N, number of attention heads; divides D.
      feedforward_size: F, hidden size of the feed-forward modules.
      dropout_rate: dropout rate after embeddings, attention and feed-forward.
      attention_dropout_rate: dropout rate of the attention weights or, in mixers that compute no
        attention weights, of another array, such as the result.
      norm: "pre" (Xiong et al. 2020) or "post" (Vaswani et al. 2017).
      activation: "gelu" (with the error function), "gelu_tanh" (its approximation), "relu", "silu"
        (also called swish) or "swiglu", gated by silu (Shazeer 2020).
      positions: "none", position embeddings that are added to the input, or a spec for the mixer.
        Embeddings for the input are "sinusoidal", "sinusoidal(interleaved=False)" with the sines
        before the cosines, and "learned". A mixer that supports positions takes a spec of
        `attention.positions.POSITIONS`, such as "rope", "alibi" or "rope(base=500000)".
      max_length: maximum length of the input. Longer inputs are rejected even if neither positions
        nor mixer has a limit.
      mixer: a mixer of `attention.registry`, with options if any: "dot_product",
        "sliding_window(left=8, right=8)", "performer(features=64, kernel=relu)".
      dtype: dtype of the computation; parameters are float32.
      normalization: "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019).
      norm_epsilon: number that norms add to the variance or the mean square.
      use_bias: whether feed-forward, layer norms and cross-attention have biases. The mixer has
        its own option: "dot_product(use_bias=False)".
      input_norm: whether embeddings with positions are normalized, before dropout (Devlin et al.
        2019).
      rematerialize: whether activations of layers are recomputed in the backward pass (Chen et al.
        2016). This saves memory and costs time; results are the same.
      scan_layers: whether layers are applied by `jax.lax.scan` over stacked parameters, so that the
        time to compile a training step does not depend on L; results are the same. Decoding applies
        the layers one by one.

    Class attributes:
      one_length: whether all inputs have the same length. If not, mixers whose result depends on
        the amount of padding are rejected.
    """

    one_length: ClassVar[bool] = False

    model_size: PositiveInt = 128
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    feedforward_size: PositiveInt = 512
    dropout_rate: Rate = 0.1
    attention_dropout_rate: Rate = 0.1
    norm: one_of("pre", "post") = "pre"
    activation: one_of(*_ACTIVATIONS) = "gelu"
    positions: spec_of("none", *ADDED_POSITIONS, *POSITIONS) = "sinusoidal"
    max_length: PositiveInt = 512
    mixer: spec_of(*registry.names("mixer")) = "dot_product"
    dtype: Dtype = "float32"
    normalization: one_of("layer", "rms") = "layer"
    norm_epsilon: PositiveFloat = 1e-5
    use_bias: bool = True
    input_norm: bool = False
    rematerialize: bool = False
    scan_layers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        divides = self.model_size % self.num_heads == 0
        self.expect("num_heads", divides, f"a divisor of model_size={self.model_size}")
        fits = not self.positions_are("sinusoidal") or self.model_size % 2 == 0
        self.expect("model_size", fits, "an even size for 'sinusoidal' positions")
        if "length_dependent" in self.entry.capabilities and not self.one_length:
            able = sorted({*registry.names("mixer")} - {*mixers_with("length_dependent")})
            got = f"{self.entry.name!r}, whose result depends on the amount of padding"
            raise ValueError(f"mixer: got {got}; expected one of {able}")
        registry.check_spec(
            "mixer",
            self.mixer,
            lambda x: (self.build_mixer(nnx.Rngs(0))(x), self.build_positions(nnx.Rngs(0)))[0],
            jax.ShapeDtypeStruct((1, 1, self.model_size), self.dtype),
            others=[field.name for field in dataclasses.fields(EncoderConfig)],
        )

    @classmethod
    def of(cls, config: Any, **changes: Any) -> Self:
        """Returns an encoder config that copies the fields that another config also has.

        Args:
          config: config that has some of the fields of `EncoderConfig`.
          **changes: values of fields, which replace the copied values.
        """
        names = [field.name for field in dataclasses.fields(EncoderConfig)]
        values = {name: getattr(config, name) for name in names if hasattr(config, name)}
        return cls(**values | changes)

    @property
    def entry(self) -> registry.Mechanism:
        """The registry entry of the mixer."""
        return registry.find("mixer", self.mixer)

    def expect_causal(self) -> None:
        """Checks that the mixer supports a causal mask.

        Raises:
          ValueError: the mixer lacks the capability "causal".
        """
        if "causal" not in self.entry.capabilities:
            got = f"{self.entry.name!r}, which cannot be causal"
            raise ValueError(f"mixer: got {got}, expected one of {mixers_with('causal')}")

    def positions_are(self, *names: str) -> bool:
        """Returns True if the name in `positions`, without its options, is one of `names`."""
        return self.positions.partition("(")[0].strip() in names

    def build_mixer(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the mixer of one layer.

        Raises:
          ValueError: the mixer, the positions or an option is unknown or not valid.
        """
        capabilities, options = self.entry.capabilities, {}
        if not self.positions_are(*ADDED_POSITIONS, "none"):
            choices = ["none", *ADDED_POSITIONS, *POSITIONS]
            registry.parse("positions", self.positions, choices)
            if "positions" not in capabilities:
                raise ValueError(
                    f"positions: got {self.positions!r}, which mixer {self.entry.name!r} does not "
                    f"support; expected one of {choices[:3]}, or one of the "
                    f"mixers {mixers_with('positions')}"
                )
            options["positions"] = self.positions
        if "max_length" in capabilities:
            options["max_length"] = self.max_length
        return registry.build(
            "mixer",
            self.mixer,
            self.model_size,
            num_heads=self.num_heads,
            dropout_rate=self.attention_dropout_rate,
            dtype=jnp.dtype(self.dtype),
            rngs=rngs,
            **options,
        )

    def build_positions(self, rngs: nnx.Rngs) -> nnx.Module | None:
        """Builds the module of the positions that are added to the input; None if there are none.

        Raises:
          ValueError: an option is unknown or not valid.
        """
        if not self.positions_are(*ADDED_POSITIONS):
            return None
        return build_added_positions(self.positions, self.max_length, self.model_size, rngs=rngs)

    def build_norm(self) -> nnx.Module:
        """Builds a norm over the model dimension."""
        if self.normalization == "rms":
            return RMSNorm(self.model_size, epsilon=self.norm_epsilon)
        return LayerNorm(self.model_size, epsilon=self.norm_epsilon, use_bias=self.use_bias)


@dataclasses.dataclass(frozen=True)
class SmallEncoderConfig(Config):
    """Base class of model configs with a Transformer encoder; by default the encoder is small.

    For the meaning of the fields, see `EncoderConfig`.
    """

    model_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    feedforward_size: int = 128
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    norm: str = "pre"
    activation: str = "gelu"
    positions: str = "learned"
    mixer: str = "dot_product"
    scan_layers: bool = False

    encoder_type: ClassVar[type[EncoderConfig]] = EncoderConfig

    def __post_init__(self):
        super().__post_init__()
        self.encoder(1)

    def encoder(self, max_length: int, **changes: Any) -> EncoderConfig:
        """Returns the config of the encoder for inputs of at most `max_length` positions.

        Raises:
          ValueError: a field is out of range.
        """
        return self.encoder_type.of(self, **{"max_length": max_length} | changes)


def mixers_with(capability: str) -> list[str]:
    """Returns the names of the mixers that have a capability."""
    return [m.name for m in registry.mechanisms("mixer") if capability in m.capabilities]


class FeedForward(nnx.Module):
    """Feed-forward module with activation f, plain (first equation) or gated (second equation):

    y = f(x W_up + b) W_down + b,   y = (f(x W_gate + b) ⊙ (x W_up + b)) W_down + b

    Each b is a separate bias.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        D, F = config.model_size, config.feedforward_size
        options = {"use_bias": config.use_bias, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.activation = config.activation
        self.up = Projection((D,), (F,), **options)
        self.down = Projection((F,), (D,), **options)
        gated = config.activation == "swiglu"
        self.gate = Projection((D,), (F,), **options) if gated else None

    def __call__(self, x: Array) -> Array:
        function, hidden = _ACTIVATIONS[self.activation], constrain(self.up(x), "B T F")
        hidden = function(hidden) if self.gate is None else function(self.gate(x)) * hidden
        return self.down(hidden)


class EncoderLayer(nnx.Module):
    """Attention and feed-forward module, each with residual connection, norm and dropout.

    pre:  x + f(norm(x)),   post: norm(x + f(x)),      f attention or feed-forward
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.norm, self.dropout_rate = config.norm, config.dropout_rate
        self.attention = config.build_mixer(rngs)
        self.feedforward = FeedForward(config, rngs=rngs)
        self.attention_norm = config.build_norm()
        self.feedforward_norm = config.build_norm()

    def __call__(
        self, x: Array, *, mask: masks.Mask | None, dropout_key: Array | None, return_weights: bool
    ) -> tuple[Array, Array | None]:
        """Computes the output of the layer.

        Args:
          x: [B, T, D].
          mask: mask of the attention; None for no mask.
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights.

        Returns:
          The output, [B, T, D], and the attention weights, [B, N, T, T] or None.
        """
        keys = split_keys(dropout_key, 3)
        attend = with_weights(self.attention, return_weights, mask=mask, dropout_key=keys[0])
        x, weights = self._attend(attend, x, keys[1])
        x, _ = self._residual(self.feedforward_norm, self._feed, x, keys[2])
        return x, weights

    def decode(self, x: Array, cache: Any, lengths: Array | None) -> tuple[Array, Any]:
        """Computes the outputs at the next T positions.

        Args:
          x: [B, T, D].
          cache: cache of the mixer.
          lengths: as for `tasks.common.backbones.transformer.Encoder.decode`.

        Returns:
          The outputs, [B, T, D], and the new cache.
        """
        attend = functools.partial(self.attention.decode, cache=cache, lengths=lengths)
        x, cache = self._residual(self.attention_norm, attend, x, None)
        x, _ = self._residual(self.feedforward_norm, self._feed, x, None)
        return x, cache

    def _attend(
        self, attend: Callable, x: Array, dropout_key: Array | None
    ) -> tuple[Array, Array | None]:
        """Applies the self-attention sublayer.

        Its residual connection is recorded for `attention.attribution`.
        """
        norm = self.attention_norm
        parts = (norm, norm.linear) if self.norm == "post" else ()
        with recording.added(recording.Residual(x, *parts)):
            return self._residual(norm, attend, x, dropout_key)

    def _feed(self, x: Array) -> tuple[Array, None]:
        return self.feedforward(x), None

    def _residual(
        self, norm: nnx.Module, compute: Callable, x: Array, dropout_key: Array | None
    ) -> tuple[Array, Any]:
        """Applies a sublayer with norm, dropout and residual connection.

        Args:
          norm: norm of the sublayer.
          compute: function that takes the input of the sublayer and returns its output and another
            result. The other result is returned unchanged.
          x: [B, T, D].
          dropout_key: None for evaluation.
        """
        y, other = compute(norm(x) if self.norm == "pre" else x)
        x = constrain(x + maybe_dropout(y, self.dropout_rate, dropout_key), "B T D")
        return (norm(x) if self.norm == "post" else x), other


class DecoderLayer(EncoderLayer):
    """Encoder layer with cross-attention before the feed-forward module (Vaswani et al. 2017)."""

    def __init__(self, config: EncoderConfig, memory_size: int, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.cross_attention = MultiHeadAttention(
            config.model_size,
            config.num_heads,
            memory_size=memory_size,
            use_bias=config.use_bias,
            dropout_rate=config.attention_dropout_rate,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        self.cross_attention_norm = config.build_norm()

    def __call__(
        self,
        x: Array,
        memory: Array,
        *,
        mask: masks.Mask | None,
        memory_mask: masks.Mask | None,
        dropout_key: Array | None,
        return_weights: tuple[bool, bool],
    ) -> tuple[Array, Array | None, Array | None]:
        """Computes the output of the layer.

        Args:
          x: [B, T, D].
          memory: [B, S, D_m].
          mask: mask of the self-attention; None for no mask.
          memory_mask: mask of the cross-attention; None for no mask.
          dropout_key: None for evaluation.
          return_weights: whether to return the weights of self-attention and of cross-attention.

        Returns:
          The output, [B, T, D]; the self-attention weights, [B, N, T, T]; and the cross-attention
          weights, [B, N, T, S]. Weights are None unless requested.
        """
        keys, (asked, cross_asked) = split_keys(dropout_key, 5), return_weights
        attend = with_weights(self.attention, asked, mask=mask, dropout_key=keys[0])
        x, weights = self._attend(attend, x, keys[1])
        options = {"memory": memory, "mask": memory_mask, "dropout_key": keys[2]}
        attend = with_weights(self.cross_attention, cross_asked, **options)
        x, cross = self._residual(self.cross_attention_norm, attend, x, keys[3])
        x, _ = self._residual(self.feedforward_norm, self._feed, x, keys[4])
        return x, weights, cross

    def decode(
        self,
        x: Array,
        cache: Any,
        lengths: Array | None,
        memory: tuple[Array, Array],
        memory_mask: masks.Mask,
    ) -> tuple[Array, Any, Array]:
        """Computes the outputs at the next T positions.

        Args:
          x: [B, T, D].
          cache: cache of the mixer.
          lengths: as for `tasks.common.backbones.transformer.Encoder.decode`.
          memory: keys and values of the memory.
          memory_mask: mask of the cross-attention.

        Returns:
          The outputs, [B, T, D]; the new cache; and the cross-attention weights, [B, N, T, S].
        """
        attend = functools.partial(self.attention.decode, cache=cache, lengths=lengths)
        x, cache = self._residual(self.attention_norm, attend, x, None)
        read = functools.partial(
            self.cross_attention.attend_memory, memory=memory, mask=memory_mask
        )
        x, cross = self._residual(self.cross_attention_norm, read, x, None)
        x, _ = self._residual(self.feedforward_norm, self._feed, x, None)
        return x, cache, cross


def with_weights(module: nnx.Module, return_weights: bool, **options: Any) -> Callable:
    """Returns a function that calls a module with an input x and the given options.

    The function returns the output of the module and its attention weights, which are None unless
    `return_weights` is set.
    """

    def compute(x: Array) -> tuple[Array, Array | None]:
        result = module(x, return_weights=return_weights, **options)
        return result if return_weights else (result, None)

    return compute


def maybe_dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Applies dropout if a key is given; returns x unchanged otherwise."""
    return x if key is None else dropout(x, rate, key)


def split_keys(dropout_key: Array | None, count: int) -> list[Array | None]:
    return [None] * count if dropout_key is None else list(jax.random.split(dropout_key, count))
