"""U-Net in JAX and in PyTorch.

The model has the sizes and options of configs/segmentation.py:camvid with dropout, AdamW, gradient
clipping and cross-entropy alone, without augmentation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import engine_steps, torch_steps, unaugmented

CONFIG, CLASSES = "configs/segmentation.py:camvid", 11


def setup(batch_size: int | None = None) -> tuple[Any, list]:
    """Returns the experiment and its batches.

    The experiment has no augmentation, and cross-entropy is its only loss.
    """
    config = unaugmented(CONFIG, training__batch_size=batch_size or 8, model__loss__dice=0.0)
    return config, batches(config)


def batches(config, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Returns batches of noise."""
    rng, B = np.random.default_rng(0), config.training.batch_size
    size = (B, *config.data.image_size)
    return [
        {
            "image": rng.integers(0, 256, (*size, 3)).astype(np.uint8),
            "labels": rng.integers(0, CLASSES, size).astype(np.uint8),
            "weight": np.ones(B, np.float32),
            "id": np.arange(B, dtype=np.int32),
        }
        for _ in range(count)
    ]


def jax_step(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.segmentation.task import Segmentation

    names = [str(number) for number in range(CLASSES)]
    task = Segmentation.restore(config.data, config.model, {"names": names})
    task.class_weights = np.ones(CLASSES, np.float32)
    return engine_steps(task, config, data)


def torch_step(
    config, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch in channels-last layout."""
    import torch
    from torch import nn
    from torch.nn import functional

    P, channels = config.model.patch_size, config.model.channels

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        layers = []
        for size in (inputs, outputs):
            layers += [
                nn.Conv2d(size, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs, momentum=config.model.momentum),
                nn.ReLU(),
            ]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            pairs = list(itertools.pairwise(channels))
            sizes = itertools.pairwise((3 * P * P, *channels))
            self.encoder = nn.ModuleList([stage(*pair) for pair in sizes])
            self.up = nn.ModuleList([nn.ConvTranspose2d(c, f, 2, stride=2) for f, c in pairs])
            self.decoder = nn.ModuleList([stage(2 * fine, fine) for fine, _ in pairs])
            self.classify = nn.Conv2d(channels[0], CLASSES * P * P, 1)
            self.dropout = nn.Dropout(config.model.dropout_rate)

        def forward(self, images):
            x, skips = functional.pixel_unshuffle(images, P), []
            for number, stage in enumerate(self.encoder):
                if number:
                    x = functional.max_pool2d(x, 2, ceil_mode=True)
                x = stage(x)
                skips.append(x)
            x = self.dropout(x)
            for number in range(len(self.decoder) - 1, -1, -1):
                skip = skips[number]
                x = self.up[number](x)[..., : skip.shape[2], : skip.shape[3]]
                x = self.decoder[number](torch.cat([skip, x], 1))
            return functional.pixel_shuffle(self.classify(x), P)

    torch.manual_seed(0)
    model = UNet().train().to(memory_format=torch.channels_last)
    tensors = [
        {
            "image": torch.from_numpy(batch["image"]).permute(0, 3, 1, 2),
            "labels": torch.from_numpy(batch["labels"]).long(),
        }
        for batch in data
    ]

    def loss(model, batch):
        logits = model(4 * batch["image"].float() / 255 - 2)
        return functional.cross_entropy(logits, batch["labels"])

    return torch_steps(model, config, tensors, loss, compiled)
