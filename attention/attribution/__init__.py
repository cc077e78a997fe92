"""Explanations of a model's predictions by its attention, by gradients or by removal of positions.

`attention` computes gradients of attention weights. `aggregation` combines the attention of all
layers. `contributions` weights values by attention. `gradients` computes attributions from the
gradient of any function. `perturbation` removes positions and computes deletion and insertion
curves.
"""

from __future__ import annotations

from attention.attribution.aggregation import (
    CrossRelevance,
    attention_flow,
    cross_relevance,
    relevance,
    rollout,
)
from attention.attribution.attention import AttentionGradients, attention_gradients
from attention.attribution.contributions import (
    WeightedNorms,
    alti,
    token_contributions,
    value_weighted_norms,
    weighted_norms,
)
from attention.attribution.gradients import (
    IntegratedGradients,
    grad_cam,
    gradient_times_input,
    integrated_gradients,
)
from attention.attribution.perturbation import (
    Curve,
    area_under_curve,
    deletion_curve,
    importance_order,
    insertion_curve,
    occlusion,
    random_order,
    uniform_order,
)

__all__ = [
    "AttentionGradients",
    "CrossRelevance",
    "Curve",
    "IntegratedGradients",
    "WeightedNorms",
    "alti",
    "area_under_curve",
    "attention_flow",
    "attention_gradients",
    "cross_relevance",
    "deletion_curve",
    "grad_cam",
    "gradient_times_input",
    "importance_order",
    "insertion_curve",
    "integrated_gradients",
    "occlusion",
    "random_order",
    "relevance",
    "rollout",
    "token_contributions",
    "uniform_order",
    "value_weighted_norms",
    "weighted_norms",
]
