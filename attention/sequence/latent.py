"""Multi-head latent attention: keys and values are computed from one small vector per position.

DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
Model", section 2.1.

C size of the latent, R rotated features; the other dimension letters are defined in
`attention.shapes`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, shapes
from attention.dot_product import attend, attention_weights
from attention.dropout import dropout_options
from attention.normalization import RMSNorm
from attention.numerics import product
from attention.positions import RotaryPositions, build_positions
from attention.sequence.base import CachedAttention

Array = jax.Array


def latent_attention(
    query: Array,
    latent: Array,
    rotary_key: Array,
    key_up: Array,
    value_up: Array,
    *,
    absorbed: bool = False,
    mask: masks.Mask | Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """Computes attention to keys and values that are linear maps of latents (DeepSeek-AI 2024).

        l_tns = (q_tn · [U_n c_s; k_s]) / sqrt(H + R),   o_tn = W_nᵀ Σ_s softmax(l_tn)_s c_s

    with c the latent, k the rotary key shared by all heads, U and W the up-projections (equations 9
    to 19). The expanded form computes keys and values for each head. The absorbed form multiplies
    the query by U and applies W after the sum. So the absorbed form reads only [c; k] of each
    position, like one key head with C + R features.

    Args:
      query: [B, T, N, H + R]: H content features, then R rotated features.
      latent: c, [B, S, C].
      rotary_key: k, [B, S, R], rotated.
      key_up: U, [C, N, H].
      value_up: W, [C, N, V].
      absorbed: whether to compute the absorbed form; the results of both forms are equal.
      mask, dropout_rate, dropout_key, implementation: as for `attend`.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
      NotImplementedError: see `attend`.
    """
    H = _checked(query, latent, rotary_key, key_up, value_up)
    options = {
        "mask": mask,
        "scale": query.shape[-1] ** -0.5,
        "dropout_rate": dropout_rate,
        "dropout_key": dropout_key,
        "implementation": implementation,
    }
    if not absorbed:
        key = expanded_keys(latent, rotary_key, key_up)
        return attend(query, key, product("BSC,CNV->BSNV", latent, value_up), **options)
    content = product("BTNH,CNH->BTNC", query[..., :H], key_up)
    key = jnp.concatenate([latent, rotary_key], axis=-1)[:, :, None]
    mixed = attend(
        jnp.concatenate([content, query[..., H:]], axis=-1), key, latent[:, :, None], **options
    )
    return product("BTNC,CNV->BTNV", mixed, value_up)


def expanded_keys(latent: Array, rotary_key: Array, key_up: Array) -> Array:
    """Computes the keys of each head (DeepSeek-AI 2024, equation 17).

        k_sn = [U_n c_s; k_s]

    Args:
      latent: [B, S, C].
      rotary_key: [B, S, R].
      key_up: [C, N, H].

    Returns:
      [B, S, N, H + R].

    Raises:
      ValueError: dtypes differ.
    """
    shapes.expect_same_dtype(latent=latent, rotary_key=rotary_key, key_up=key_up)
    content = product("BSC,CNH->BSNH", latent, key_up)
    shared = jnp.broadcast_to(rotary_key[:, :, None], (*content.shape[:3], rotary_key.shape[-1]))
    return jnp.concatenate([content, shared], axis=-1)


class LatentAttention(CachedAttention):
    """Multi-head latent attention (MLA) with a decoupled rotary key (DeepSeek-AI 2024).

        c = rmsnorm(x W_c),   k = rotate(x W_k)
        a = rmsnorm(x W_a),   q_n = [a W_n; rotate(a W'_n)]

    Here a is x if query_rank is None. The cache contains c and k, C + R numbers per position for
    all heads together. Decoding uses the absorbed form.

    Parameters: latent/kernel [D, C], rotary_key/kernel [D, R] and their biases; latent_norm/scale
      [C]; with a query_rank, query_latent/kernel [D, A], its bias and query_norm/scale [A];
      query/kernel [D or A, N, H + R], key/kernel [C, N, H] and value/kernel [C, N, V], without
      biases; out/kernel [N, V, D] and its bias [D].

    Args:
      model_size: D of x and of the result.
      num_heads: N, number of heads.
      key_value_rank: C, size of the latent; 4 H if None, as in the paper.
      query_rank: A, the size of the vector a; if None, a is x.
      head_size: H of the part without positions; D / N if None.
      rotary_size: R, number of rotated features, even. If None, H / 2 rounded down to an even
        number, but at least 2.
      value_head_size: V, size of a value head; H if None.
      positions: a rotary spec: "rope", "rope(base=500000, interleaved=True)", ...
      implementation: as for `attend`.
      options: those of `SequenceMixer`. With `use_bias`, the down-projections and the output
        projection have biases. Dropout is applied to the attention weights.

    Raises:
      ValueError: a size is below 1, rotary_size is odd, or positions are not rotary.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        key_value_rank: int | None = None,
        query_rank: int | None = None,
        head_size: int | None = None,
        rotary_size: int | None = None,
        value_head_size: int | None = None,
        positions: str = "rope",
        implementation: str = "auto",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        H = shapes.head_size(model_size, num_heads, head_size)
        C = 4 * H if key_value_rank is None else key_value_rank
        R = max(2, H // 4 * 2) if rotary_size is None else rotary_size
        V = H if value_head_size is None else value_head_size
        sizes = {"query_rank": query_rank, "rotary_size": R, "value_head_size": V}
        shapes.expect_positive(key_value_rank=C, **sizes)
        if R % 2:
            raise ValueError(
                f"rotary_size: got {R}, expected an even number, as features are rotated in pairs"
            )
        rotary = build_positions(positions, num_heads, R, rngs=rngs)
        if not isinstance(rotary, RotaryPositions):
            raise ValueError(
                f"positions: got {positions!r}, expected 'rope' with or without options"
            )
        super().__init__(model_size, **options)
        self.positions, self.cache_sizes = rotary, (1, C + R, 0)
        self.implementation = implementation
        down = self._projection(rngs)
        up = functools.partial(down, use_bias=False)
        A = model_size if query_rank is None else query_rank
        self.query_latent = None if query_rank is None else down((model_size,), (A,))
        self.query_norm = None if query_rank is None else RMSNorm(A)
        self.query = up((A,), (num_heads, H + R))
        self.latent = down((model_size,), (C,))
        self.latent_norm = RMSNorm(C)
        self.rotary_key = down((model_size,), (R,))
        self.key = up((C,), (num_heads, H))
        self.value = up((C,), (num_heads, V))
        self.out = down((num_heads, V), (model_size,))

    def _query(self, x: Array, positions: Array) -> Array:
        """Returns the queries, [B, T, N, H + R]; their last R features are rotated."""
        if self.query_latent is not None and self.query_norm is not None:
            x = self.query_norm(self.query_latent(x))
        query, H = self.query(x), self.key.outputs[-1]
        rotated = self.positions.rotate(query[..., H:], positions)
        return jnp.concatenate([query[..., :H], rotated], axis=-1)

    def _key_value(self, x: Array, positions: Array) -> tuple[Array, Array]:
        """Returns the cache entries [c; k] of x, [B, T, 1, C + R], and empty values."""
        rotary_key = self.positions.rotate(self.rotary_key(x)[:, :, None], positions)
        entry = jnp.concatenate([self.latent_norm(self.latent(x))[:, :, None], rotary_key], axis=-1)
        return entry, entry[..., :0]

    def _attend(self, x, query, key, value, *, mask, bias, dropout_key=None) -> Array:
        heads = latent_attention(
            query,
            *self._split(key),
            *self._ups(),
            # Decoding, with fewer queries than keys, never expands the latents in the cache.
            absorbed=query.shape[1] < key.shape[1],
            mask=mask,
            implementation=self.implementation,
            **dropout_options(self.dropout_rate, dropout_key),
        )
        return self.out(heads)

    def _weights(self, query, key, *, mask, bias) -> Array:
        keys = expanded_keys(*self._split(key), self._ups()[0])
        return attention_weights(query, keys, mask=mask)

    def _split(self, entry: Array) -> tuple[Array, Array]:
        """Splits entries [B, S, 1, C + R] into latents [B, S, C] and rotary keys [B, S, R]."""
        C = self.latent.outputs[0]
        return entry[:, :, 0, :C], entry[:, :, 0, C:]

    def _ups(self) -> tuple[Array, Array]:
        return self.key.kernel[...].astype(self.dtype), self.value.kernel[...].astype(self.dtype)


def _checked(query, latent, rotary_key, key_up, value_up) -> int:
    """Checks all arrays and returns H."""
    arrays = {"latent": (latent, "B S C"), "rotary_key": (rotary_key, "B S R")}
    arrays |= {"key_up": (key_up, "C N H"), "value_up": (value_up, "C N V")}
    sizes = shapes.expect_arrays(arrays)
    shapes.expect_floating("query", query)
    shapes.expect_same_dtype(query=query, **{name: array for name, (array, _) in arrays.items()})
    sizes["E"] = sizes["H"] + sizes["R"]
    shapes.expect("query", query, "B T N E", sizes, hint="E = H of key_up + R of rotary_key")
    return sizes["H"]
