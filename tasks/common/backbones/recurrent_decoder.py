"""Recurrent decoder with attention to a memory.

Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate";
Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation". The
alignment "none" is the baseline of Sutskever et al. 2014: the context is one fixed vector.

In shapes, B is the batch size, R the number of rows (B, or B times the number of beams), S the
source length, T the target length, V the vocabulary size, E the embedding size, D the state size, M
the memory size, and N the number of heads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from attention.dropout import dropout, keep, keep_mask
from attention.projection import Projection
from attention.recurrent.temporal import TemporalAttention
from attention.sharding import over_examples
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.recurrent import Recurrent, expect_state, find_cell

Array = jax.Array


class DecoderState(NamedTuple):
    """State between decoding steps.

    All leaves have the leading axis R, so that beams can be reordered.

    Attributes:
      cells: recurrent state of each layer.
      context: context vector of the previous step, [R, M].
      alignment_state: recurrent state of the alignment.
      memory: memory in the form that the `prepare` method of the alignment returns.
      past: cache of temporal attention; () without temporal attention.
    """

    cells: tuple[Any, ...]
    context: Array
    alignment_state: Any
    memory: Any
    past: Any


class AttentionDecoder(nnx.Module):
    """Recurrent network that attends to a memory at every step.

        x_t = [E y_{t-1}; c_{t-1}],   s_t = cell_L(... cell_1(x_t, s_{t-1}))
        c_t = align(s_t, h),   logits_t = W_o tanh(W_c [c_t; s_t])

    where y are the tokens, E y are their embeddings, h is the memory, and c_0 = 0. The input
    c_{t-1} is similar to the input feeding of Luong et al., who use tanh(W_c [c_{t-1}; s_{t-1}])
    instead of c_{t-1}. With temporal attention, [c_t; s_t; p_t] replaces [c_t; s_t], where p_t is
    the attention of s_t to s_1 ... s_{t-1} (Paulus et al. 2018, section 2.2). All layers start from
    the final state s of the encoder. If M differs from D, they start from tanh(W_i s + b_i)
    instead, with a separate W_i for each layer and each part of its state.

        state = decoder.prepare(memory, valid, initial)
        decoded = decoding.generate(decoder.step, state, ...)

    Args:
      vocabulary: V.
      embedding_size: E.
      state_size: D.
      memory_size: M, size of the encoder's states and its final state.
      alignment: an alignment of `attention.registry`, with options if any.
      cell: one of `recurrent.CELLS`.
      num_layers: L.
      temporal_attention: number of heads of the attention to the decoder's past states; 0 for none.
      dropout_rate: dropout rate after the embedding, between layers, and before the output
        projection.
      embedding: embedding that is shared with other modules; None for a new one.

    Raises:
      ValueError: an argument is not valid.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding_size: int,
        state_size: int,
        memory_size: int,
        *,
        alignment: str = "additive",
        cell: str = "gru",
        num_layers: int = 1,
        temporal_attention: int = 0,
        dropout_rate: float = 0.0,
        embedding: TokenEmbedding | None = None,
        rngs: nnx.Rngs,
    ):
        E, D, M = embedding_size, state_size, memory_size
        if num_layers < 1:
            raise ValueError(f"num_layers: got {num_layers}, expected at least 1")
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        if embedding is None:
            embedding = TokenEmbedding(vocabulary, E, init_scale=1.0, rngs=rngs)
        if embedding.model_size != E:
            got = f"one of size {embedding.model_size}"
            raise ValueError(f"embedding: got {got}, expected embedding_size={E}")
        self.embedding, self.memory_size, self.dropout_rate = embedding, M, dropout_rate
        network = find_cell(cell)
        self.cells = nnx.List(
            network(E + M if layer == 0 else D, D, rngs=rngs) for layer in range(num_layers)
        )
        parts = 0 if M == D else num_layers * len(jax.tree.leaves(self.cells[0].initial_state(1)))
        projections = nnx.List(Projection((M,), (D,), rngs=rngs) for _ in range(parts))
        self.start = projections if parts else None
        self.alignment = registry.build("alignment", alignment, D, M, rngs=rngs)
        heads = int(temporal_attention)
        self.temporal = TemporalAttention(D, heads, current=False, rngs=rngs) if heads else None
        inputs = M + D + (D if heads else 0)
        self.combine = Projection((inputs,), (D,), rngs=rngs)
        self.classify = Projection((D,), (vocabulary,), rngs=rngs)

    def prepare(
        self,
        memory: Array,
        valid: Array | None = None,
        initial: Any = None,
        *,
        max_length: int | None = None,
    ) -> DecoderState:
        """Returns the state before the first step.

        Args:
          memory: states of the encoder, [B, S, M].
          valid: bool [B, S], True = a real position; all if None.
          initial: final state of an encoder with the same type of cell, with leaves [B, M]; zeros
            if None.
          max_length: maximum number of steps; only with temporal attention.

        Raises:
          ValueError: shapes do not match, or max_length is missing or not used.
        """
        if (max_length is None) != (self.temporal is None):
            expected = "None without temporal attention" if max_length else "a number of steps"
            raise ValueError(f"max_length: got {max_length}, expected {expected}")
        state = self._first(memory, valid, initial)
        if self.temporal is None:
            return state
        return state._replace(past=self.temporal.init_cache(memory.shape[0], max_length))

    def step(self, tokens: Array, state: DecoderState) -> tuple[Array, DecoderState, dict]:
        """Computes the logits of the next token of each row, for `decoding.generate`.

        Args:
          tokens: int [R], the previous tokens.
          state: state returned by `prepare`, or by the previous step.

        Returns:
          The logits, float32 [R, V]; the next state; and the attention weights by name. The weights
          "alignment" have shape [R, S], or [R, N, S] for an alignment with N heads. With temporal
          attention there are also "temporal", [R, N, max_length].
        """
        found = _advance(self.cells, self.alignment, self.embedding(tokens), state)
        cells, context, weights, alignment_state = found
        top, past, all_weights = self._top(cells), state.past, {"alignment": weights}
        parts = [context, top]
        if self.temporal is not None:
            attended, all_weights["temporal"], past = self.temporal.step(top, past)
            parts.append(attended)
        state = DecoderState(cells, context, alignment_state, state.memory, past)
        return self.classify(self._features(parts)), state, all_weights

    def __call__(
        self,
        memory: Array,
        valid: Array | None,
        initial: Any,
        target_inputs: Array,
        *,
        dropout_key: Array | None = None,
    ) -> tuple[Array, Array]:
        """Computes the logits of all steps with teacher forcing.

        Args:
          memory, valid, initial: as for `prepare`.
          target_inputs: int [B, T], a start token followed by all target tokens but the last.
          dropout_key: None for evaluation.

        Returns:
          The logits, float32 [B, T, V], and the attention weights of every step, [B, T, S], or
          [B, T, N, S] for an alignment with N heads.

        Raises:
          ValueError: shapes do not match.
        """
        B, T = memory.shape[0], target_inputs.shape[-1]
        shapes.expect("target_inputs", target_inputs, "B T", {"B": B})
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        first = self._first(memory, valid, initial)
        words = self._dropout(self.embedding(target_inputs), keys[0])
        graph, parameters = nnx.split((self.cells, self.alignment))

        def run(words, kept, first, parameters):
            cells, alignment = nnx.merge(graph, parameters)

            def step(carry, inputs):
                state = DecoderState(*carry, first.memory, ())
                found = _advance(cells, alignment, inputs[0], state, inputs[1], self.dropout_rate)
                layers, context, weights, alignment_state = found
                top = cells[-1].hidden(layers[-1])
                return (layers, context, alignment_state), (context, top, weights)

            inputs = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (words, kept))
            _, found = jax.lax.scan(step, first[:3], inputs)
            return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), found)

        kept = self._kept(B, T, keys[1])
        # The output layers are applied outside the loop, because no later step reads their results.
        contexts, tops, weights = over_examples(run, words, kept, first, shared=(parameters,))
        parts = [contexts, tops]
        if self.temporal is not None:
            parts.append(self.temporal(tops))
        features = self._dropout(self._features(parts), keys[2])
        return self.classify(features), weights

    def _kept(self, B: int, T: int, key: Array | None) -> tuple[Array, ...]:
        """Draws a dropout mask for the input of each layer but the first.

        Masks are bool [B, T, D], True for entries that dropout keeps. There are none in evaluation,
        where `key` is None, and without dropout.
        """
        rate, D = self.dropout_rate, self.cells[0].state_size
        if key is None or rate == 0:
            return ()

        def mask(key: Array, layer: int) -> Array:
            return keep_mask(jax.random.fold_in(key, layer), rate, (B, D))

        steps = jax.random.split(key, T)
        masks = (
            jax.vmap(functools.partial(mask, layer=layer))(steps)
            for layer in range(1, len(self.cells))
        )
        return tuple(jnp.swapaxes(each, 0, 1) for each in masks)

    def _top(self, cells: tuple[Any, ...]) -> Array:
        """Returns the output of the last layer, [R, D]."""
        return self.cells[-1].hidden(cells[-1])

    def _features(self, parts: list[Array]) -> Array:
        return jnp.tanh(self.combine(jnp.concatenate(parts, axis=-1)))

    def _first(self, memory: Array, valid: Array | None, initial: Any) -> DecoderState:
        """Returns the state before the first step, with `past` left empty."""
        alignment_memory = self.alignment.prepare(memory, valid=valid)
        context = jnp.zeros((memory.shape[0], self.memory_size), memory.dtype)
        alignment_state = self.alignment.initial_state(alignment_memory)
        cells = self._initial_cells(initial, memory.shape[0])
        return DecoderState(cells, context, alignment_state, alignment_memory, ())

    def _initial_cells(self, initial: Any, B: int) -> tuple[Any, ...]:
        """Returns the initial state of each layer, with leaves [B, D]."""
        if initial is None:
            return tuple(cell.initial_state(B) for cell in self.cells)
        expect_state("initial", initial, self.cells[0], {"B": B, "H": self.memory_size})
        if self.start is None:
            return (initial,) * len(self.cells)
        leaves, kind = jax.tree.flatten(initial)
        projections = iter(self.start)
        return tuple(
            jax.tree.unflatten(kind, [jnp.tanh(next(projections)(leaf)) for leaf in leaves])
            for _ in self.cells
        )

    def _dropout(self, x: Array, key: Array | None) -> Array:
        return x if key is None else dropout(x, self.dropout_rate, key)


def _advance(
    cells: Sequence[Recurrent],
    alignment: Any,
    word: Array,
    state: DecoderState,
    kept: tuple[Array, ...] = (),
    dropout_rate: float = 0.0,
) -> tuple[tuple[Any, ...], Array, Array, Any]:
    """Runs the recurrent layers and the alignment for one step.

    Args:
      cells: recurrent layers.
      alignment: module of the alignment.
      word: embedding of the previous token, [R, E].
      state: state before the step.
      kept: dropout masks of this step for all layers but the first; see `_kept`.
      dropout_rate: dropout rate of these masks.

    Returns:
      The states of the layers, the context [R, M], the attention weights, and the state of the
      alignment.
    """
    x, found = jnp.concatenate([word, state.context], axis=-1), []
    for layer, (cell, old) in enumerate(zip(cells, state.cells, strict=True)):
        if layer and kept:
            x = keep(x, kept[layer - 1], dropout_rate)
        found.append(cell.step(x, old))
        x = cell.hidden(found[-1])
    return tuple(found), *alignment.step(x, state.memory, state.alignment_state)
