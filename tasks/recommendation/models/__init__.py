"""The recommendation models by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from flax import nnx

from tasks.recommendation.models.base import Recommender
from tasks.recommendation.models.hybrid import Hybrid, HybridConfig, UserNeighboursConfig
from tasks.recommendation.models.item_attention import (
    ACFConfig,
    AttentiveFiltering,
    ItemSimilarity,
    NAISConfig,
)
from tasks.recommendation.models.sequential import BERT4Rec, BERT4RecConfig, SASRec, SASRecConfig

MODEL_CONFIGS: dict[str, type] = {
    "user_neighbours": UserNeighboursConfig,
    "nais": NAISConfig,
    "acf": ACFConfig,
    "sasrec": SASRecConfig,
    "bert4rec": BERT4RecConfig,
    "hybrid": HybridConfig,
}


def build(
    config: Any,
    num_items: int,
    features: np.ndarray | None,
    train_matrix: scipy.sparse.csr_matrix,
    rngs: nnx.Rngs,
) -> Recommender:
    """Builds a model; see `tasks.recommendation.models.base`.

    Args:
      config: config of a class in `MODEL_CONFIGS`.
      num_items: I, number of items.
      features: float32 [I, G], G features of the items, 0 or 1; None if there are none.
      train_matrix: events of the training split, CSR [U, I]. An entry is the position of the event
        in the history of its user, from 1. It may be empty if the model is restored from a
        checkpoint.
      rngs: random streams of the initialization.

    Raises:
      ValueError: the config does not fit the data.
    """
    match config:
        case SASRecConfig():
            return SASRec(config, num_items, rngs=rngs)
        case BERT4RecConfig():
            return BERT4Rec(config, num_items, rngs=rngs)
        case NAISConfig():
            return ItemSimilarity(config, num_items, rngs=rngs)
        case ACFConfig():
            return AttentiveFiltering(config, num_items, train_matrix.shape[0], features, rngs=rngs)
        case HybridConfig():
            return Hybrid(config, train_matrix, rngs=rngs)
        case UserNeighboursConfig():
            return Hybrid(config.as_hybrid(), train_matrix, rngs=rngs)
    raise TypeError(f"config: got {type(config).__name__}, expected one of MODEL_CONFIGS")
