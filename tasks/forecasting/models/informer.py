"""Informer: ProbSparse attention, and an encoder that halves the sequence length between layers.

Zhou et al. 2021, "Informer: Beyond Efficient Transformer for Long Sequence Time-Series
Forecasting".

In shapes, B is the number of windows, T the number of times, D the model size, N the number of
heads, F the horizon, and S the number of times after the encoder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks
from attention.image.batch_norm import BatchNorm
from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder, EncoderConfig, layer_key
from tasks.forecasting.models.base import Mode
from tasks.forecasting.models.transformer import Transformer, TransformerConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class InformerConfig(TransformerConfig):
    """Config of Informer; see `TransformerConfig`.

    Embeddings are normalized, as in Hugging Face's `transformers`.

    Attributes:
      distil: whether the sequence length is halved between encoder layers.
    """

    name: str = "informer"
    num_heads: int = 4
    positions: str = "sinusoidal(interleaved=False)"
    mixer: str = "prob_sparse"
    distil: bool = True

    def __post_init__(self):
        super().__post_init__()
        expected = (
            "False if distil is True, because distilling shortens the sequence between layers"
        )
        self.expect("scan_layers", not (self.scan_layers and self.distil), expected)

    def encoder(self, max_length: int, **changes: Any) -> EncoderConfig:
        """Returns the config of an encoder or decoder with normalized input."""
        return super().encoder(max_length, **{"input_norm": True} | changes)


class Distil(nnx.Module):
    """Distilling: convolution and max-pooling that halve the length (Zhou et al. 2021, equation 5).

        y = maxpool(ELU(norm(x_(t-1) W_1 + x_t W_2 + x_(t+1) W_3 + b)))

    with circular padding, batch norm, and pooling of size 3 and stride 2. x is set to 0 at missing
    times.

    Parameters: convolution/kernel [3, D, D] and bias [D], and the parameters of the norm.

    Args:
      model_size: D, size of the inputs and outputs.
    """

    def __init__(self, model_size: int, *, rngs: nnx.Rngs):
        self.convolution = Projection((3, model_size), (model_size,), rngs=rngs)
        self.norm = BatchNorm(model_size)

    def __call__(
        self, x: Array, present: Array, *, valid: Array | None, training: bool
    ) -> tuple[Array, Array]:
        """Halves the length of sequences.

        Args:
          x: sequences, [B, T, D].
          present: bool [B, T], False at missing times.
          valid: bool [B], windows to include in batch statistics; all if None.
          training: whether the norm uses and updates batch statistics.

        Returns:
          y [B, ⌈T / 2⌉, D], and its mask, bool [B, ⌈T / 2⌉].
        """
        x = jnp.where(present[..., None], x, 0)
        near = jnp.stack([jnp.roll(x, 1, axis=1), x, jnp.roll(x, -1, axis=1)], axis=2)
        counted = jnp.any(present, axis=1)
        counted = counted if valid is None else counted & valid
        y = jax.nn.elu(self.norm(self.convolution(near), valid=counted, training=training))
        # Missing times are never the maximum, because -1 is below all values of ELU.
        y = _max_pool(jnp.where(present[..., None], y, -1.0), -1.0)
        present = _max_pool(present, False)
        return jnp.where(present[..., None], y, 0), present


def _max_pool(x: Array, least: float | bool) -> Array:
    """Max-pools with size 3 and stride 2: [B, T, ...] -> [B, ⌈T / 2⌉, ...]."""
    T, sides = x.shape[1], ((0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2))
    wide = jnp.pad(x, sides, constant_values=least)
    left, middle, right = (wide[:, start : start + T : 2] for start in range(3))
    return jnp.maximum(jnp.maximum(left, middle), right)


class DistillingEncoder(Encoder):
    """Encoder with an optional `Distil` between its layers."""

    def __init__(self, config: EncoderConfig, *, distil: bool, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        between = range(config.num_layers - 1) if distil else ()
        self.distil = nnx.List([Distil(config.model_size, rngs=rngs) for _ in between])

    def __call__(
        self,
        x: Array,
        present: Array,
        *,
        valid: Array | None = None,
        training: bool,
        dropout_key: Array | None,
    ) -> tuple[Array, Array]:
        """Encodes sequences of T times to S times. Without distilling, S = T.

        Args:
          x: sequences, [B, T, D].
          present: bool [B, T], False at missing times.
          valid: bool [B], windows to include in batch statistics; all if None.
          training: whether normalization uses and updates batch statistics.
          dropout_key: random key of dropout; None for evaluation.

        Returns:
          Outputs [B, S, D], and their mask, bool [B, S].
        """
        if not self.distil:
            x = super().__call__(x, valid=present, dropout_key=dropout_key)
            return jnp.where(present[..., None], x, 0), present
        x = self._input(x, None, dropout_key)
        for number, layer in enumerate(self.layers):
            mask, key = masks.valid(key=present), layer_key(dropout_key, number)
            x, _ = layer(x, mask=mask, dropout_key=key, return_weights=False)
            if number < len(self.distil):
                x, present = self.distil[number](x, present, valid=valid, training=training)
        return jnp.where(present[..., None], self._output(x), 0), present


class Informer(Transformer):
    """`Transformer` with a `DistillingEncoder`.

    The self-attention of the decoder is dot-product attention, because the selection of queries in
    ProbSparse attention depends on later times.

    Attention weights: "decoder" [B, layers, N, F, S], from the F horizon steps to the S times that
    remain of the look-back after distilling.
    """

    def _encoder(self, config: InformerConfig, rngs: nnx.Rngs) -> nnx.Module:
        length = self.sizes.lookback
        return DistillingEncoder(config.encoder(length), distil=config.distil, rngs=rngs)

    def _memory(self, x: Array, present: Array, mode: Mode) -> tuple[Array, Array, Array | None]:
        options = {"training": mode.training, "dropout_key": mode.dropout_key}
        memory, present = self.encoder(x, present, valid=mode.valid, **options)
        return memory, present, None
