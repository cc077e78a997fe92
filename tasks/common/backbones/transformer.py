"""Transformer encoder and decoder (Vaswani et al. 2017) with configurable layers.

The memory of a decoder is the encoder states that it attends to. In shapes, B is the batch size, T
the length, S the length of the memory, D the model size, D_m the size of the memory, N the number
of heads, H the head size, and L the number of layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.cache import valid_lengths
from attention.sharding import constrain
from tasks.common.backbones.stacking import LayerStack
from tasks.common.backbones.transformer_layers import (
    DecoderLayer,
    EncoderConfig,
    EncoderLayer,
    maybe_dropout,
    mixers_with,
)

Array = jax.Array

# Each rule has a regular expression for paths of parameters, and a mesh axis for each dimension.
# Heads and hidden units are split over "tensor" (Shoeybi et al. 2019, Megatron-LM: one all-reduce
# after `out` and one after `down`), the model dimension over "fsdp". Parameters that match no rule
# are replicated. Token embeddings are sharded along D over both axes, so that lookups need no
# communication and any vocabulary size works.
SHARDING_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(^|/)(query|key|value)(_global)?/kernel$", ("fsdp", "tensor", None)),
    (r"(^|/)(query|key|value)(_global)?/bias$", ("tensor", None)),
    (r"(^|/)out/kernel$", ("tensor", None, "fsdp")),
    (r"(^|/)up/kernel$", ("fsdp", "tensor")),
    (r"(^|/)up/bias$", ("tensor",)),
    (r"(^|/)feedforward/gate/kernel$", ("fsdp", "tensor")),
    (r"(^|/)feedforward/gate/bias$", ("tensor",)),
    (r"(^|/)down/kernel$", ("tensor", "fsdp")),
    (r"(^|/)embedding$", (None, ("fsdp", "tensor"))),
)


class EncoderCache(NamedTuple):
    """Cache of an encoder that decodes step by step under a causal mask.

    Attributes:
      layers: cache of the mixer (the self-attention or its replacement) of each layer.
      length: int32 [B], number of past positions of each example.
    """

    layers: tuple[Any, ...]
    length: Array


class DecoderState(NamedTuple):
    """State of a decoder between steps; every leaf has the leading axis B.

    Attributes:
      layers: cache of the mixer (the self-attention or its replacement) of each layer.
      memory: for each layer, the keys and values of the memory, [B, N, S, H] each.
      memory_valid: bool [B, S], True = a real position of the memory.
      length: int32 [B], number of past positions of each example.
    """

    layers: tuple[Any, ...]
    memory: tuple[tuple[Array, Array], ...]
    memory_valid: Array
    length: Array


class _Stack(nnx.Module):
    """Base class of encoder and decoder: positions, layers and the final norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.positions = config.build_positions(rngs)
        self.input_norm = config.build_norm() if config.input_norm else None
        self.layers = (
            LayerStack(self._layer, config.num_layers, rngs=rngs)
            if config.scan_layers
            else nnx.List([self._layer(rngs) for _ in range(config.num_layers)])
        )
        self.final_norm = config.build_norm() if config.norm == "pre" else None

    def _layer(self, rngs: nnx.Rngs) -> nnx.Module:
        raise NotImplementedError

    def _apply(
        self,
        x: Array,
        dropout_key: Array | None,
        call: Callable[[nnx.Module, Array, Array | None], tuple[Array, Any]],
    ) -> tuple[Array, Any]:
        """Applies all layers, by a scan if they are stacked, and by a loop otherwise.

        Args:
          x: output of `_input`.
          dropout_key: key from which the keys of the layers are derived; None for evaluation.
          call: function of a layer, its input, and its dropout key. It returns the input of the
            next layer and a tree of other results.

        Returns:
          The output of the last layer, and the other results, stacked along a leading axis L.
        """
        rematerialize = self.config.rematerialize

        def numbered(number: int | Array, layer: nnx.Module, x: Array) -> tuple[Array, Any]:
            return call(layer, x, layer_key(dropout_key, number))

        # Attention weights are recorded under the names of layers, which a scan does not have.
        # Therefore the layers run separately while weights are recorded.
        if isinstance(self.layers, LayerStack) and not recording.active():
            return self.layers.scan(numbered, x, rematerialize=rematerialize)
        results = []
        for number, layer in enumerate(self.layers):
            run = functools.partial(numbered, number)
            x, result = (nnx.remat(run) if rematerialize else run)(layer, x)
            results.append(result)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    def _input(self, x: Array, past: Array | None, dropout_key: Array | None) -> Array:
        """Checks the input, adds position embeddings, and applies the input norm and dropout.

        Args:
          x: [B, T, D].
          past: int [B], number of earlier positions of each example; 0 if None.
          dropout_key: None for evaluation.
        """
        config = self.config
        sizes = {"D": config.model_size}
        shapes.expect_floating("x", x)
        shapes.expect("x", x, "B T D", sizes)
        if sizes["T"] > config.max_length:
            got = f"shape {shapes.show(x.shape)}, that is length {sizes['T']}"
            raise ValueError(f"x: got {got}, expected at most max_length={config.max_length}")
        x = constrain(x.astype(config.dtype), "B T D")
        if self.positions is not None and past is None:
            x = x + self.positions(sizes["T"]).astype(x.dtype)
        elif self.positions is not None:
            shapes.expect("cache", past, "B", sizes)
            x = x + self.positions.at(past[:, None] + jnp.arange(sizes["T"])).astype(x.dtype)
        if self.input_norm is not None:
            x = self.input_norm(x)
        return maybe_dropout(x, config.dropout_rate, layer_key(dropout_key, -1))

    def _output(self, x: Array) -> Array:
        return x if self.final_norm is None else constrain(self.final_norm(x), "B T D")

    def _caches(self, batch_size: int, max_length: int) -> tuple[Any, ...]:
        config = self.config
        if max_length > config.max_length:
            expected = f"at most the config's max_length={config.max_length}"
            raise ValueError(f"max_length: got {max_length}, expected {expected}")
        if "cache" not in config.entry.capabilities:
            able = mixers_with("cache")
            raise NotImplementedError(
                f"mixer: got {config.entry.name!r}, which cannot decode step by step; expected one "
                f"of {able}"
            )
        return tuple(layer.attention.init_cache(batch_size, max_length) for layer in self.layers)


