"""Gated DeltaNet: the gated delta rule as a sequence mixer, with a short convolution before it.

Yang et al. 2025, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (ICLR). Sizes and
parameters are those of Qwen3-Next. The rule itself is in `delta_rule.py`. W taps of the
convolution, C channels; the other dimension letters are defined in `delta_rule.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import masks, shapes
from attention.activations import silu
from attention.dropout import dropout
from attention.masks import MaskLike
from attention.normalization import RMSNorm
from attention.numerics import accumulator
from attention.sequence.base import RecurrentMixer
from attention.sequence.delta_rule import gated_delta_rule_chunked, gated_delta_rule_weights
from attention.sequence.linear import expect_chunk_size

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DeltaState:
    """Recurrent state of `GatedDeltaNet`, a frozen pytree.

    Attributes:
      conv_state: the last W - 1 inputs of the convolution, [B, W - 1, C].
      memory: S, [B, N, H, V].
    """

    conv_state: Array
    memory: Array


jax.tree_util.register_dataclass(DeltaState, data_fields=["conv_state", "memory"], meta_fields=[])


def causal_depthwise_convolution(
    x: Array, filters: Array, *, valid: Array | None = None, conv_state: Array | None = None
) -> tuple[Array, Array]:
    """Computes a causal convolution of each channel (Yang et al. 2025, section 3.4).

        y_t = Σ_{j < W} f_j x_{t-j}

    x_{t-j} is the input at the j-th real position before t; positions that are not real are
    skipped. Inputs before the first real position come from `conv_state`.

    Args:
      x: [B, T, C].
      filters: f, [W, C]; f_0 is the factor of position t itself.
      valid: bool [B, T], True = a real position; all if None.
      conv_state: the last W - 1 real inputs before x, [B, W - 1, C]; 0 if None.

    Returns:
      y, [B, T, C], in at least float32; and the new conv_state, after x. At a position t that is
      not real, y is computed from x_t and the real positions before t.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = shapes.expect_arrays({"x": (x, "B T C")})
    shapes.expect("filters", filters, "W C", sizes)
    B, T, C = x.shape
    before = len(filters) - 1
    wide = jnp.promote_types(accumulator(x), filters.dtype)
    x, filters = x.astype(wide), filters.astype(wide)
    conv_state = jnp.zeros((B, before, C), wide) if conv_state is None else conv_state.astype(wide)
    shapes.expect("conv_state", conv_state, "B W C", {"B": B, "W": before, "C": C})
    real = x
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="a real position")
        shapes.expect("valid", valid, "B T", sizes)
        # Real positions are moved to the front, in order; the others are never read.
        order = jnp.argsort(~valid, axis=1, stable=True)
        real = jnp.take_along_axis(x, order[..., None], axis=1)
    history = jnp.concatenate([conv_state, real], axis=1)
    # past[r] is the sum over past inputs for a position with r real positions before it.
    past = jnp.zeros((B, T, C), wide)
    for j in range(1, before + 1):
        past = past + filters[j] * history[:, before - j : before - j + T]
    if valid is None:
        return filters[0] * x + past, history[:, T:]
    count = jnp.cumsum(valid, axis=1)
    past = jnp.take_along_axis(past, (count - valid)[..., None], axis=1)
    last = jnp.sum(valid, axis=1, keepdims=True) + jnp.arange(before)
    return filters[0] * x + past, jnp.take_along_axis(history, last[..., None], axis=1)


def l2_normalize(x: Array, *, epsilon: float = 1e-6) -> Array:
    """Scales vectors to length 1 (Yang et al. 2024, section 3.3).

        y = x / sqrt(Σ x² + ε)

    Args:
      x: [..., H].
      epsilon: ε, above 0; vectors of zeros stay 0, with finite gradients.

    Returns:
      [..., H] in x's dtype.

    Raises:
      ValueError: x does not hold floating-point numbers.
    """
    shapes.expect_floating("x", x)
    wide = x.astype(accumulator(x))
    size = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(size + epsilon)).astype(x.dtype)


class _Inputs(NamedTuple):
    """Arguments of the delta rule, in the order of its signature."""

    query: Array
    key: Array
    value: Array
    log_decay: Array
    beta: Array


