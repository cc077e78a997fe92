"""Forecasting models by name.

    model = build(config, sizes, ridge, rngs=rngs)
    parameters = model(past, past_valid, calendar)          # [B, F, C, P] of `model.head`

See `tasks.forecasting.models.base.Forecaster` for the call and `tasks.forecasting.models.heads` for
the meaning of the parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from tasks.forecasting.models.base import Forecaster, WindowSizes
from tasks.forecasting.models.informer import Informer, InformerConfig
from tasks.forecasting.models.itransformer import ITransformer, ITransformerConfig
from tasks.forecasting.models.lag import LagConfig, LagForecaster, ResidualLagConfig
from tasks.forecasting.models.patchtst import PatchTST, PatchTSTConfig
from tasks.forecasting.models.ridge import (
    RidgeConfig,
    RidgeForecaster,
    RidgeResidual,
    RidgeResidualConfig,
    RidgeSeasonal,
    RidgeSeasonalConfig,
)
from tasks.forecasting.models.seasonal import SeasonalLagConfig, SeasonalLagForecaster
from tasks.forecasting.models.sparse_tsf import SparseTSF, SparseTSFConfig
from tasks.forecasting.models.transformer import Transformer, TransformerConfig

_MODELS = {
    LagConfig: LagForecaster,
    ResidualLagConfig: LagForecaster,
    SeasonalLagConfig: SeasonalLagForecaster,
    TransformerConfig: Transformer,
    InformerConfig: Informer,
    PatchTSTConfig: PatchTST,
    ITransformerConfig: ITransformer,
    SparseTSFConfig: SparseTSF,
}
_ON_RIDGE = {
    RidgeConfig: RidgeForecaster,
    RidgeResidualConfig: RidgeResidual,
    RidgeSeasonalConfig: RidgeSeasonal,
}

MODEL_CONFIGS = {config.name: config for config in (*_MODELS, *_ON_RIDGE)}


def build(
    config: Any, sizes: WindowSizes, ridge: np.ndarray | None, *, rngs: nnx.Rngs
) -> Forecaster:
    """Builds the forecaster of a config.

    Args:
      config: config of a class in MODEL_CONFIGS.
      sizes: sizes of the windows.
      ridge: for a config with `ridge_level`, the fitted matrix, float32 [1 or C, L, F], of ŷ = c +
        (x - c) ridge with the level c. The first dimension is C if `ridge_individual` is set. None
        for other configs, and if the parameters will be restored from a checkpoint.
      rngs: random streams of the initialization.
    """
    if type(config) in _ON_RIDGE:
        return _ON_RIDGE[type(config)](config, sizes, ridge, rngs=rngs)
    return _MODELS[type(config)](config, sizes, rngs=rngs)
