"""Modules and functions that fade positions of an input, for explanations of predictions.

A gate in [0, 1] mixes each position of the input with a replacement, such as a mask token or a
blurred image: 1 keeps the position, 0 replaces it. `tasks.explainer` measures the change of a score
of the prediction.

In shapes, G is the number of rows of gates (each row gives one score), U the number of positions, S
or T the length of a sequence, and D the model size. For images, Y and X are height and width, and C
is the number of channels.
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
      first: number of tokens before the first position. These tokens, and those after the last
        position, are not replaced.
    """

    def __init__(self, inner: Any, gates: Array, replacement: Array, first: int = 0):
        self.inner, self.first = inner, first
        self.gates, self.replacement = nnx.Variable(gates), nnx.Variable(replacement)

    @property
    def embedding(self) -> Any:
        """Embedding table of the inner module, a parameter [vocabulary, D]."""
        return self.inner.embedding

    def __call__(self, tokens: Array) -> Array:
        """Computes mixed embeddings [G, T, D] from tokens, int [G, T]."""
        return mixed(self.inner(tokens), self.gates[...], self.replacement[...], self.first)


def mixed(x: Array, gates: Array, replacement: Array, first: int = 0) -> Array:
    """Mixes rows of a sequence with a replacement: g_s x_s + (1 - g_s) r.

    Args:
      x: [G, S, D].
      gates: g, [G, U] in [0, 1]: gates of U consecutive rows of x, which begin at index `first`.
        The other rows are not replaced.
      replacement: r, [D] or a scalar.
      first: number of rows of x before the first position.

    Returns:
      [G, S, D].
    """
    after = x.shape[1] - first - gates.shape[1]
    gates = jnp.pad(gates, ((0, 0), (first, after)), constant_values=1)[..., None].astype(x.dtype)
    return gates * x + (1 - gates) * replacement.astype(x.dtype)


def gated_images(images: Array, gates: Array, rows: int, columns: int) -> Array:
    """Mixes each cell of an image, a rectangle of pixels, with the same cell of a blurred copy.

    To make the blurred copy, the image is scaled down to min(4, ceil(Y / 8)) x min(4, ceil(X / 8))
    pixels and back to its size, with linear interpolation.

    Args:
      images: one image, floating point [1, Y, X, C].
      gates: [G, rows * columns] in [0, 1], with the cells in row-major order.
      rows, columns: numbers of cells along the height and the width.

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
    """Returns the number of cells along a side of an image.

    There is one cell per 8 pixels, but at least 4 and at most `most` cells, and never more cells
    than pixels.

    Args:
      side: height or width of the image in pixels.
      most: maximum number of cells.
    """
    return min(max(side // 8, 4), most, side)


class GatedInput(nnx.Module):
    """A module whose input is mixed with a replacement: inner(g_s x_s + (1 - g_s) r, ...).

    Args:
      inner: module whose first argument is x, [G, S, D].
      gates: g, [G, U], in [0, 1].
      replacement: r, [D] or a scalar.
      factor: number of consecutive rows of x that form a position and share its gate; the last
        position may have fewer rows.
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
