"""Attention mechanisms in JAX/Flax: pure functions, and thin modules that own the parameters.

    from attention import attend, masks

README.md in this folder lists name, paper, equation, cost and file of every mechanism.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Imports for editors and type checkers; a test compares them with _EXPORTS.
    from attention import inspect as inspect
    from attention import masks as masks
    from attention import registry as registry
    from attention.cache import KeyValueCache as KeyValueCache
    from attention.collaborative.acf import ComponentAttention as ComponentAttention
    from attention.collaborative.acf import ItemAttention as ItemAttention
    from attention.collaborative.acf import profile_scores as profile_scores
    from attention.collaborative.nais import FISM as FISM
    from attention.collaborative.nais import NAIS as NAIS
    from attention.collaborative.neighbors import UserNeighbors as UserNeighbors
    from attention.collaborative.neighbors import dense_neighbor_scores as dense_neighbor_scores
    from attention.collaborative.neighbors import neighbor_scores as neighbor_scores
    from attention.collaborative.neighbors import top_neighbors as top_neighbors
    from attention.collaborative.valid import without_target as without_target
    from attention.dot_product import attend as attend
    from attention.dot_product import attention_weights as attention_weights
    from attention.dot_product import explain_choice as explain_choice
    from attention.lag import LagAttention as LagAttention
    from attention.lag import ResidualLagAttention as ResidualLagAttention
    from attention.lag import lag_attention as lag_attention
    from attention.lag import residual_lag_attention as residual_lag_attention
    from attention.masks import patterns as patterns
    from attention.multi_head import MultiHeadAttention as MultiHeadAttention
    from attention.pooling import AttentionPool as AttentionPool
    from attention.pooling import MaxPool as MaxPool
    from attention.pooling import MeanPool as MeanPool
    from attention.pooling import MultiHeadPool as MultiHeadPool
    from attention.pooling import attention_pool as attention_pool
    from attention.pooling import max_pool as max_pool
    from attention.pooling import mean_pool as mean_pool
    from attention.positions import LearnedPositions as LearnedPositions
    from attention.positions import alibi_bias as alibi_bias
    from attention.positions import rotary as rotary
    from attention.positions import sinusoidal as sinusoidal
    from attention.recurrent.additive import AdditiveAlignment as AdditiveAlignment
    from attention.recurrent.additive import ConcatAlignment as ConcatAlignment
    from attention.recurrent.dot_product import DotAlignment as DotAlignment
    from attention.recurrent.dot_product import GeneralAlignment as GeneralAlignment
    from attention.recurrent.dot_product import NoAlignment as NoAlignment
    from attention.recurrent.local import LocalAlignment as LocalAlignment
    from attention.recurrent.location import LocationAwareAlignment as LocationAwareAlignment
    from attention.recurrent.multi_head import MultiHeadAlignment as MultiHeadAlignment
    from attention.recurrent.temporal import TemporalAttention as TemporalAttention
    from attention.sequence.delta_rule import gated_delta_rule_chunked as gated_delta_rule_chunked
    from attention.sequence.delta_rule import (
        gated_delta_rule_recurrent as gated_delta_rule_recurrent,
    )
    from attention.sequence.differential import DifferentialAttention as DifferentialAttention
    from attention.sequence.differential import differential_attention as differential_attention
    from attention.sequence.fourier import Fourier as Fourier
    from attention.sequence.fourier import fourier_mix as fourier_mix
    from attention.sequence.gated_delta_net import GatedDeltaNet as GatedDeltaNet
    from attention.sequence.latent import LatentAttention as LatentAttention
    from attention.sequence.linear import LinearAttention as LinearAttention
    from attention.sequence.linear import linear_attention as linear_attention
    from attention.sequence.longformer import Longformer as Longformer
    from attention.sequence.low_rank import Linformer as Linformer
    from attention.sequence.low_rank import linformer as linformer
    from attention.sequence.nystrom import Nystromformer as Nystromformer
    from attention.sequence.nystrom import nystrom_attention as nystrom_attention
    from attention.sequence.performer import Performer as Performer
    from attention.sequence.prob_sparse import ProbSparse as ProbSparse
    from attention.sequence.prob_sparse import prob_sparse as prob_sparse
    from attention.sequence.sparse import BigBird as BigBird
    from attention.sequence.sparse import Fixed as Fixed
    from attention.sequence.sparse import SlidingWindow as SlidingWindow
    from attention.sequence.sparse import Strided as Strided
    from attention.sequence.talking_heads import TalkingHeadsAttention as TalkingHeadsAttention
    from attention.sequence.talking_heads import talking_heads as talking_heads
    from attention.structured_pooling import StructuredPool as StructuredPool
    from attention.structured_pooling import structured_penalty as structured_penalty
    from attention.structured_pooling import structured_pool as structured_pool

# name -> module. Modules are imported on first use, so that listing the registry's names does not #
# import JAX.
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
    "dense_neighbor_scores": "collaborative.neighbors",
    "neighbor_scores": "collaborative.neighbors",
    "top_neighbors": "collaborative.neighbors",
    "UserNeighbors": "collaborative.neighbors",
    "without_target": "collaborative.valid",
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
_MODULES = {
    "inspect": "inspect",
    "masks": "masks",
    "patterns": "masks.patterns",
    "registry": "registry",
}

__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"attention.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"attention.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'attention' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
