"""Mask R-CNN at batch size 4, in JAX and in torchvision.

tests/oracles/families/torchvision_detection.py describes an environment in which torchvision can be
imported. Install requirements.txt there, too. In this environment, transformers cannot be imported,
so models that are compared with it are measured in another one. The model has the sizes and options
of configs/detection.py:nuclei with AdamW and gradient clipping, without augmentation. torchvision
uses the same number of proposals and regions, but computes masks for positive regions only. The JAX
model computes masks for padding regions too.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.comparison import engine_steps, torch_steps, unaugmented

CONFIG, SIDE, MAX_OBJECTS = "configs/detection.py:nuclei", 256, 101


def setup(batch_size: int | None = None, objects: int = 30) -> tuple[Any, list]:
    """Returns the experiment without augmentation, and its batches.

    Args:
      batch_size: images per batch; that of the config if None.
      objects: number of objects in each image.
    """
    changes = {} if batch_size is None else {"training__batch_size": batch_size}
    config = unaugmented(CONFIG, **changes)
    return config, batches(config.training.batch_size, objects)


def batches(B: int, n: int, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Returns batches of images of bright discs on noise; later discs cover earlier ones.

    Args:
      B: images per batch.
      n: discs per image.
      count: number of batches.
    """
    from tasks.detection.ops.masks import masks_to_boxes

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    drawn = []
    for _ in range(count):
        batch = {
            "image": rng.integers(0, 60, (B, SIDE, SIDE, 3)).astype(np.uint8),
            "size": np.full((B, 2), SIDE, np.int32),
            "boxes": np.zeros((B, MAX_OBJECTS, 4), np.float32),
            "labels": np.full((B, MAX_OBJECTS), -1, np.int32),
            "instances": np.zeros((B, SIDE, SIDE), np.uint16),
            "weight": np.ones(B, np.float32),
            "id": np.arange(B, dtype=np.int32),
        }
        for row in range(B):
            for number in range(n):
                radius, center = rng.integers(3, 14), rng.integers(14, SIDE - 14, 2)
                disc = (y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2
                batch["image"][row][disc] = rng.integers(90, 255)
                batch["instances"][row][disc] = number + 1
            masks = batch["instances"][row] == np.arange(1, n + 1)[:, None, None]
            seen = masks.sum(axis=(1, 2)) > 4
            batch["boxes"][row, :n][seen] = masks_to_boxes(masks[seen])
            batch["labels"][row, :n][seen] = 0
        drawn.append(batch)
    return drawn


def jax_step(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss."""
    from tasks.detection.task import Detection

    assets = {"names": ["object"], "has_masks": True, "image_size": SIDE}
    task = Detection.restore(config.data, config.model, assets)
    return engine_steps(task, config, data)


def torch_step(
    config, data: list[dict[str, np.ndarray]], compiled: bool = False
) -> Callable[[int], float]:
    """Returns a function that takes train steps with torchvision's Mask R-CNN."""
    import torch
    from torch import nn

    from benchmarks.torchvision_cpu import load_torchvision
    from tasks.common.backbones.convolutional import groups_of

    torchvision = load_torchvision()
    from torchvision.models import detection
    from torchvision.models.detection import faster_rcnn, mask_rcnn
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    backbone, C = config.model.backbone, config.model.pyramid_channels
    rpn, heads = config.model.rpn, config.model.heads

    def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.GroupNorm(groups_of(outputs), outputs),
        )

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.first = convolution(inputs, outputs, stride=stride)
            self.second = convolution(outputs, outputs)
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

        def forward(self, x):
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    class Backbone(nn.Module):
        out_channels = C

        def __init__(self):
            super().__init__()
            channels = backbone.channels
            self.stem = convolution(3, channels[0], stride=backbone.stem_stride)
            self.stages = nn.ModuleList()
            pairs = itertools.pairwise((channels[0], *channels))
            for number, ((i, o), depth) in enumerate(zip(pairs, backbone.depths, strict=True)):
                blocks = [Block(i, o, 2 if number else 1)]
                self.stages.append(
                    nn.Sequential(*blocks, *(Block(o, o, 1) for _ in range(depth - 1)))
                )
            self.neck = torchvision.ops.FeaturePyramidNetwork(list(channels), C)

        def forward(self, x):
            x, maps = torch.relu(self.stem(x)), OrderedDict()
            for number, stage in enumerate(self.stages):
                x = stage(x)
                maps[str(number)] = x
            return self.neck(maps)

    levels = [str(number) for number in range(len(backbone.channels))]
    scale = {"canonical_scale": int(heads.canonical_scale), "canonical_level": 1}

    def pool(side: int):
        return torchvision.ops.MultiScaleRoIAlign(levels, side, 2, **scale)

    torch.manual_seed(0)
    sides = [(size,) for size in rpn.sizes]
    numbers = {"rpn_pre_nms_top_n_train": rpn.pre_nms_top_k}
    numbers |= {"rpn_post_nms_top_n_train": rpn.post_nms_top_k}
    overlaps = {"rpn_fg_iou_thresh": rpn.positive_iou, "rpn_bg_iou_thresh": rpn.negative_iou}
    overlaps |= {"rpn_nms_thresh": rpn.nms_iou}
    model = detection.MaskRCNN(
        Backbone(),
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=AnchorGenerator(sides, (rpn.ratios,) * len(sides)),
        rpn_batch_size_per_image=rpn.samples,
        **numbers,
        **overlaps,
        box_roi_pool=pool(heads.box_resolution),
        box_head=faster_rcnn.TwoMLPHead(C * heads.box_resolution**2, heads.hidden_size),
        box_predictor=faster_rcnn.FastRCNNPredictor(heads.hidden_size, 2),
        box_batch_size_per_image=heads.samples,
        box_positive_fraction=heads.positive_fraction,
        mask_roi_pool=pool(heads.mask_resolution),
        mask_head=mask_rcnn.MaskRCNNHeads(
            C, (heads.mask_channels,) * heads.mask_convolutions, dilation=1
        ),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(heads.mask_channels, heads.mask_channels, 2),
    ).train()

    def targets(batch: dict[str, np.ndarray], row: int) -> dict[str, torch.Tensor]:
        there = np.flatnonzero(batch["labels"][row] >= 0)
        masks = batch["instances"][row] == (there + 1)[:, None, None]
        return {
            "boxes": torch.from_numpy(batch["boxes"][row][there]),
            "labels": torch.from_numpy(batch["labels"][row][there] + 1).long(),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
        }

    tensors = [
        (
            [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in batch["image"]],
            [targets(batch, row) for row in range(len(batch["image"]))],
        )
        for batch in data
    ]
    return torch_steps(
        model, config, tensors, lambda model, batch: sum(model(*batch).values()), compiled
    )
