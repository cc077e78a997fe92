"""Channel gates from the mean of a map: squeeze-and-excitation, and ECA.

R channels of a bottleneck; the other dimension letters are defined in `attention.image.maps`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.image.maps import MapGate, expect_positive, global_average, reduced
from attention.projection import Projection

Array = jax.Array


def excite(
    pooled: Array,
    reduce_kernel: Array,
    expand_kernel: Array,
    reduce_bias: Array | None = None,
    expand_bias: Array | None = None,
) -> Array:
    """Computes a logit for each channel from the channel means (Hu et al. 2018, equation 3).

        s = relu(z W_1 + b_1) W_2 + b_2

    Args:
      pooled: z, [B, C].
      reduce_kernel: W_1, [C, R].
      expand_kernel: W_2, [R, C].
      reduce_bias, expand_bias: b_1 [R] and b_2 [C]; 0 if None.

    Returns:
      s, [B, C].

    Raises:
      ValueError: shapes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("pooled", pooled, "B C", sizes)
    shapes.expect("reduce_kernel", reduce_kernel, "C R", sizes)
    shapes.expect("expand_kernel", expand_kernel, "R C", sizes)
    hidden = pooled @ reduce_kernel
    hidden = jax.nn.relu(hidden if reduce_bias is None else hidden + reduce_bias)
    logits = hidden @ expand_kernel
    return logits if expand_bias is None else logits + expand_bias


def squeeze_excite(
    x: Array,
    reduce_kernel: Array,
    expand_kernel: Array,
    reduce_bias: Array | None = None,
    expand_bias: Array | None = None,
) -> Array:
    """Computes the gate of squeeze-and-excitation (Hu et al. 2018, equations 2 to 4).

        g = σ(relu(z W_1 + b_1) W_2 + b_2),   z_c = Σ_yx x_yxc / (Y X)

    Args:
      x: [B, Y, X, C].
      reduce_kernel, expand_kernel, reduce_bias, expand_bias: as for `excite`.

    Returns:
      g, [B, 1, 1, C] in at least float32; multiplies the map.

    Raises:
      ValueError: shapes do not fit.
    """
    logits = excite(global_average(x), reduce_kernel, expand_kernel, reduce_bias, expand_bias)
    return jax.nn.sigmoid(logits)[:, None, None]


def neighboring_channels(x: Array, kernel: Array) -> Array:
    """Computes the gate of ECA from neighboring channels (Wang et al. 2020, equation 6).

        g_c = σ(Σ_j k_j z_(c + j - ⌊K/2⌋)),   z_c = Σ_yx x_yxc / (Y X), 0 beyond the ends

    Args:
      x: [B, Y, X, C].
      kernel: k, [K], K odd.

    Returns:
      g, [B, 1, 1, C] in at least float32; multiplies the map.

    Raises:
      ValueError: shapes do not fit, or K is even.
    """
    shapes.expect("kernel", kernel, "K", {})
    pooled, K = global_average(x), kernel.shape[0]
    if K % 2 == 0:
        raise ValueError(f"kernel: got shape [{K}], expected an odd size")
    C = pooled.shape[1]
    padded = jnp.pad(pooled, ((0, 0), (K // 2, K // 2)))
    near = jnp.stack([padded[:, j : j + C] for j in range(K)], axis=-1)
    return jax.nn.sigmoid(near @ kernel)[:, None, None]


def adaptive_kernel_size(channels: int, gamma: float = 2.0, offset: float = 1.0) -> int:
    """Computes the kernel size of ECA for a number of channels (Wang et al. 2020, equation 12).

        K = |(log₂ C + b) / γ|_odd

    As in the authors' code, the number is truncated to an integer, and 1 is added to an even
    integer.

    Args:
      channels: C, number of channels.
      gamma, offset: γ and b.

    Returns:
      K, odd.

    Raises:
      ValueError: channels is below 1.
    """
    expect_positive(channels=channels)
    size = int(abs((math.log2(channels) + offset) / gamma))
    return size if size % 2 else size + 1


class SqueezeExcite(MapGate):
    """Squeeze-and-excitation (Hu et al. 2018): a channel gate computed by a bottleneck.

        y = x · σ(relu(z W_1 + b_1) W_2 + b_2),   z = mean_yx x

    Args:
      channels: C, number of channels.
      reduction: r; the bottleneck has ⌊C / r⌋ channels, at least one.
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: a number is below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 16, rngs: nnx.Rngs, **options: Any):
        super().__init__(channels, **options)
        R = reduced(channels, reduction)
        self.reduce = Projection((channels,), (R,), rngs=rngs)
        self.expand = Projection((R,), (channels,), rngs=rngs)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        return squeeze_excite(x, *weights_of(self.reduce, self.expand))


class EfficientChannel(MapGate):
    """ECA (Wang et al. 2020): a channel gate computed by a convolution along the channels.

        y = x · σ(conv(z)),   z = mean_yx x

    Args:
      channels: C, number of channels.
      kernel_size: K, odd; `adaptive_kernel_size(C)` if None.
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: kernel_size is even or below 1.
    """

    def __init__(
        self, channels: int, *, kernel_size: int | None = None, rngs: nnx.Rngs, **options: Any
    ):
        super().__init__(channels, **options)
        K = adaptive_kernel_size(channels) if kernel_size is None else kernel_size
        if K < 1 or K % 2 == 0:
            raise ValueError(f"kernel_size: got {K}, expected an odd number of at least 1")
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (K,), minval=-1) * K**-0.5)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        return neighboring_channels(x, self.kernel[...])


def weights_of(
    reduce: Projection, expand: Projection
) -> tuple[Array, Array, Array | None, Array | None]:
    """Returns the parameters of a bottleneck in the order of the arguments of `excite`."""
    first, second = (None if p.bias is None else p.bias[...] for p in (reduce, expand))
    return reduce.kernel[...], expand.kernel[...], first, second