class Encoder(_Stack):
    """Transformer encoder of embedded inputs; adds position embeddings if its config has any."""

    def _layer(self, rngs: nnx.Rngs) -> EncoderLayer:
        return EncoderLayer(self.config, rngs=rngs)

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
          valid: bool [B, T], True = a real position. Give `valid` or `lengths`, not both; without
            them, all positions are real. Results at real positions are independent of padding.
          lengths: int [B], number of real positions, which come first.
          mask: mask that is combined with the padding mask, such as `masks.causal()`.
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights, if the mixer has any.

        Returns:
          [B, T, D], undefined at padding. With `return_weights`, also the attention weights [L, B,
          N, T, T].

        Raises:
          ValueError: shapes do not match, T > max_length, or both valid and lengths are given.
          NotImplementedError: the mixer does not support the mask, or has no weights to return.
        """
        x = self._input(x, None, dropout_key)
        options = self._layer_options(valid, lengths, x.shape[1])
        options |= {"mask": _combine_masks(mask, valid, lengths), "return_weights": return_weights}

        def call(layer: nnx.Module, x: Array, key: Array | None) -> tuple[Array, Array | None]:
            return layer(x, **options, dropout_key=key)

        x, weights = self._apply(x, dropout_key, call)
        x = self._output(x)
        return (x, weights) if return_weights else x

    def _layer_options(self, valid: Array | None, lengths: Array | None, T: int) -> dict[str, Any]:
        """Returns the arguments that the layers take in addition to those of `EncoderLayer`."""
        return {}

    def init_cache(self, batch_size: int, max_length: int) -> EncoderCache:
        """Returns an empty cache for `decode`; every leaf has the leading axis B.

        Args:
          batch_size: B.
          max_length: maximum number of positions, including the prompt.

        Raises:
          ValueError: a size is below 1, or max_length above that of the config.
          NotImplementedError: the mixer does not support decoding.
        """
        layers = self._caches(batch_size, max_length)
        return EncoderCache(layers, jnp.zeros((batch_size,), jnp.int32))

    def decode(
        self, x: Array, cache: EncoderCache, lengths: Array | None = None
    ) -> tuple[Array, EncoderCache]:
        """Computes the outputs at the next T positions under a causal mask.

        The positions are those of a prompt or of one step. The outputs equal those of
        `self(x_of_all_positions, mask=masks.causal())` at these positions.

        Args:
          x: [B, T, D].
          cache: cache returned by `init_cache`, or by the previous call.
          lengths: int [B], the number of real positions, which come first; all if None. Positions
            after them are ignored, and the next call continues after the real positions.

        Returns:
          The outputs, [B, T, D], undefined at positions that are not real; and the new cache. Under
          jit, outputs beyond the capacity of the cache are NaN.

        Raises:
          ValueError: shapes do not match, or the capacity of the cache is exceeded outside jit.
        """
        x = self._input(x, cache.length, None)
        layers = []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x, layer_cache = layer.decode(x, layer_cache, lengths)
            layers.append(layer_cache)
        new = valid_lengths(lengths, *x.shape[:2])
        return self._output(x), EncoderCache(tuple(layers), cache.length + new)


class Decoder(_Stack):
    """Transformer decoder with causal self-attention and cross-attention to a memory.

    Like the encoder, it adds position embeddings to its inputs if its config has any.

    Args:
      config: as for an encoder.
      memory_size: D_m.

    Raises:
      ValueError: the mixer does not support a causal mask.
    """

    def __init__(self, config: EncoderConfig, memory_size: int, *, rngs: nnx.Rngs):
        config.expect_causal()
        self.memory_size = memory_size
        super().__init__(config, rngs=rngs)

    def _layer(self, rngs: nnx.Rngs) -> DecoderLayer:
        return DecoderLayer(self.config, self.memory_size, rngs=rngs)

    def __call__(
        self,
        x: Array,
        memory: Array,
        *,
        memory_valid: Array | None = None,
        mask: masks.Mask | None = None,
        valid: Array | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Decodes a padded batch with teacher forcing.

        Args:
          x: [B, T, D]; position t attends to positions up to t.
          memory: [B, S, D_m].
          memory_valid: bool [B, S], True = a real position; all if None.
          mask: mask that is combined with the causal mask.
          valid: bool [B, T], True = a real position of x; all if None. It is not needed if padding
            is at the end, where the causal mask hides it.
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights.

        Returns:
          [B, T, D], undefined at padding. With `return_weights`, also the attention weights:
          "cross" [L, B, N, T, S] and, if the mixer has any, "self" [L, B, N, T, T].

        Raises:
          ValueError: shapes do not match, or T > max_length.
          NotImplementedError: the mixer does not support the mask.
        """
        mask = _combine_masks(
            masks.causal() if mask is None else masks.causal() & mask, valid, None
        )
        x = self._input(x, None, dropout_key)
        memory_valid = self._expect_memory(memory, memory_valid, x.shape[0])
        own = return_weights and "weights" in self.config.entry.capabilities
        options = {
            "mask": mask,
            "memory_mask": None if memory_valid is None else masks.valid(key=memory_valid),
            "return_weights": (own, return_weights),
        }

        def call(layer: nnx.Module, x: Array, key: Array | None) -> tuple[Array, dict]:
            x, weights, cross = layer(x, memory, **options, dropout_key=key)
            return x, {"self": weights, "cross": cross}

        x, weights = self._apply(x, dropout_key, call)
        x = self._output(x)
        if not return_weights:
            return x
        return x, {name: array for name, array in weights.items() if array is not None}

    def init_cache(
        self, memory: Array, memory_valid: Array | None, max_length: int
    ) -> DecoderState:
        """Returns the state before the first position: the projected memory, and empty caches.

        Args:
          memory, memory_valid: as for `__call__`.
          max_length: maximum number of positions.

        Raises:
          ValueError: shapes do not match, a size is below 1, or max_length exceeds the config.
          NotImplementedError: the mixer does not support decoding.
        """
        B, S = memory.shape[:2]
        memory_valid = self._expect_memory(memory, memory_valid, B)
        if memory_valid is None:
            memory_valid = jnp.ones((B, S), bool)
        return DecoderState(
            self._caches(B, max_length),
            tuple(layer.cross_attention.project_memory(memory) for layer in self.layers),
            memory_valid,
            jnp.zeros((B,), jnp.int32),
        )

    def decode(
        self, x: Array, state: DecoderState, lengths: Array | None = None
    ) -> tuple[Array, DecoderState, Array]:
        """Computes the outputs at the next T positions.

        They equal those of `self(x_of_all_positions, memory)` at these positions.

        Args:
          x: [B, T, D].
          state: state returned by `init_cache`, or by the previous call.
          lengths: as for `Encoder.decode`.

        Returns:
          The outputs, [B, T, D]; the new state; and the cross-attention weights, [B, L, N, T, S].

        Raises:
          ValueError: as for `Encoder.decode`.
        """
        x = self._input(x, state.length, None)
        mask = masks.valid(key=state.memory_valid)
        layers, weights = [], []
        for layer, cache, memory in zip(self.layers, state.layers, state.memory, strict=True):
            x, cache, cross = layer.decode(x, cache, lengths, memory, mask)
            layers.append(cache)
            weights.append(cross)
        length = state.length + valid_lengths(lengths, *x.shape[:2])
        state = state._replace(layers=tuple(layers), length=length)
        return self._output(x), state, jnp.stack(weights, axis=1)

    def _expect_memory(self, memory: Array, valid: Array | None, B: int) -> Array | None:
        sizes = {"B": B, "M": self.memory_size}
        shapes.expect("memory", memory, "B S M", sizes)
        if valid is not None:
            shapes.expect_boolean("memory_valid", valid, true_means="a real position")
            shapes.expect("memory_valid", valid, "B S", sizes)
        return valid


def layer_key(dropout_key: Array | None, number: int | Array) -> Array | None:
    """Returns the dropout key of layer `number`; -1 stands for the input of the first layer."""
    return None if dropout_key is None else jax.random.fold_in(dropout_key, number + 1)


def _combine_masks(
    mask: masks.Mask | None, valid: Array | None, lengths: Array | None
) -> masks.Mask | None:
    if valid is not None and lengths is not None:
        raise ValueError("valid: got valid and lengths, expected one of them")
    if valid is None and lengths is None:
        return mask
    padding = masks.valid(key=valid) if lengths is None else masks.lengths(key=lengths)
    return padding if mask is None else mask & padding
