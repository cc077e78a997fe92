"""Vision Transformer in JAX and in PyTorch.

The model has the sizes and options of configs/image_classification.py:fashion_mnist,vit: 49
patches, four layers, a pool with a learned query, dropout, AdamW and gradient clipping, without
augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import engine_steps, torch_steps, unaugmented

CONFIG, CLASSES = "configs/image_classification.py:fashion_mnist,vit", 10


def setup(batch_size: int | None = None) -> tuple[Any, list]:
    """Returns the experiment without EMA, which the PyTorch model lacks, and its batches."""
    changes: dict[str, Any] = {"optimizer__average_decay": 0.0}
    if batch_size is not None:
        changes["training__batch_size"] = batch_size
    config = unaugmented(CONFIG, **changes)
    return config, batches(config.training.batch_size, config.data.image_shape)


def batches(
    batch_size: int, shape: tuple[int, int, int], count: int = 4
) -> list[dict[str, np.ndarray]]:
    """Returns batches of noise with random classes."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (batch_size, *shape)).astype(np.uint8),
            "label": rng.integers(0, CLASSES, batch_size).astype(np.int32),
            "weight": np.ones(batch_size, np.float32),
            "id": np.arange(batch_size, dtype=np.int32),
        }
        for _ in range(count)
    ]


def jax_step(config: Any, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.image_classification.task import ImageClassification, ImageProcessor

    processor = ImageProcessor(config.data, config.model, [str(n) for n in range(CLASSES)])
    task = ImageClassification(config.data, config.model, processor)
    return engine_steps(task, config, data)


def torch_step(
    config: Any, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch's encoder layer."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    sizes, (Y, _, C) = config.model, config.data.image_shape
    D, size = sizes.model_size, sizes.patch_size

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(C, D, size, stride=size)
            self.positions = nn.Parameter(0.02 * torch.randn((Y // size) ** 2, D))
            layer = nn.TransformerEncoderLayer(
                D,
                sizes.num_heads,
                sizes.feedforward_size,
                sizes.dropout_rate,
                activation=sizes.activation,
                batch_first=True,
                norm_first=sizes.norm == "pre",
            )
            self.encoder = nn.TransformerEncoder(
                layer, sizes.num_layers, norm=nn.LayerNorm(D), enable_nested_tensor=False
            )
            self.query = nn.Parameter(torch.randn(1, 1, D) * D**-0.5)
            self.pool = nn.MultiheadAttention(D, sizes.num_heads, batch_first=True)
            self.dropout = nn.Dropout(sizes.dropout_rate)
            self.head_dropout = nn.Dropout(sizes.head_dropout_rate)
            self.classify = nn.Linear(D, CLASSES)

        def forward(self, images):
            x = self.embed(images / 255).flatten(2).transpose(1, 2) + self.positions
            x = self.encoder(self.dropout(x))
            query = self.query.expand(len(x), 1, D)
            pooled, _ = self.pool(query, x, x, need_weights=False)
            return self.classify(self.head_dropout(pooled[:, 0]))

    torch.manual_seed(0)
    model = Classifier().train()
    tensors = [
        (
            torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float(),
            torch.from_numpy(batch["label"]).long(),
        )
        for batch in data
    ]

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    return torch_steps(model, config, tensors, loss, compiled)
