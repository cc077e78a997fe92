"""PatchTST in JAX and in Hugging Face transformers (PyTorch eager).

The model has the sizes and options of configs/forecasting.py:etth1,patchtst with layer
normalization after each sublayer, dropout, AdamW, gradient clipping and squared error. A training
epoch of etth1 has 8,209 windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import engine_steps, experiment, torch_steps

CONFIG = "configs/forecasting.py:etth1,patchtst"
CHANNELS = tuple("ABCDEFG")


def setup(batch_size: int | None = None) -> tuple[Any, list]:
    """Returns the experiment and its batches; a batch has 128 windows if no size is given."""
    from launch.engine import config as configs

    changes = {"training.batch_size": batch_size or 128, "mesh.data": 1}
    config = configs.override(experiment(CONFIG), changes)
    return config, batches(config)


def batches(config, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Returns batches of noise."""
    rng, B = np.random.default_rng(0), config.training.batch_size
    L, F, C = config.data.lookback, config.data.horizon, len(CHANNELS)
    return [
        {
            "past": rng.normal(size=(B, L, C)).astype(np.float32),
            "past_valid": np.ones((B, L, C), bool),
            "future": rng.normal(size=(B, F, C)).astype(np.float32),
            "future_valid": np.ones((B, F, C), bool),
            "calendar": np.zeros((B, L + F, 0), np.float32),
            "weight": np.ones(B, np.float32),
            "id": np.arange(B, dtype=np.int32),
        }
        for _ in range(count)
    ]


def jax_step(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.forecasting.processor import ForecastingProcessor
    from tasks.forecasting.task import Forecasting

    still = np.zeros(len(CHANNELS))
    processor = ForecastingProcessor(
        config.data, config.model, CHANNELS, still, still + 1, None, period=24
    )
    task = Forecasting(config.data, config.model, processor)
    return engine_steps(task, config, data)


def torch_step(
    config, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PatchTST of `transformers`."""
    import torch
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    model = config.model
    lengths = {"context_length": config.data.lookback, "prediction_length": config.data.horizon}
    lengths |= {"patch_length": model.patch_length, "patch_stride": model.patch_stride}
    sizes = {"num_hidden_layers": model.num_layers, "num_attention_heads": model.num_heads}
    sizes |= {"d_model": model.model_size, "ffn_dim": model.feedforward_size}
    rates = dict.fromkeys(("positional_dropout", "path_dropout"), model.dropout_rate)
    theirs = PatchTSTConfig(
        num_input_channels=len(CHANNELS),
        **lengths,
        **sizes,
        **rates,
        attention_dropout=model.attention_dropout_rate,
        head_dropout=0.0,
        activation_function=model.activation,
        norm_type="layernorm",
        pre_norm=model.norm == "pre",
        positional_encoding_type="random",
        pooling_type=None,
        scaling="std",
        loss="mse",
    )
    torch.manual_seed(0)
    tensors = [
        {"past_values": torch.tensor(b["past"]), "future_values": torch.tensor(b["future"])}
        for b in data
    ]
    return torch_steps(
        PatchTSTForPrediction(theirs).train(),
        config,
        tensors,
        lambda model, batch: model(**batch).loss,
        compiled,
    )
