"""Inputs whose positions are mixed with a replacement, for explanations.

G gates, U positions, T length, D model size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class GatedEmbedding(nnx.Module):
    """Token embeddings mixed with a replacement: g_t E[token_t] + (1 - g_t) r.

    Args:
      inner: module of token embeddings, called with tokens [G, T].
      gates: g, [G, U], in [0, 1].
      replacement: r, [D].
      first: number of tokens before the first position, which are not replaced, like those after
        the last one.
    """

    def __init__(self, inner: Any, gates: Array, replacement: Array, first: int = 0):
        self.inner, self.first = inner, first
        self.gates, self.replacement = nnx.Variable(gates), nnx.Variable(replacement)

    @property
    def embedding(self) -> Any:
        """Parameter of the embeddings, [vocabulary, D]."""
        return self.inner.embedding

    def __call__(self, tokens: Array) -> Array:
        """Returns mixed embeddings [G, T, D] of tokens int [G, T]."""
        return mixed(self.inner(tokens), self.gates[...], self.replacement[...], self.first)


def mixed(x: Array, gates: Array, replacement: Array, first: int = 0) -> Array:
    """Mixes positions with a replacement: g_s x_s + (1 - g_s) r.

    Args:
      x: [G, S, D].
      gates: g, [G, U] in [0, 1], of the positions from `first` on; others are not replaced.
      replacement: r, [D] or a scalar.
      first: number of rows of x before the first position.
    """
    after = x.shape[1] - first - gates.shape[1]
    gates = jnp.pad(gates, ((0, 0), (first, after)), constant_values=1)[..., None].astype(x.dtype)
    return gates * x + (1 - gates) * replacement.astype(x.dtype)


def gated_images(images: Array, gates: Array, rows: int, columns: int) -> Array:
    """Mixes the cells of an image with those of its blurred copy.

    The copy is interpolated linearly between averages over 4 x 4 areas, or fewer of 8 pixels.

    Args:
      images: [1, Y, X, C], floating point.
      gates: [G, rows * columns] in [0, 1], by rows of cells.
      rows, columns: number of cells.

    Returns:
      [G, Y, X, C].
    """
    _, Y, X, C = images.shape
    grid = gates.reshape(-1, rows, columns)
    row = jnp.arange(Y) * rows // Y
    column = jnp.arange(X) * columns // X
    shares = grid[:, row][:, :, column][..., None].astype(images.dtype)
    coarse = (1, min(4, -(-Y // 8)), min(4, -(-X // 8)), C)
    blurred = jax.image.resize(jax.image.resize(images, coarse, "linear"), images.shape, "linear")
    return shares * images + (1 - shares) * blurred


def cells(side: int, most: int = 16) -> int:
    """Returns the number of cells along a side of an image: one for 8 pixels, from 4 to `most`."""
    return min(max(side // 8, 4), most, side)


class GatedInput(nnx.Module):
    """A module whose input is mixed with a replacement: inner(g_s x_s + (1 - g_s) r, ...).

    Args:
      inner: module whose first argument is x, [G, S, D].
      gates: g, [G, U], in [0, 1].
      replacement: r, [D] or a scalar.
      factor: number of rows of x of each position; the last position may have fewer.
    """

    def __init__(self, inner: Any, gates: Array, replacement: Array, *, factor: int = 1):
        self.inner, self.factor = inner, factor
        self.gates, self.replacement = nnx.Variable(gates), nnx.Variable(replacement)

    def __call__(self, x: Array, *arguments: Any, **options: Any) -> Any:
        gates = jnp.repeat(self.gates[...], self.factor, axis=1)[:, : x.shape[1]]
        return self.inner(mixed(x, gates, self.replacement[...]), *arguments, **options)


def mean_embedding(embedding: Any, vocabulary: int) -> Array:
    """Returns the mean of the embeddings of all tokens, [D]."""
    return jnp.mean(embedding(jnp.arange(vocabulary)[None])[0], axis=0)
