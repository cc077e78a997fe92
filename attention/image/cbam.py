"""CBAM: a channel gate, then a spatial gate (Woo et al. 2018).

Dimension letters are defined in `attention.image.maps`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention.image.batch_norm import BatchNorm
from attention.image.channel import excite, weights_of
from attention.image.maps import (
    MapGate,
    convolve,
    expect_map,
    global_average,
    kernel_init,
    maximum,
    reduced,
)
from attention.numerics import accumulator
from attention.projection import Projection

Array = jax.Array


def channel_gate(
    x: Array,
    reduce_kernel: Array,
    expand_kernel: Array,
    reduce_bias: Array | None = None,
    expand_bias: Array | None = None,
) -> Array:
    """Computes the channel gate of CBAM (Woo et al. 2018, equation 2).

        g = σ(MLP(mean_yx x) + MLP(max_yx x)),   one MLP for both

    Args:
      x: [B, Y, X, C].
      reduce_kernel, expand_kernel, reduce_bias, expand_bias: parameters of the MLP, as for
        `attention.image.channel.excite`.

    Returns:
      g, [B, 1, 1, C] in at least float32.

    Raises:
      ValueError: shapes do not fit.
    """
    mlp = reduce_kernel, expand_kernel, reduce_bias, expand_bias
    B, Y, X, C = x.shape
    highest = maximum(x.reshape(B, Y * X, C), axis=1)
    logits = excite(global_average(x), *mlp) + excite(highest, *mlp)
    return jax.nn.sigmoid(logits)[:, None, None]


def spatial_descriptor(x: Array) -> Array:
    """Computes the input of the spatial gate of CBAM (Woo et al. 2018, section 3).

        d_yx = [max_c x_yxc; mean_c x_yxc]

    The maximum comes first, as in the authors' code; the paper's equation 3 and timm put the mean
    first. To load weights for that order, swap the two input channels of the kernel.

    Args:
      x: [B, Y, X, C].

    Returns:
      d, [B, Y, X, 2] in at least float32.

    Raises:
      ValueError: x is not [B, Y, X, C].
    """
    expect_map(x)
    wide = x.astype(accumulator(x))
    return jnp.stack([maximum(x, axis=-1), jnp.mean(wide, axis=-1)], axis=-1)


class ChannelGate(MapGate):
    """The channel gate of CBAM, without the spatial gate (Woo et al. 2018, equation 2).

        y = x · σ(MLP(mean_yx x) + MLP(max_yx x)),   MLP(z) = relu(z W_1 + b_1) W_2 + b_2

    Args:
      channels: C, number of channels.
      reduction: r; the MLP has ⌊C / r⌋ hidden channels, at least one.
      use_bias: whether the MLP has biases.
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: channels or reduction is below 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(channels, **options)
        R = reduced(channels, reduction)
        self.reduce = Projection((channels,), (R,), use_bias=use_bias, rngs=rngs)
        self.expand = Projection((R,), (channels,), use_bias=use_bias, rngs=rngs)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        return channel_gate(x, *weights_of(self.reduce, self.expand))


class SpatialGate(MapGate):
    """The spatial gate of CBAM, without the channel gate (Woo et al. 2018, equation 3).

        y = x · σ(BN(conv([max_c x; mean_c x])))

    The gate is a convolution from two channels to one, without bias or ReLU, followed by a batch
    norm, as in the authors' code.

    Args:
      channels: C, number of channels.
      kernel_size: kernel size of the convolution, odd.
      momentum: weight of the newest batch in the running statistics. The authors use 0.01, with
        which the statistics adapt more slowly (time constant of about 100 steps).
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: kernel_size is even or below 1, or the momentum is out of range.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        momentum: float = 0.1,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(channels, **options)
        if kernel_size < 1 or kernel_size % 2 == 0:
            expected = "an odd number of at least 1"
            raise ValueError(f"kernel_size: got {kernel_size}, expected {expected}")
        self.kernel = kernel_init(rngs, kernel_size, kernel_size, 2, 1)
        self.norm = BatchNorm(1, momentum=momentum)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        logits = convolve(spatial_descriptor(x), self.kernel[...])
        return jax.nn.sigmoid(self.norm(logits, valid=valid, training=training))


class CBAM(MapGate):
    """The convolutional block attention module (Woo et al. 2018, "CBAM", equation 1).

        x' = x · M_c(x),   y = x' · M_s(x')

    M_c is the gate of `ChannelGate`, M_s that of `SpatialGate`. The weights are M_c · M_s,
    [B, Y, X, C].

    Args:
      channels: C, number of channels.
      reduction, use_bias: as for `ChannelGate`.
      kernel_size, momentum: as for `SpatialGate`.
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: as for `ChannelGate` and `SpatialGate`.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        use_bias: bool = True,
        kernel_size: int = 7,
        momentum: float = 0.1,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(channels, **options)
        options["rngs"] = rngs
        self.channel = ChannelGate(channels, reduction=reduction, use_bias=use_bias, **options)
        self.spatial = SpatialGate(channels, kernel_size=kernel_size, momentum=momentum, **options)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        options = {"valid": valid, "training": training}
        channel = self.channel.gate(x, **options)
        return channel * self.spatial.gate((x * channel).astype(x.dtype), **options)
