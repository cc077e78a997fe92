"""nanoGPT on its CPU budget, in JAX and in PyTorch eager.

The model is configs/language_modeling.py:tiny_shakespeare: 4 layers, 4 heads, model size 128,
context 64, batch size 12, AdamW and gradient clipping. A round of 2,000 steps is a complete
training run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import Vocabulary, engine_steps, experiment, torch_steps

CHARACTERS = 65


def setup(batch_size: int | None = None) -> tuple[Any, list]:
    """Returns the experiment and its batches."""
    config = experiment("configs/language_modeling.py:tiny_shakespeare")
    return config, batches(batch_size or config.training.batch_size, config.data.length)


def batches(batch_size: int, length: int, count: int = 20) -> list[dict[str, np.ndarray]]:
    """Returns batches of random characters, with the next character as the target."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(count):
        text = rng.integers(3, CHARACTERS, (batch_size, length + 1)).astype(np.int32)
        drawn.append(
            {
                "tokens": text[:, :-1],
                "targets": text[:, 1:],
                "length": np.full(batch_size, length, np.int32),
                "weight": np.ones(batch_size, np.float32),
                "id": np.arange(batch_size, dtype=np.int32),
            }
        )
    return drawn


def jax_step(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.language_modeling.processor import LanguageProcessor
    from tasks.language_modeling.task import LanguageModeling

    processor = LanguageProcessor(config.data, config.model, Vocabulary(CHARACTERS), begin=3)
    task = LanguageModeling(config.data, config.model, processor)
    return engine_steps(task, config, data)


def torch_step(
    config, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch; embeddings and logits are tied."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    sizes = config.model
    D, N, T = sizes.model_size, sizes.num_heads, config.data.length

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.norm = nn.LayerNorm(D), nn.LayerNorm(D)
            self.heads, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up = nn.Linear(D, sizes.feedforward_size)
            self.down = nn.Linear(sizes.feedforward_size, D)

        def forward(self, x):
            B = len(x)
            heads = self.heads(self.attention_norm(x)).view(B, T, 3, N, D // N)
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(CHARACTERS + 2, D), nn.Embedding(T, D)
            self.blocks = nn.ModuleList(Block() for _ in range(sizes.num_layers))
            self.norm = nn.LayerNorm(D)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.positions(torch.arange(T))
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T

    torch.manual_seed(0)
    model = Model().train()
    tensors = [
        tuple(torch.from_numpy(batch[name]).long() for name in ("tokens", "targets"))
        for batch in data
    ]

    def loss(model, batch):
        tokens, targets = batch
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

    return torch_steps(model, config, tensors, loss, compiled)
