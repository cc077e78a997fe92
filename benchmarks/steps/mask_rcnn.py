"""Train steps of Mask R-CNN at batch 4, here and in torchvision, side by side: time, and memory at
its peak.

python -m benchmarks.steps.mask_rcnn

in an environment where torchvision loads: tests/oracles/families/torchvision_detection.py says how
to make one; add requirements.txt. The same model: sizes and options of configs/detection.py:nuclei,
AdamW, clipping; the same pictures, drawn once, with no augmentation on either side. torchvision
takes as many proposals and regions, but masks only of those that are objects: what is padding here,
it does not compute. The two take turns in rounds, and the ratio is that of the medians. Memory is
measured in a process of each one's own: how much larger its resident set is at most, in steps after
the first, than before the model is made.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from absl import app, flags, logging

from benchmarks.comparison import (
    define_flags,
    engine_steps,
    time_and_memory,
    torch_steps,
    unaugmented,
)

define_flags()
flags.DEFINE_integer("objects", 30, "Objects of a picture.", lower_bound=1)

CONFIG, SIDE, PLACES = "configs/detection.py:nuclei", 256, 101


def batches(config, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Batches of bright discs on noise, each on top of those before it."""
    from tasks.detection.ops.masks import masks_to_boxes

    rng, B, n = np.random.default_rng(0), config.training.batch_size, flags.FLAGS.objects
    y, x = np.mgrid[:SIDE, :SIDE]
    drawn = []
    for _ in range(count):
        batch = {
            "image": rng.integers(0, 60, (B, SIDE, SIDE, 3)).astype(np.uint8),
            "size": np.full((B, 2), SIDE, np.int32),
            "boxes": np.zeros((B, PLACES, 4), np.float32),
            "labels": np.full((B, PLACES), -1, np.int32),
            "instances": np.zeros((B, SIDE, SIDE), np.uint16),
            "weight": np.ones(B, np.float32),
            "id": np.arange(B, dtype=np.int32),
        }
        for row in range(B):
            for number in range(n):
                radius, middle = rng.integers(3, 14), rng.integers(14, SIDE - 14, 2)
                disc = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 <= radius**2
                batch["image"][row][disc] = rng.integers(90, 255)
                batch["instances"][row][disc] = number + 1
            masks = batch["instances"][row] == np.arange(1, n + 1)[:, None, None]
            seen = masks.sum(axis=(1, 2)) > 4
            batch["boxes"][row, :n][seen] = masks_to_boxes(masks[seen])
            batch["labels"][row, :n][seen] = 0
        drawn.append(batch)
    return drawn


def here(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """A function that takes steps with this project's engine and returns the last loss."""
    from tasks.detection.task import Detection

    task = Detection(config.data, config.model, ["object"], True, SIDE)
    return engine_steps(task, config, data)


def torch_eager(config, data: list[dict[str, np.ndarray]]) -> Callable[[int], float]:
    """The same with torchvision's Mask R-CNN on a residual network of the same sizes."""
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
    scale = {"canonical_scale": int(heads.canonical_side), "canonical_level": 1}

    def pool(side: int):
        return torchvision.ops.MultiScaleRoIAlign(levels, side, 2, **scale)

    torch.manual_seed(0)
    sides = [(size,) for size in rpn.sizes]
    model = detection.MaskRCNN(
        Backbone(),
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=AnchorGenerator(sides, (rpn.ratios,) * len(sides)),
        rpn_pre_nms_top_n_train=rpn.candidates,
        rpn_post_nms_top_n_train=rpn.proposals,
        rpn_nms_thresh=rpn.suppression_iou,
        rpn_fg_iou_thresh=rpn.positive_iou,
        rpn_bg_iou_thresh=rpn.negative_iou,
        rpn_batch_size_per_image=rpn.samples,
        box_roi_pool=pool(heads.box_side),
        box_head=faster_rcnn.TwoMLPHead(C * heads.box_side**2, heads.hidden_size),
        box_predictor=faster_rcnn.FastRCNNPredictor(heads.hidden_size, 2),
        box_batch_size_per_image=heads.samples,
        box_positive_fraction=heads.positive_share,
        mask_roi_pool=pool(heads.mask_side),
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
    return torch_steps(model, config, tensors, lambda model, batch: sum(model(*batch).values()))


def main(_: list[str]) -> None:
    """See `time_and_memory`."""
    logging.set_verbosity(logging.WARNING)
    config = unaugmented(CONFIG)
    data = batches(config)
    time_and_memory(
        "benchmarks.steps.mask_rcnn",
        {"here": lambda: here(config, data), "torch": lambda: torch_eager(config, data)},
        {"here": "tasks.detection.task", "torch": "torch"},
        [f"--objects={flags.FLAGS.objects}"],
    )


if __name__ == "__main__":
    app.run(main)
