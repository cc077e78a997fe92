"""Transformer translator in JAX and in PyTorch.

The model has the sizes and options of configs/translation.py: four layers on each side, tied
embeddings, dropout, label smoothing, AdamW and gradient clipping.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import experiment, torch_steps
from benchmarks.steps import recurrent

CONFIG, VOCABULARY = "configs/translation.py:multi30k", 10_000


def setup(batch_size: int | None = None, length: int = 24) -> tuple[Any, list]:
    """Returns the experiment and its batches. EMA is off, because the PyTorch model lacks it."""
    from launch.engine import config as configs

    config = configs.override(experiment(CONFIG), {"optimizer.average_decay": 0.0})
    return config, recurrent.batches(
        batch_size or config.training.batch_size, length, vocabulary=VOCABULARY
    )


jax_step = functools.partial(recurrent.jax_step, vocabulary=VOCABULARY)


def torch_step(
    config: Any, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch's Transformer layers."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    sizes = config.model
    V, D = VOCABULARY + 2, sizes.model_size
    options = {
        "d_model": D,
        "nhead": sizes.num_heads,
        "dim_feedforward": sizes.feedforward_size,
        "dropout": sizes.dropout_rate,
        "activation": sizes.activation,
        "batch_first": True,
        "norm_first": sizes.norm == "pre",
    }

    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(V, D)
            nn.init.normal_(self.words.weight, std=D**-0.5)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**options),
                sizes.num_layers,
                norm=nn.LayerNorm(D),
                enable_nested_tensor=False,
            )
            self.decoder = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**options), sizes.decoder_layers, norm=nn.LayerNorm(D)
            )
            self.dropout = nn.Dropout(sizes.dropout_rate)
            position = torch.arange(sizes.max_length)[:, None]
            rate = torch.exp(torch.arange(0, D, 2) * (-np.log(10000.0) / D))
            table = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], -1)
            self.register_buffer("positions", table.reshape(-1, D))

        def embed(self, tokens):
            x = self.words(tokens) * D**0.5 + self.positions[: tokens.shape[1]]
            return self.dropout(x)

        def forward(self, source, target):
            hidden = source == 0
            memory = self.encoder(self.embed(source), src_key_padding_mask=hidden)
            start = torch.full_like(target[:, :1], VOCABULARY)
            given = torch.cat([start, target[:, :-1]], 1)
            T = target.shape[1]
            later = torch.ones(T, T, dtype=torch.bool).triu(1)
            y = self.decoder(
                self.embed(given),
                memory,
                tgt_mask=later,
                tgt_is_causal=True,
                memory_key_padding_mask=hidden,
            )
            return y @ self.words.weight.T

    torch.manual_seed(0)
    model = Translator().train()
    tensors = [
        tuple(torch.from_numpy(batch[side]).long() for side in ("source", "target"))
        for batch in data
    ]

    def loss(model, batch):
        logits, target = model(*batch), batch[1]
        return F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=0,
            label_smoothing=sizes.label_smoothing,
        )

    return torch_steps(model, config, tensors, loss, compiled)
