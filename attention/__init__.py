"""Attention mechanisms in JAX/Flax: pure functions first, then the thin modules that own their
weights.

    from attention import attend, masks

README.md beside this file maps name, paper, equation, cost and file of every mechanism.
"""

from __future__ import annotations

import importlib
from typing import Any

# name -> module; imported when first used, so that asking for the registry's names costs no JAX
# import.
_EXPORTS = {
    "attend": "dot_product",
    "attention_weights": "dot_product",
    "explain_choice": "dot_product",
    "MultiHeadAttention": "multi_head",
    "KeyValueCache": "cache",
    "BigBird": "sequence.sparse",
    "Fixed": "sequence.sparse",
    "SlidingWindow": "sequence.sparse",
    "Strided": "sequence.sparse",
    "Longformer": "sequence.longformer",
    "linear_attention": "sequence.linear",
    "LinearAttention": "sequence.linear",
    "Performer": "sequence.performer",
    "gated_delta_rule_chunked": "sequence.delta_rule",
    "gated_delta_rule_recurrent": "sequence.delta_rule",
    "GatedDeltaNet": "sequence.gated_delta_net",
    "linformer": "sequence.low_rank",
    "Linformer": "sequence.low_rank",
    "prob_sparse": "sequence.prob_sparse",
    "ProbSparse": "sequence.prob_sparse",
    "nystrom_attention": "sequence.nystrom",
    "Nystromformer": "sequence.nystrom",
    "fourier_mix": "sequence.fourier",
    "Fourier": "sequence.fourier",
    "talking_heads": "sequence.talking_heads",
    "TalkingHeadsAttention": "sequence.talking_heads",
    "LatentAttention": "sequence.latent",
    "differential_attention": "sequence.differential",
    "DifferentialAttention": "sequence.differential",
    "alibi_bias": "positions",
    "attention_pool": "pooling",
    "max_pool": "pooling",
    "mean_pool": "pooling",
    "AttentionPool": "pooling",
    "MaxPool": "pooling",
    "MeanPool": "pooling",
    "MultiHeadPool": "pooling",
    "LearnedPositions": "positions",
    "rotary": "positions",
    "sinusoidal": "positions",
    "AdditiveAlignment": "recurrent.additive",
    "ConcatAlignment": "recurrent.additive",
    "DotAlignment": "recurrent.dot_product",
    "GeneralAlignment": "recurrent.dot_product",
    "NoAlignment": "recurrent.dot_product",
    "LocalAlignment": "recurrent.local",
    "LocationAwareAlignment": "recurrent.location",
    "MultiHeadAlignment": "recurrent.multi_head",
    "TemporalAttention": "recurrent.temporal",
    "structured_penalty": "structured_pooling",
    "structured_pool": "structured_pooling",
    "StructuredPool": "structured_pooling",
    "dense_neighbour_scores": "collaborative.neighbours",
    "neighbour_scores": "collaborative.neighbours",
    "top_neighbours": "collaborative.neighbours",
    "UserNeighbours": "collaborative.neighbours",
    "without_target": "collaborative.marks",
    "FISM": "collaborative.nais",
    "NAIS": "collaborative.nais",
    "profile_scores": "collaborative.acf",
    "ComponentAttention": "collaborative.acf",
    "ItemAttention": "collaborative.acf",
    "lag_attention": "lag",
    "residual_lag_attention": "lag",
    "LagAttention": "lag",
    "ResidualLagAttention": "lag",
}
_MODULES = ("inspect", "masks", "patterns", "registry")

__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"attention.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"attention.{name}")
    else:
        raise AttributeError(f"module 'attention' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
