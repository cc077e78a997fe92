"""Attention mechanisms in JAX/Flax: pure functions, and thin modules that own the parameters.

    from attention import attend, masks

README.md in this folder lists every mechanism with its name, paper, equation, cost and file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Imports for editors and type checkers; a test compares them with _EXPORTS.
    from attention import attribution as attribution
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

# The public names of each module. Modules are imported on first use, so that listing the registry's
# names does not import JAX.
_NAMES = {
    "dot_product": "attend attention_weights explain_choice",
    "multi_head": "MultiHeadAttention",
    "cache": "KeyValueCache",
    "sequence.sparse": "BigBird Fixed SlidingWindow Strided",
    "sequence.longformer": "Longformer",
    "sequence.linear": "linear_attention LinearAttention",
    "sequence.performer": "Performer",
    "sequence.delta_rule": "gated_delta_rule_chunked gated_delta_rule_recurrent",
    "sequence.gated_delta_net": "GatedDeltaNet",
    "sequence.low_rank": "linformer Linformer",
    "sequence.prob_sparse": "prob_sparse ProbSparse",
    "sequence.nystrom": "nystrom_attention Nystromformer",
    "sequence.fourier": "fourier_mix Fourier",
    "sequence.talking_heads": "talking_heads TalkingHeadsAttention",
    "sequence.latent": "LatentAttention",
    "sequence.differential": "differential_attention DifferentialAttention",
    "positions": "alibi_bias LearnedPositions rotary sinusoidal",
    "pooling": "attention_pool max_pool mean_pool AttentionPool MaxPool MeanPool MultiHeadPool",
    "recurrent.additive": "AdditiveAlignment ConcatAlignment",
    "recurrent.dot_product": "DotAlignment GeneralAlignment NoAlignment",
    "recurrent.local": "LocalAlignment",
    "recurrent.location": "LocationAwareAlignment",
    "recurrent.multi_head": "MultiHeadAlignment",
    "recurrent.temporal": "TemporalAttention",
    "structured_pooling": "structured_penalty structured_pool StructuredPool",
    "collaborative.neighbors": "dense_neighbor_scores neighbor_scores top_neighbors UserNeighbors",
    "collaborative.valid": "without_target",
    "collaborative.nais": "FISM NAIS",
    "collaborative.acf": "profile_scores ComponentAttention ItemAttention",
    "lag": "lag_attention residual_lag_attention LagAttention ResidualLagAttention",
}
_EXPORTS = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = {
    "attribution": "attribution",
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
