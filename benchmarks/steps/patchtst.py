"""Train steps of PatchTST, here and by transformers in PyTorch eager, side by side: time, and
memory at its peak.

python -m benchmarks.steps.patchtst        (make bench brings torch and transformers)

The same model: sizes and options of configs/forecasting.py:etth1,patchtst with layer norm after
each part, dropout, AdamW, clipping and squared error; the same batches of noise, drawn once. A
training epoch of etth1 is 8,209 windows: its time is that of a round by the steps it takes, and its
ratio that of the rounds. The two take turns in rounds, and the ratio is that of the medians. Memory
is measured in a process of each one's own: how much larger its resident set is at most, in steps
after the first, than before the model is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from absl import app, flags, logging

from benchmarks.comparison import (
    define_flags,
    engine_steps,
    experiment,
    time_and_memory,
    torch_steps,
)

define_flags()
flags.DEFINE_integer("batch_size", 128, "Windows a step.", lower_bound=1)

CONFIG, WINDOWS = "configs/forecasting.py:etth1,patchtst", 8209
CHANNELS = tuple("ABCDEFG")


def batches(config, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Batches of noise."""
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


def here(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """A function that takes steps with this project's engine and returns the last loss."""
    from tasks.forecasting.processor import ForecastingProcessor
    from tasks.forecasting.task import Forecasting

    still = np.zeros(len(CHANNELS))
    processor = ForecastingProcessor(
        config.data, config.model, CHANNELS, still, still + 1, None, period=24
    )
    task = Forecasting(config.data, config.model, processor)
    return engine_steps(task, config, data)


def torch_eager(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """The same by transformers."""
    import torch
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    model = config.model
    theirs = PatchTSTConfig(
        num_input_channels=len(CHANNELS),
        context_length=config.data.lookback,
        prediction_length=config.data.horizon,
        patch_length=model.patch_length,
        patch_stride=model.patch_stride,
        num_hidden_layers=model.num_layers,
        d_model=model.model_size,
        num_attention_heads=model.num_heads,
        ffn_dim=model.feedforward_size,
        activation_function=model.activation,
        norm_type="layernorm",
        pre_norm=model.norm == "pre",
        positional_encoding_type="random",
        attention_dropout=model.attention_dropout_rate,
        positional_dropout=model.dropout_rate,
        path_dropout=model.dropout_rate,
        head_dropout=0.0,
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
        PatchTSTForPrediction(theirs).train(), config, tensors, lambda m, batch: m(**batch).loss
    )


def main(_: list[str]) -> None:
    """See `time_and_memory`."""
    from launch.engine import config as configs

    logging.set_verbosity(logging.WARNING)
    B = flags.FLAGS.batch_size
    config = configs.override(experiment(CONFIG), {"training.batch_size": B, "mesh.data": 1})
    if not flags.FLAGS.only:
        print(f"an epoch of etth1: {-(-WINDOWS // B)} steps")
    data = batches(config)
    time_and_memory(
        "benchmarks.steps.patchtst",
        {"here": lambda: here(config, data), "torch": lambda: torch_eager(config, data)},
        {"here": "tasks.forecasting.task", "torch": "transformers"},
        [f"--batch_size={B}"],
    )


if __name__ == "__main__":
    app.run(main)
