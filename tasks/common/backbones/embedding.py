"""Token embedding with a tied output layer (Press & Wolf 2017, Inan et al. 2017)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.sharding import constrain, constrain_examples

Array = jax.Array


class TokenEmbedding(nnx.Module):
    """Embedding table that is also the weight matrix of the output layer.

        x_t = scale · E[token_t],   logits_t = h_t Eᵀ

    h_t is the input of `logits`, usually the output of the last layer.

    Parameters: embedding, E [rows, D], initialized from a normal distribution.

    Args:
      vocabulary: number of tokens.
      model_size: D.
      min_rows: minimum number of rows of E. Rows after those of the vocabulary are padding with
        logits of -inf. E then has the same size for all vocabularies of at most `min_rows` tokens.
      scale: factor on the embeddings, not on the logits: sqrt(D) in Vaswani et al. 2017.
      init_scale: standard deviation of the initial E; 0.02 is that of Devlin et al. 2019.

    Raises:
      ValueError: a size is below 1.
    """

    def __init__(
        self,
        vocabulary: int,
        model_size: int,
        *,
        min_rows: int = 0,
        scale: float = 1.0,
        init_scale: float = 0.02,
        rngs: nnx.Rngs,
    ):
        for name, size in (("vocabulary", vocabulary), ("model_size", model_size)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, expected at least 1")
        self.vocabulary, self.model_size, self.scale = vocabulary, model_size, scale
        rows = max(vocabulary, min_rows)
        table = init_scale * jax.random.normal(rngs.params(), (rows, model_size))
        self.embedding = nnx.Param(table)

    def __call__(self, tokens: Array) -> Array:
        """Looks up the embeddings of tokens.

        Args:
          tokens: int [...].

        Returns:
          float32 [..., D]; NaN for ids outside the table.
        """
        shapes.expect_integer("tokens", tokens)
        table = constrain(self.embedding[...], "W D")
        rows = constrain_examples(jnp.take(table, tokens, axis=0, mode="fill"))
        return rows if self.scale == 1.0 else self.scale * rows

    def logits(self, x: Array) -> Array:
        """Computes the logits of all rows of E.

        Args:
          x: h, [..., D].

        Returns:
          float32 [..., rows]; -inf for rows after those of the vocabulary.
        """
        if x.shape[-1] != self.model_size:
            got, expected = shapes.show(x.shape), f"[..., D] with D={self.model_size}"
            raise ValueError(f"x: got shape {got}, expected {expected}")
        table = constrain(self.embedding[...].astype(x.dtype), "V D")
        logits = jnp.einsum("...D,VD->...V", x, table, preferred_element_type=jnp.float32)
        return without_padding(logits, self.vocabulary)


def without_padding(logits: Array, vocabulary: int) -> Array:
    """Replaces the logits of padding rows by -inf.

    Args:
      logits: [..., rows].
      vocabulary: number of tokens; later rows are padding.
    """
    if logits.shape[-1] == vocabulary:
        return logits
    # The padding is masked, because slicing it off would undo the sharding of the rows.
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(ids < vocabulary, logits, -jnp.inf)
