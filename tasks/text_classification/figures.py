"""Figures of text classification: one weight per token from the attention of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def token_weights(
    attention: Mapping[str, np.ndarray], has_cls: bool, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Returns one weight per token: of the pool, or else of the last layer.

    Args:
      attention: as `TextClassification.attention` returns it.
      has_cls: whether a classification token comes first; the weights are then those of its row,
        without itself.
      lengths: int [at least examples], tokens of each text. Without a classification token, the
        weights are the mean over the rows of these tokens; over all rows if None.

    Returns:
      [examples, T], nonnegative; no examples if the model has no attention weights.
    """
    if "pool" in attention:
        return attention["pool"].mean(axis=1)
    if "encoder" not in attention:
        return np.zeros((0, 0), np.float32)
    # Mixers that subtract attention maps have negative weights.
    last = np.abs(attention["encoder"][:, -1]).mean(axis=1)
    if has_cls:
        return last[:, 0, 1:]
    if lengths is None:
        return last.mean(axis=1)
    real = np.arange(last.shape[1]) < lengths[: len(last), None]
    return np.einsum("bts,bt->bs", last, real / real.sum(axis=1, keepdims=True))
