"""Transformer text classifier in JAX and in PyTorch.

The model has the sizes and options of configs/text_classification.py:sst2 with dropout, AdamW and
gradient clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import Vocabulary, engine_steps, experiment, torch_steps

CONFIG, VOCABULARY, CLASSES = "configs/text_classification.py:sst2", 14_000, 2


def setup(batch_size: int | None = None, length: int = 32) -> tuple[Any, list]:
    """Returns the experiment and its batches."""
    config = experiment(CONFIG)
    return config, batches(batch_size or config.training.batch_size, length)


def batches(batch_size: int, length: int, count: int = 10) -> list[dict[str, np.ndarray]]:
    """Returns batches of random texts, whose lengths are between half of `length` and `length`."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        lengths = rng.integers(length // 2 + 1, length + 1, batch_size).astype(np.int32)
        tokens = rng.integers(3, VOCABULARY, (batch_size, length)).astype(np.int32)
        tokens[np.arange(length)[None, :] >= lengths[:, None]] = 0
        drawn.append(
            {
                "tokens": tokens,
                "length": lengths,
                "label": rng.integers(0, CLASSES, batch_size).astype(np.int32),
                "weight": np.ones(batch_size, np.float32),
                "id": np.arange(batch_size, dtype=np.int32),
            }
        )
    return drawn


def jax_step(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.text_classification.task import TextClassification, TextProcessor

    buckets = [data[0]["tokens"].shape[1]]
    processor = TextProcessor(
        config.data, config.model, ["no", "yes"], buckets, Vocabulary(VOCABULARY)
    )
    task = TextClassification(config.data, config.model, processor)
    return engine_steps(task, config, data)


def torch_step(
    config, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch's encoder layer."""
    import torch
    from torch import nn

    model_config = config.model

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            size = model_config.model_size
            self.tokens = nn.Embedding(VOCABULARY, size)
            layer = nn.TransformerEncoderLayer(
                size,
                model_config.num_heads,
                model_config.feedforward_size,
                model_config.dropout_rate,
                activation=model_config.activation,
                batch_first=True,
                norm_first=model_config.norm == "pre",
            )
            self.encoder = nn.TransformerEncoder(
                layer,
                model_config.num_layers,
                norm=nn.LayerNorm(size),
                enable_nested_tensor=False,
            )
            self.dropout = nn.Dropout(model_config.dropout_rate)
            self.head_dropout = nn.Dropout(model_config.head_dropout_rate)
            self.classify = nn.Linear(size, CLASSES)
            position = torch.arange(512)[:, None]
            rate = torch.exp(torch.arange(0, size, 2) * (-np.log(10000.0) / size))
            table = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], -1)
            self.register_buffer("positions", table.reshape(512, size))

        def forward(self, tokens, lengths):
            length = tokens.shape[1]
            valid = torch.arange(length)[None, :] < lengths[:, None]
            visible = valid & (torch.rand(valid.shape) >= model_config.token_dropout_rate)
            x = self.dropout(self.tokens(tokens) + self.positions[:length])
            x = self.encoder(x, src_key_padding_mask=~visible)
            weight = visible.float()[..., None]
            pooled = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
            return self.classify(self.head_dropout(pooled))

    torch.manual_seed(0)
    model = Classifier().train()
    tensors = [
        {name: torch.from_numpy(value).long() for name, value in batch.items()} for batch in data
    ]

    def loss(model, batch):
        logits = model(batch["tokens"], batch["length"])
        return nn.functional.cross_entropy(logits, batch["label"])

    return torch_steps(model, config, tensors, loss, compiled)
