"""Figures of text classification: one weight per token from the attention of a model.

T is the number of tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def token_weights(
    attention: Mapping[str, np.ndarray], has_cls: bool, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Returns one weight per token: that of the pool, or of the last layer if the pool has none.

    Weights are averaged over heads.

    Args:
      attention: attention weights returned by `TextClassification.attention`.
      has_cls: whether texts begin with a classification token. If so, the weights of the last
        layer are those of this token over the other tokens. If not, they are averaged over the
        attending tokens.
      lengths: int [n], number of tokens of each text; n is at least the number of examples. The
        average over attending tokens excludes padding; None to include it.

    Returns:
      [examples, T], nonnegative; empty if the model has no attention weights.
    """
    if "pool" in attention:
        return attention["pool"].mean(axis=1)
    if "encoder" not in attention:
        return np.zeros((0, 0), np.float32)
    # Absolute values, because mixers that subtract attention maps have negative weights.
    last = np.abs(attention["encoder"][:, -1]).mean(axis=1)
    if has_cls:
        return last[:, 0, 1:]
    if lengths is None:
        return last.mean(axis=1)
    real = np.arange(last.shape[1]) < lengths[: len(last), None]
    return np.einsum("bts,bt->bs", last, real / real.sum(axis=1, keepdims=True))
