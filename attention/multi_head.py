"""Multi-head attention: a module with the projections around `attend`.

Vaswani et al. 2017, "Attention Is All You Need". Options: grouped-query attention (Ainslie et
al. 2023), positions (`attention.positions`), QK-norm (Henry et al. 2020, Dehghani et al. 2023),
gated output (Qiu et al. 2025), sinks (Xiao et al. 2024, as learned logits in gpt-oss 2025).

Dimension letters are defined in `attention.shapes`; D_m is the size of the vectors of a memory.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.dropout import dropout_options
from attention.normalization import RMSNorm
from attention.positions import build_positions
from attention.sequence.base import CachedAttention
from attention.sharding import constrain

Array = jax.Array


class MultiHeadAttention(CachedAttention):
    """Self-attention, cross-attention and grouped-query attention.

        head_n = attend(x W_q,n, m W_k,n', m W_v,n'),   y = concat_n(head_n) W_o

    where m is x, or the given memory, and n' = n // (num_heads / key_value_heads). With a gate,
    head_n is multiplied by sigmoid(x W_g,n) before W_o.

    Parameters: query/kernel [D, N, H], key/kernel [D_m, K, H], value/kernel [D_m, K, V], out/kernel
      [N, V, D], biases [N, H], [K, H], [K, V], [D]; with the options gate/kernel [D, N, V or 1],
      query_norm/scale and key_norm/scale [H], sinks [N] and the parameters of the positions.

    Args:
      model_size: D of x and of the result.
      num_heads: N, number of heads.
      key_value_heads: K, number of key/value heads; divides N. N if None; 1 is multi-query
        attention (Shazeer 2019).
      head_size: H, size of a head; D / N if None.
      value_head_size: V, size of a value head; H if None.
      memory_size: D_m of the memory; D if None.
      use_bias: whether the projections have biases.
      positions: "none", or a spec of `attention.positions.POSITIONS`: "rope", "alibi", "t5",
        "shaw", "rope(base=500000, fraction=0.25)", ...
      qk_norm: whether queries and keys are divided by their root mean square and scaled by a
        learned vector, before positions.
      gate: "none", "elementwise" (one gate for each feature) or "headwise" (one for each head).
      sinks: whether each head has a learned extra logit without a value, initialized to 0.
      dropout_rate: dropout rate of the attention weights, active if a dropout_key is given.
      scale, logit_cap, implementation: as for `attend`.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: an argument does not fit the others.
    """

    takes_memory = True

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        key_value_heads: int | None = None,
        head_size: int | None = None,
        value_head_size: int | None = None,
        memory_size: int | None = None,
        use_bias: bool = True,
        positions: str = "none",
        qk_norm: bool = False,
        gate: str = "none",
        sinks: bool = False,
        dropout_rate: float = 0.0,
        scale: float | None = None,
        logit_cap: float | None = None,
        implementation: str = "auto",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(model_size, use_bias=use_bias, dropout_rate=dropout_rate, dtype=dtype)
        H = shapes.head_size(model_size, num_heads, head_size)
        K = shapes.key_heads("key_value_heads", num_heads, key_value_heads)
        if gate not in ("none", "elementwise", "headwise"):
            expected = "'none', 'elementwise' or 'headwise'"
            raise ValueError(f"gate: got {gate!r}, expected {expected}")
        V = H if value_head_size is None else value_head_size
        D_m = model_size if memory_size is None else memory_size
        self.memory_size, self.cache_sizes = D_m, (K, H, V)
        self.scale = H**-0.5 if scale is None else scale
        self.logit_cap, self.implementation = logit_cap, implementation
        projection = self._projection(rngs)
        self.query = projection((model_size,), (num_heads, H))
        self.key = projection((D_m,), (K, H))
        self.value = projection((D_m,), (K, V))
        self.out = projection((num_heads, V), (model_size,))
        self.positions = build_positions(positions, num_heads, H, rngs=rngs)
        self.query_norm = RMSNorm(H) if qk_norm else None
        self.key_norm = RMSNorm(H) if qk_norm else None
        gates = {"elementwise": V, "headwise": 1}
        self.gate = projection((model_size,), (num_heads, gates[gate])) if gate in gates else None
        self.sinks = nnx.Param(jnp.zeros((num_heads,))) if sinks else None

    def __call__(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        mask: masks.Mask | Array | None = None,
        bias: Array | None = None,
        query_positions: Array | None = None,
        key_positions: Array | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Attends from x to itself, or to the memory.

        Args:
          x: [B, T, D].
          memory: [B, S, D_m]; x if None.
          mask, bias: as for `attend`.
          query_positions: int [T] or [B, T]; not allowed if the module has positions "none".
            Without a memory, query and key positions default to 0, 1, ...; with a memory they are
            required.
          key_positions: the same for the keys, int [S] or [B, S].
          dropout_key: random key for dropout; None for evaluation.
          return_weights: whether to return the weights before dropout.

        Returns:
          y, [B, T, D]; with `return_weights`, also the weights, [B, N, T, S].

        Raises:
          ValueError: shapes do not fit, or positions are missing, or positions are given although
            the module has positions "none".
        """
        source = self._source(x, memory)
        if self.positions is not None:
            query_positions, key_positions = _both_positions(
                x, memory, query_positions, key_positions
            )
        elif query_positions is not None or key_positions is not None:
            raise ValueError(
                "query_positions: got positions, expected None because the module was built with "
                "positions='none'"
            )
        query = self._query(x, query_positions)
        key, value = self._key_value(source, key_positions)
        options = {
            "mask": self._combine_masks(mask, self.pattern_mask()),
            "bias": self._bias(query, query_positions, key_positions, bias),
        }
        result = self._attend(x, query, key, value, dropout_key=dropout_key, **options)
        if return_weights:
            return result, self._weights(query, key, **options)
        return result

    def project_memory(
        self, memory: Array, *, key_positions: Array | None = None
    ) -> tuple[Array, Array]:
        """Computes the keys and values of a memory once for many calls of `attend_memory`.

        Args:
          memory: [B, S, D_m].
          key_positions: as for `__call__`.

        Returns:
          The keys, [B, K, S, H], and the values, [B, K, S, V], in the layout of `KeyValueCache`.

        Raises:
          ValueError: shapes do not fit, or positions are missing, or positions are given although
            the module has positions "none".
        """
        shapes.expect("memory", memory, "B S M", {"M": self.memory_size})
        self._expect_positions(key_positions=key_positions)
        key, value = self._key_value(memory, key_positions)
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    def attend_memory(
        self,
        x: Array,
        memory: tuple[Array, Array],
        *,
        mask: masks.Mask | Array | None = None,
        query_positions: Array | None = None,
        key_positions: Array | None = None,
    ) -> tuple[Array, Array]:
        """Computes `self(x, memory)` from keys and values of the memory; used for decoding.

        Args:
          x: [B, T, D].
          memory: keys and values returned by `project_memory`.
          mask: as for `attend`.
          query_positions, key_positions: as for `__call__`.

        Returns:
          [B, T, D] and the weights [B, N, T, S].

        Raises:
          ValueError: shapes do not fit, or positions are missing, or positions are given although
            the module has positions "none".
        """
        shapes.expect("x", x, "B T D", {"D": self.model_size})
        self._expect_positions(query_positions=query_positions, key_positions=key_positions)
        query = self._query(x, query_positions)
        key, value = (jnp.swapaxes(y, 1, 2).astype(query.dtype) for y in memory)
        options = {
            "mask": self._combine_masks(mask, self.pattern_mask()),
            "bias": self._bias(query, query_positions, key_positions),
        }
        result = self._attend(x, query, key, value, **options)
        return result, self._weights(query, key, **options)

    def _expect_positions(self, **positions: Array | None) -> None:
        for name, given in positions.items():
            if (given is None) != (self.positions is None):
                got, expected = "None", "query and key positions because there is a memory"
                if given is not None:
                    got = "positions"
                    expected = "None because the module was built with positions='none'"
                raise ValueError(f"{name}: got {got}, expected {expected}")

    def _query(self, x: Array, positions: Array | None) -> Array:
        query = constrain(self.query(x), "B T N H")
        query = query if self.query_norm is None else self.query_norm(query)
        if self.positions is None:
            return query
        return self.positions.rotate(query, cast(Array, positions))

    def _key_value(self, x: Array, positions: Array | None) -> tuple[Array, Array]:
        key = constrain(self.key(x), "B S K H")
        key = key if self.key_norm is None else self.key_norm(key)
        key = key if self.positions is None else self.positions.rotate(key, cast(Array, positions))
        return key, constrain(self.value(x), "B S K H")

    def _bias(
        self,
        query: Array,
        query_positions: Array | None,
        key_positions: Array | None,
        bias: Array | None = None,
    ) -> Array | None:
        """Returns the sum of the caller's bias and the bias of the positions."""
        if self.positions is None:
            return bias
        both = cast(Array, query_positions), cast(Array, key_positions)
        own = self.positions.bias(query, *both, scale=self.scale)
        return bias if own is None else own if bias is None else own + bias

    def _weights(
        self,
        query: Array,
        key: Array,
        *,
        mask: masks.Mask | Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        return attention_weights(query, key, mask=mask, bias=bias, **self._logit_options())

    def _logit_options(self) -> dict[str, Any]:
        sinks = None if self.sinks is None else self.sinks[...]
        return {"scale": self.scale, "logit_cap": self.logit_cap, "sinks": sinks}

    def _attend(
        self,
        x: Array,
        query: Array,
        key: Array,
        value: Array,
        *,
        mask: masks.Mask | Array | None,
        bias: Array | None,
        dropout_key: Array | None = None,
    ) -> Array:
        """Returns the result [B, T, D] for query, key and value."""
        # With a gate, no projection is recorded: a value's contribution also depends on the query.
        with recording.projected(self._recorded_output()):
            heads = attend(
                query,
                key,
                value,
                mask=mask,
                bias=bias,
                implementation=self.implementation,
                **self._logit_options(),
                **dropout_options(self.dropout_rate, dropout_key),
            )
        return self._output(x, heads)

    def _output(self, x: Array, heads: Array) -> Array:
        """Returns the result [B, T, D] for heads [B, T, N, V]."""
        if self.gate is not None:
            heads = heads * jax.nn.sigmoid(self.gate(x))
        return self.out(heads)

    def _recorded_output(self) -> recording.Output | None:
        if self.gate is not None:
            return None
        bias = None if self.out.bias is None else self.out.bias[...]
        return recording.Output(self._project, bias)

    def _project(self, values: Array) -> Array:
        """Returns v_n W_o,n of each head, [B, S, N, D], for values v, [B, S, N, V]."""
        kernel = self.out.kernel[...].astype(values.dtype)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("BSNV,NVD->BSND", values, kernel, precision=highest)


def _both_positions(x, memory, query_positions, key_positions) -> tuple[Array, Array]:
    if memory is None:
        default = jnp.arange(x.shape[1])
        query_positions = default if query_positions is None else query_positions
        key_positions = query_positions if key_positions is None else key_positions
    if query_positions is None or key_positions is None:
        name = "query_positions" if query_positions is None else "key_positions"
        raise ValueError(
            f"{name}: got None, expected query and key positions because there is a memory"
        )
    return query_positions, key_positions