class GatedDeltaNet(RecurrentMixer):
    """Gated DeltaNet (Yang et al. 2025). It is causal even without a causal mask.

        q, k, v = silu(conv(x W_q)), silu(conv(x W_k)), silu(conv(x W_v))
        g = -exp(a) softplus(x W_a + b_a),   β = sigmoid(x W_β)
        o = gated_delta_rule(q / (|q| sqrt(H)), k / |k|, v, g, β)
        y = (rms_norm(o) silu(x W_z)) W_o

    Masked keys are removed from the sequence: the convolution skips them, and the state is neither
    updated nor decayed at their positions. Queries at these positions still read the state. Masked
    queries give 0, but their positions still update the state as keys. The returned weights map the
    values v to the outputs o, before gate and norm.

    Parameters: query/kernel and key/kernel [D, K, H], value/kernel and gate/kernel [D, N, V],
      beta/kernel and decay/kernel [D, N], out/kernel [N, V, D] and their biases (decay/bias is b_a
      above and exists even without `use_bias`); log_rate [N], a above; query_filter and key_filter
      [W, K, H], value_filter [W, N, V]; norm/scale [V].

    Args:
      model_size: D of x and of the result.
      num_heads: N, number of value heads.
      key_heads: K, number of query and key heads; divides N. N if None.
      key_head_size: H, size of a query or key head; D / N if None.
      value_head_size: V, size of a value head; D / N if None.
      conv_size: W, number of taps of the convolution; with 1 there is no convolution over time.
      chunk_size: positions in a chunk.
      epsilon: epsilon of the norm.
      options: those of `SequenceMixer`. Dropout is applied to the input of the output projection,
        because the weights are never computed. Everything except the projections is computed in at
        least float32. Qwen3-Next has use_bias=False.

    Raises:
      ValueError: a size is below 1 or does not divide another, or epsilon is not positive.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        key_heads: int | None = None,
        key_head_size: int | None = None,
        value_head_size: int | None = None,
        conv_size: int = 4,
        chunk_size: int = 64,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        V = _head_size("value_head_size", model_size, num_heads, value_head_size)
        H = _head_size("key_head_size", model_size, num_heads, key_head_size)
        K = shapes.key_heads("key_heads", num_heads, key_heads)
        shapes.expect_positive(conv_size=conv_size)
        if not epsilon > 0:
            raise ValueError(f"epsilon: got {epsilon}, expected a number above 0")
        expect_chunk_size(chunk_size)
        super().__init__(model_size, **options)
        self.sizes = {"K": K, "H": H, "N": num_heads, "V": V}
        self.conv_size, self.chunk_size = conv_size, chunk_size
        projection = self._projection(rngs)
        self.query = projection((model_size,), (K, H))
        self.key = projection((model_size,), (K, H))
        self.value = projection((model_size,), (num_heads, V))
        self.gate = projection((model_size,), (num_heads, V))
        self.beta = projection((model_size,), (num_heads,))
        self.decay = projection((model_size,), (num_heads,), use_bias=True)
        self.out = projection((num_heads, V), (model_size,))
        self.norm = RMSNorm(V, epsilon=epsilon)
        self.query_filter = nnx.Param(_filter(rngs.params(), conv_size, K, H))
        self.key_filter = nnx.Param(_filter(rngs.params(), conv_size, K, H))
        self.value_filter = nnx.Param(_filter(rngs.params(), conv_size, num_heads, V))
        parameters = _decay_parameters(rngs.params(), num_heads)
        self.log_rate, self.decay.bias = map(nnx.Param, parameters)

    def _mix(
        self, x: Array, mask: MaskLike | None, dropout_rate: float, dropout_key: Array | None
    ) -> tuple[Array, Callable[[], Array]]:
        shapes.expect_known_length("x", x)
        B, T = x.shape[:2]
        padding = masks.padding(mask, B, T, T, of="gated_delta_net")
        inputs, _ = self._inputs(x, valid=padding.key)
        heads, _ = gated_delta_rule_chunked(*inputs, chunk_size=self.chunk_size)
        if padding.query is not None:
            heads = jnp.where(padding.query[:, :, None, None], heads, 0)
        weights = functools.partial(self._weights, inputs, padding.query)
        return dropout(self._gated(heads, x), dropout_rate, dropout_key), weights

    def _empty_state(self, batch_size: int, dtype: jnp.dtype) -> DeltaState:
        K, H, N, V = self.sizes.values()
        conv_state = jnp.zeros((batch_size, self.conv_size - 1, 2 * K * H + N * V), dtype)
        return DeltaState(conv_state, jnp.zeros((batch_size, N, H, V), dtype))

    def _decode(self, x: Array, state: DeltaState, valid: Array | None) -> tuple[Array, DeltaState]:
        inputs, conv_state = self._inputs(x, valid=valid, conv_state=state.conv_state)
        heads, memory = gated_delta_rule_chunked(*inputs, state.memory, chunk_size=self.chunk_size)
        return self._gated(heads, x), DeltaState(conv_state, memory)

    def _inputs(
        self, x: Array, *, valid: Array | None, conv_state: Array | None = None
    ) -> tuple[_Inputs, Array]:
        """Computes the arguments of the delta rule from x, and the new state of the convolution."""
        B, T = x.shape[:2]
        projected = (self.query(x), self.key(x), self.value(x))
        filters = (self.query_filter[...], self.key_filter[...], self.value_filter[...])
        mixed, conv_state = causal_depthwise_convolution(
            jnp.concatenate([y.reshape(B, T, math.prod(y.shape[2:])) for y in projected], axis=-1),
            jnp.concatenate([f.reshape(self.conv_size, -1) for f in filters], axis=-1),
            valid=valid,
            conv_state=conv_state,
        )
        ends = np.cumsum([math.prod(y.shape[2:]) for y in projected])[:-1]
        query, key, value = (
            part.reshape(y.shape)
            for part, y in zip(jnp.split(silu(mixed), ends, axis=-1), projected, strict=True)
        )
        query, key = l2_normalize(query) / self.sizes["H"] ** 0.5, l2_normalize(key)
        beta = jax.nn.sigmoid(self.beta(x).astype(mixed.dtype))
        steps = jax.nn.softplus(self.decay(x).astype(mixed.dtype))
        log_decay = -jnp.exp(self.log_rate[...]) * steps
        if valid is not None:
            key, value = (jnp.where(valid[:, :, None, None], y, 0) for y in (key, value))
            log_decay, beta = (jnp.where(valid[:, :, None], y, 0) for y in (log_decay, beta))
        return _Inputs(query, key, value, log_decay, beta), conv_state

    def _gated(self, heads: Array, x: Array) -> Array:
        return self.norm(heads) * silu(self.gate(x).astype(heads.dtype))

    def _weights(self, inputs: _Inputs, query_valid: Array | None) -> Array:
        query, key, _, log_decay, beta = inputs
        weights = gated_delta_rule_weights(query, key, log_decay, beta, chunk_size=self.chunk_size)
        if query_valid is None:
            return weights
        return jnp.where(query_valid[:, None, :, None], weights, 0)


def _head_size(argument: str, model_size: int, num_heads: int, given: int | None) -> int:
    if num_heads < 1 or (given is None and model_size % num_heads):
        expected = f"a positive divisor of model_size={model_size} (or give {argument})"
        raise ValueError(f"num_heads: got {num_heads}, expected {expected}")
    shapes.expect_positive(**{argument: given})
    return model_size // num_heads if given is None else given


def _filter(key: Array, *shape: int) -> Array:
    limit = shape[0] ** -0.5
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def _decay_parameters(key: Array, num_heads: int) -> tuple[Array, Array]:
    """Initializes a and b_a of the decay as in Gu & Dao 2024 ("Mamba-2").

    exp(a) is uniform in [1, 16] and softplus(b_a) log-uniform in [0.001, 0.1].
    """
    rate_key, step_key = jax.random.split(key)
    rates = jax.random.uniform(rate_key, (num_heads,), minval=1.0, maxval=16.0)
    logs = jax.random.uniform(step_key, (num_heads,), minval=math.log(0.001), maxval=math.log(0.1))
    steps = jnp.exp(logs)
    return jnp.log(rates), steps + jnp.log(-jnp.expm1(-steps))
