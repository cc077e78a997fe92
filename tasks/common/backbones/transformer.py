"""The Transformer encoder (Vaswani et al. 2017), with the choices made since then by config.

B batch, T length, D model size, N heads, F feed-forward size, L layers.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, registry, shapes
from attention.dropout import dropout
from attention.normalization import LayerNorm
from attention.positions import POSITIONS, LearnedPositions, sinusoidal
from attention.projection import Projection

Array = jax.Array

# (regex on the parameter path, mesh axis of each dimension). Heads and hidden units are split over
# "tensor" (Shoeybi et al. 2019, Megatron-LM: one all-reduce after `out` and one after `down`), the
# model dimension over "fsdp". A path that matches none is held whole by every device. Token
# embeddings are split along D by both: a look-up then needs no communication, and any vocabulary
# size fits.
SHARDING_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(^|/)(query|key|value)(_global)?/kernel$", ("fsdp", "tensor", None)),
    (r"(^|/)(query|key|value)(_global)?/bias$", ("tensor", None)),
    (r"(^|/)out/kernel$", ("tensor", None, "fsdp")),
    (r"(^|/)up/kernel$", ("fsdp", "tensor")),
    (r"(^|/)up/bias$", ("tensor",)),
    (r"(^|/)down/kernel$", ("tensor", "fsdp")),
    (r"(^|/)embedding$", (None, ("fsdp", "tensor"))),
)

_ACTIVATIONS = {"gelu": functools.partial(jax.nn.gelu, approximate=False), "relu": jax.nn.relu}
_ADDED_POSITIONS = ("sinusoidal", "learned")
_CHOICES = {
    "norm": ("pre", "post"),
    "activation": tuple(_ACTIVATIONS),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What a Transformer encoder is made of.

    Attributes:
      model_size: D.
      num_layers: L, at least 1.
      num_heads: N, divides D.
      feedforward_size: F.
      dropout_rate: after embeddings, attention and feed-forward.
      attention_dropout_rate: of the attention weights, or of what the mixer has in their place.
      norm: "pre" (Xiong et al. 2020) or "post" (the paper's).
      activation: "gelu" (with the error function) or "relu".
      positions: added to the input: "sinusoidal" or "learned"; inside the mixer, where it can: a
        spec of `attention.positions.POSITIONS` such as "rope", "alibi" or "rope(base=500000)"; or
        "none".
      max_length: longest input; only learned positions and some mixers depend on it, but all hold
        to it.
      mixer: a mixer of `attention.registry`, with options if any: "dot_product",
        "sliding_window(left=8, right=8)", "performer(features=64, kernel=relu)".
      dtype: of the computation; weights are float32.
    """

    model_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    feedforward_size: int = 512
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    norm: str = "pre"
    activation: str = "gelu"
    positions: str = "sinusoidal"
    max_length: int = 512
    mixer: str = "dot_product"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("model_size", "num_layers", "num_heads", "feedforward_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.model_size % self.num_heads:
            expected = f"a divisor of model_size={self.model_size}"
            raise ValueError(f"num_heads: got {self.num_heads}, expected {expected}")
        for name in ("dropout_rate", "attention_dropout_rate"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a rate in [0, 1)")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                got, expected = repr(getattr(self, name)), ", ".join(map(repr, choices))
                raise ValueError(f"{name}: got {got}, expected one of {expected}")
        if self.positions == "sinusoidal" and self.model_size % 2:
            expected = "an even size for 'sinusoidal' positions"
            raise ValueError(f"model_size: got {self.model_size}, expected {expected}")
        # Options of mixer and positions are checked where they are used: one is built and called,
        # but no weight drawn and nothing computed.
        try:
            nnx.eval_shape(
                lambda x: self.build_mixer(nnx.Rngs(0))(x),
                jax.ShapeDtypeStruct((1, 1, self.model_size), self.dtype),
            )
        except ValueError as error:
            field = str(error).partition(":")[0]
            known = field in {f.name for f in dataclasses.fields(EncoderConfig)}
            raise ValueError(str(error) if known else f"mixer: {self.mixer!r}: {error}") from None

    @property
    def line(self) -> registry.Mechanism:
        """The mixer's line in the registry."""
        return registry.find("mixer", self.mixer)

    def build_mixer(self, rngs: nnx.Rngs) -> nnx.Module:
        """The mixer of one layer.

        Raises:
          ValueError: an unknown mixer, position or option, or one that does not fit.
        """
        can, options = self.line.can, {}
        if self.positions not in (*_ADDED_POSITIONS, "none"):
            choices = ["none", *_ADDED_POSITIONS, *POSITIONS]
            registry.parse("positions", self.positions, choices)
            if "positions" not in can:
                able = [m.name for m in registry.mechanisms("mixer") if "positions" in m.can]
                raise ValueError(
                    f"positions: got {self.positions!r}, which mixer {self.line.name!r} cannot do; "
                    f"expected one of {choices[:3]}, or a mixer of {able}"
                )
            options["positions"] = self.positions
        if "max_length" in can:
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


class FeedForward(nnx.Module):
    """y = f(x W_up + b) W_down + b, with f the activation."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        D, F, dtype = config.model_size, config.feedforward_size, jnp.dtype(config.dtype)
        self.activation = config.activation
        self.up = Projection((D,), (F,), dtype=dtype, rngs=rngs)
        self.down = Projection((F,), (D,), dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(_ACTIVATIONS[self.activation](self.up(x)))


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with its residual, norm and dropout.

    pre:  x + f(norm(x)),   post: norm(x + f(x))
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.norm, self.dropout_rate = config.norm, config.dropout_rate
        self.attention = config.build_mixer(rngs)
        self.feedforward = FeedForward(config, rngs=rngs)
        self.attention_norm = LayerNorm(config.model_size)
        self.feedforward_norm = LayerNorm(config.model_size)

    def __call__(
        self,
        x: Array,
        *,
        mask: masks.Mask | None,
        dropout_key: Array | None,
        return_weights: bool,
    ) -> tuple[Array, Array | None]:
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        attended = self.attention_norm(x) if self.norm == "pre" else x
        attended = self.attention(
            attended, mask=mask, dropout_key=keys[0], return_weights=return_weights
        )
        attended, weights = attended if return_weights else (attended, None)
        x = x + _dropped(attended, self.dropout_rate, keys[1])
        if self.norm == "post":
            x = self.attention_norm(x)
        hidden = self.feedforward(self.feedforward_norm(x) if self.norm == "pre" else x)
        x = x + _dropped(hidden, self.dropout_rate, keys[2])
        if self.norm == "post":
            x = self.feedforward_norm(x)
        return x, weights


class Encoder(nnx.Module):
    """A stack of layers over vectors that are embedded already; adds the positions."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.positions = (
            LearnedPositions(config.max_length, config.model_size, rngs=rngs)
            if config.positions == "learned"
            else None
        )
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = LayerNorm(config.model_size) if config.norm == "pre" else None

    def __call__(
        self,
        x: Array,
        *,
        valid: Array | None = None,
        lengths: Array | None = None,
        mask: masks.Mask | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Encodes a padded batch.

        Args:
          x: [B, T, D].
          valid: bool [B, T], True = a real position; or
          lengths: int [B], the number of real positions, which come first. All are real if both
            are None. Padding changes nothing at the real positions.
          mask: joined to that, for instance `masks.causal()`.
          dropout_key: None for evaluation.
          return_weights: also return the attention weights, where the mixer has any.

        Returns:
          [B, T, D], or that and the weights [L, B, N, T, T]. What stands at padding means nothing.

        Raises:
          ValueError: shapes do not fit, T > max_length, or both valid and lengths are given.
          NotImplementedError: the mixer cannot honour the mask, or has no weights to return.
        """
        config = self.config
        sizes = {"D": config.model_size}
        shapes.expect_floating("x", x)
        shapes.expect("x", x, "B T D", sizes)
        if sizes["T"] > config.max_length:
            got = f"shape {shapes.show(x.shape)}, that is length {sizes['T']}"
            raise ValueError(f"x: got {got}, expected at most max_length={config.max_length}")
        mask = _joined(mask, valid, lengths)
        keys = [None] * (1 + config.num_layers)
        if dropout_key is not None:
            keys = [jax.random.fold_in(dropout_key, i) for i in range(len(keys))]
        x = x.astype(config.dtype)
        if self.positions is not None:
            x = x + self.positions(sizes["T"]).astype(x.dtype)
        elif config.positions == "sinusoidal":
            x = x + sinusoidal(jnp.arange(sizes["T"]), config.model_size).astype(x.dtype)
        x = _dropped(x, config.dropout_rate, keys[0])
        all_weights = []
        for layer, key in zip(self.layers, keys[1:], strict=True):
            x, weights = layer(x, mask=mask, dropout_key=key, return_weights=return_weights)
            all_weights.append(weights)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return (x, jnp.stack(all_weights)) if return_weights else x


def _dropped(x: Array, rate: float, key: Array | None) -> Array:
    return x if key is None else dropout(x, rate, key)


def _joined(
    mask: masks.Mask | None, valid: Array | None, lengths: Array | None
) -> masks.Mask | None:
    if valid is not None and lengths is not None:
        raise ValueError("valid: got valid and lengths, expected one of them")
    if valid is None and lengths is None:
        return mask
    padding = masks.valid(key=valid) if lengths is None else masks.lengths(key=lengths)
    return padding if mask is None else mask & padding
