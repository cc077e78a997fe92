"""The Conformer (Gulati et al. 2020, "Conformer: Convolution-augmented Transformer for Speech
Recognition").

In shapes, B is the batch size, T the length, D the model size, W the width of the convolution, and
N the number of heads.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, shapes
from attention.activations import silu
from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.common.backbones.transformer_layers import (
    EncoderConfig,
    EncoderLayer,
    FeedForward,
    maybe_dropout,
    split_keys,
    with_weights,
)

Array = jax.Array


def depthwise(x: Array, kernel: Array, *, causal: bool = False) -> Array:
    """Computes a zero-padded depthwise convolution, y_t = Σ_j k_j ⊙ x_{t+j}.

    Args:
      x: [B, T, D].
      kernel: k, [W, D], W odd.
      causal: whether the offset j runs from 1 - W to 0, instead of from -(W // 2) to W // 2.

    Returns:
      y, [B, T, D].

    Raises:
      ValueError: shapes do not match, or W is even.
    """
    sizes: dict[str, int] = {}
    shapes.expect("x", x, "B T D", sizes)
    shapes.expect("kernel", kernel, "W D", sizes)
    W, T = sizes["W"], sizes["T"]
    if W % 2 == 0:
        raise ValueError(f"kernel: got a width of {W}, expected an odd width")
    before = W - 1 if causal else W // 2
    x = jnp.pad(x, ((0, 0), (before, W - 1 - before), (0, 0)))
    # XLA fuses this sum; on a CPU it is several times faster than a grouped convolution.
    return sum(kernel[j] * x[:, j : j + T] for j in range(W))


class ConvolutionModule(nnx.Module):
    """Convolution module (section 2.2), y = swish(norm(depthwise(GLU(x W_in)))) W_out.

    The norm is that of the config instead of batch norm, so that the result is independent of
    padding and of the other examples.

    Args:
      config: config of the encoder.
      width: W, an odd number.
      causal: whether the convolution is causal.
    """

    def __init__(self, config: EncoderConfig, width: int, causal: bool, *, rngs: nnx.Rngs):
        D, dtype = config.model_size, jnp.dtype(config.dtype)
        self.causal = causal
        self.expand = Projection((D,), (2 * D,), dtype=dtype, rngs=rngs)
        limit = 1 / math.sqrt(width)
        kernel = jax.random.uniform(rngs.params(), (width, D), minval=-limit, maxval=limit)
        self.depthwise = nnx.Param(kernel)
        self.norm = config.build_norm()
        self.down = Projection((D,), (D,), dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, valid: Array | None) -> Array:
        """Computes y.

        Args:
          x: [B, T, D].
          valid: bool [B, T], True = a real position; all if None.

        Returns:
          [B, T, D].
        """
        hidden, gate = jnp.split(self.expand(x), 2, axis=-1)
        hidden = hidden * jax.nn.sigmoid(gate)
        if valid is not None:
            hidden = jnp.where(valid[..., None], hidden, 0)
        kernel = self.depthwise[...].astype(hidden.dtype)
        hidden = depthwise(hidden, kernel, causal=self.causal)
        return self.down(silu(self.norm(hidden)))


class ConformerLayer(EncoderLayer):
    """Attention and convolution between two feed-forward modules of half weight, section 2.4:

    x = x + ½ FF(norm(x)),   x = x + attention(norm(x)),   x = x + convolution(norm(x))
    y = norm(x + ½ FF(norm(x)))
    """

    def __init__(self, config: EncoderConfig, width: int, causal: bool, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.first_feedforward = FeedForward(config, rngs=rngs)
        self.first_norm = config.build_norm()
        self.convolution = ConvolutionModule(config, width, causal, rngs=rngs)
        self.convolution_norm = config.build_norm()
        self.final_norm = config.build_norm()

    def __call__(
        self,
        x: Array,
        *,
        mask: masks.Mask | None,
        dropout_key: Array | None,
        return_weights: bool,
        valid: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Computes the output of the layer.

        Args:
          x: [B, T, D].
          mask: mask of the attention.
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights.
          valid: bool [B, T], True = a real position; all if None. The convolution does not read
            padding.

        Returns:
          The output, [B, T, D], and the attention weights, [B, N, T, T] or None.
        """
        rate, keys = self.dropout_rate, split_keys(dropout_key, 5)
        x = x + 0.5 * maybe_dropout(self.first_feedforward(self.first_norm(x)), rate, keys[0])
        attend = with_weights(self.attention, return_weights, mask=mask, dropout_key=keys[1])
        attended, weights = attend(self.attention_norm(x))
        x = x + maybe_dropout(attended, rate, keys[2])
        x = x + maybe_dropout(self.convolution(self.convolution_norm(x), valid), rate, keys[3])
        x = x + 0.5 * maybe_dropout(self.feedforward(self.feedforward_norm(x)), rate, keys[4])
        return self.final_norm(x), weights


class Conformer(Encoder):
    """Stack of `ConformerLayer` with the call signature of `Encoder`.

    Args:
      config: config of an encoder. Its `norm` must be "pre", because a Conformer normalizes the
        input of each module.
      width: W of the convolutions, odd.
      causal: whether the convolutions are causal.

    Raises:
      ValueError: the norm is not "pre", or the width is even.
    """

    def __init__(self, config: EncoderConfig, width: int, causal: bool, *, rngs: nnx.Rngs):
        if config.norm != "pre":
            raise ValueError(f"norm: got {config.norm!r}, expected 'pre' for a Conformer")
        if width < 1 or width % 2 == 0:
            raise ValueError(f"width: got {width}, expected an odd number")
        self.width, self.causal = width, causal
        super().__init__(config, rngs=rngs)
        self.final_norm = None

    def _layer(self, rngs: nnx.Rngs) -> ConformerLayer:
        return ConformerLayer(self.config, self.width, self.causal, rngs=rngs)

    def _layer_options(
        self, valid: Array | None, lengths: Array | None, T: int
    ) -> dict[str, Array | None]:
        return {"valid": valid if lengths is None else jnp.arange(T) < lengths[:, None]}
