"""Mask R-CNN (He et al. 2017) with shapes that never change, and so under jit: every picture has
the same number of proposals, regions and detections, and marks which of them are there. Without
masks it is Faster R-CNN (Ren et al. 2015).

B batch, Y X height and width, C channels, N anchors, P proposals, R regions to learn from, D
detections, M places for objects, K classes, S side of a mask.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tasks.detection.models import heads, losses, rpn
from tasks.detection.models.heads import BoxHead, Detections, HeadsConfig, MaskHead
from tasks.detection.models.pyramid import FeaturePyramid, standardize
from tasks.detection.models.rpn import RPNConfig, RPNHead
from tasks.detection.ops.anchors import anchors as make_anchors
from tasks.detection.ops.roi_align import mask_targets, multilevel_roi_align

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MaskRCNNConfig:
    """Mask R-CNN.

    Attributes:
      backbone: see `ResNetConfig`; its `attention` stands after each stage.
      first_stage: number, from 1, of the first stage that the pyramid takes.
      extra_levels: of the pyramid beyond the last stage.
      pyramid_channels: C.
      rpn: see `RPNConfig`; one anchor size for each level.
      heads: see `HeadsConfig`.
    """

    name: str = "mask_rcnn"
    backbone: ResNetConfig = dataclasses.field(default_factory=lambda: ResNetConfig(norm="group"))
    first_stage: int = 1
    extra_levels: int = 0
    pyramid_channels: int = 64
    rpn: RPNConfig = dataclasses.field(default_factory=RPNConfig)
    heads: HeadsConfig = dataclasses.field(default_factory=HeadsConfig)

    def __post_init__(self):
        stages = len(self.backbone.channels)
        if not 1 <= self.first_stage <= stages:
            raise ValueError(
                f"first_stage: got {self.first_stage}, expected a stage from 1 to {stages}"
            )
        if self.extra_levels < 0:
            raise ValueError(f"extra_levels: got {self.extra_levels}, expected at least 0")
        rpn.check_counts(self, "pyramid_channels")
        levels = stages - self.first_stage + 1 + self.extra_levels
        if len(self.rpn.sizes) != levels:
            raise ValueError(
                f"rpn.sizes: got {list(self.rpn.sizes)}, expected one size for each of {levels} "
                "levels"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one position to the next on each level, the finest first."""
        strides = self.backbone.strides[self.first_stage - 1 :]
        return (*strides, *(strides[-1] * 2 ** (n + 1) for n in range(self.extra_levels)))


class Features(NamedTuple):
    """What both stages read of a batch.

    Attributes:
      pyramid: maps [B, Yi, Xi, C].
      logits: of the anchors, [B, N].
      deltas: codes of the anchors' boxes, [B, N, 4].
      anchors: [N, 4].
      level_sizes: anchors of each level.
      weights: of the backbone's attention, by stage.
    """

    pyramid: list[Array]
    logits: Array
    deltas: Array
    anchors: np.ndarray
    level_sizes: list[int]
    weights: dict[str, Array]


class MaskRCNN(nnx.Module):
    """Boxes, classes and masks of what is in a picture.

    Args:
      config: see `MaskRCNNConfig`.
      channels: of the picture.
      classes: K.
      has_masks: whether there is a mask head.
    """

    def __init__(
        self,
        config: MaskRCNNConfig,
        channels: int,
        classes: int,
        *,
        has_masks: bool,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dtype = jnp.dtype(config.backbone.dtype)
        options = {"dtype": dtype, "rngs": rngs}
        C = config.pyramid_channels
        self.backbone = ResNet(config.backbone, channels, rngs=rngs)
        stages = config.backbone.channels[config.first_stage - 1 :]
        self.neck = FeaturePyramid(stages, C, extra=config.extra_levels, **options)
        self.rpn = RPNHead(C, len(config.rpn.ratios), **options)
        self.boxes = BoxHead(config.heads, C, classes, **options)
        self.masks = MaskHead(config.heads, C, classes, **options) if has_masks else None

    def features(
        self,
        images: Array,
        sizes: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        return_weights: bool = False,
    ) -> Features:
        """Pyramid and first stage.

        Args:
          images: [B, Y, X, C], values 0 to 255, padded below and to the right.
          sizes: int [B, 2], real height and width.
          valid: bool [B], the pictures that count in batch statistics, if there are any.
          training: whether to take the batch's statistics along, if there are any.
          return_weights: also return the attention's weights.
        """
        config = self.config
        maps, weights = self.backbone(
            standardize(images, sizes),
            valid=valid,
            training=training,
            return_weights=return_weights,
        )
        pyramid = self.neck(maps[config.first_stage - 1 :])
        logits, deltas = self.rpn(pyramid)
        sides = [level.shape[1:3] for level in pyramid]
        each = [(size,) for size in config.rpn.sizes]
        anchors = make_anchors(sides, config.strides, each, config.rpn.ratios)
        level_sizes = [rows * columns * len(config.rpn.ratios) for rows, columns in sides]
        return Features(pyramid, logits, deltas, anchors, level_sizes, weights)

    def losses(
        self,
        batch: Mapping[str, Array],
        keys: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
    ) -> dict[str, losses.LossTerm]:
        """The five losses of each picture (He et al. 2017, section 3), or four without masks.

        Args:
          batch: image [B, Y, X, C], size [B, 2], boxes [B, M, 4], labels [B, M] with -1 where there
            is no object, and instances [B, Y, X] where there are masks: 0, or the object's number
            from 1.
          keys: [B], by which anchors and regions are sampled.
          valid, training: as for `features`.

        Returns:
          "objectness", "proposal_box", "class", "box" and "mask", totals and counts [B].
        """
        found = self.features(batch["image"], batch["size"], valid=valid, training=training)
        split = jax.vmap(lambda key: jax.random.split(key))(keys)

        def first_stage(logits, deltas, boxes, labels, size, key):
            return rpn.proposal_losses(
                logits, deltas, found.anchors, boxes, labels >= 0, size, key, self.config.rpn
            )

        def regions_of(proposals, boxes, labels, key):
            return heads.sample_regions(proposals, boxes, labels, key, self.config.heads)

        truth = batch["boxes"], batch["labels"]
        objectness, proposal_box = jax.vmap(first_stage)(
            found.logits, found.deltas, *truth, batch["size"], split[:, 0]
        )
        regions = jax.vmap(regions_of)(self._propose(found, batch["size"]), *truth, split[:, 1])
        cut = self._cut(found.pyramid, regions.boxes, self.config.heads.box_side)
        class_loss, box_loss = jax.vmap(heads.box_losses)(*self.boxes(cut), regions)
        result = {
            "objectness": objectness,
            "proposal_box": proposal_box,
            "class": class_loss,
            "box": box_loss,
        }
        if self.masks is not None:
            result["mask"] = self._mask_losses(found.pyramid, regions, batch["instances"])
        return result

    def _mask_losses(
        self, pyramid: Sequence[Array], regions: heads.RegionSamples, instances: Array
    ) -> losses.LossTerm:
        """Of the places that positives can take: they come first."""
        own = jax.tree.map(lambda leaf: leaf[:, : self.config.heads.positives], regions)
        logits = self._mask_logits(pyramid, own.boxes, jnp.maximum(own.labels - 1, 0))
        side = logits.shape[-1]
        targets = jax.vmap(lambda ids, objects, boxes: mask_targets(ids, objects, boxes, side))(
            instances, own.objects, own.boxes
        )
        return jax.vmap(losses.masks)(logits, targets, (own.labels > 0) & own.valid)

    def detect(self, images: Array, sizes: Array) -> tuple[Detections, Array | None]:
        """What is in the pictures.

        Args:
          images, sizes: as for `features`.

        Returns:
          detections, and the probability that a part of a detection's box belongs to it, float32
          [B, D, S, S], 0 where there is no detection; None without a mask head.
        """
        found = self.features(images, sizes)
        proposals = self._propose(found, sizes)
        cut = self._cut(found.pyramid, proposals.boxes, self.config.heads.box_side)

        def of_one(logits, deltas, proposals, size):
            return heads.detect(logits, deltas, proposals, size, self.config.heads)

        detections = jax.vmap(of_one)(*self.boxes(cut), proposals, sizes)
        if self.masks is None:
            return detections, None
        logits = self._mask_logits(found.pyramid, detections.boxes, detections.labels)
        there = detections.valid[..., None, None]
        return detections, jnp.where(there, jax.nn.sigmoid(logits), 0)

    def attention(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Weights of the attention after each stage, first dimension B."""
        return self.features(images, sizes, return_weights=True).weights

    def _propose(self, found: Features, sizes: Array) -> rpn.Proposals:
        def of_one(logits, deltas, size):
            return rpn.propose(
                logits, deltas, found.anchors, found.level_sizes, size, self.config.rpn
            )

        logits, deltas = jax.lax.stop_gradient((found.logits, found.deltas))
        return jax.vmap(of_one)(logits, deltas, sizes)

    def _cut(self, pyramid: Sequence[Array], boxes: Array, side: int) -> Array:
        """boxes [B, n, 4] -> [B, n, side, side, C], each out of the level that fits its size."""

        def of_one(maps, boxes):
            return multilevel_roi_align(
                maps,
                boxes,
                self.config.strides,
                side,
                canonical_size=self.config.heads.canonical_side,
                canonical_level=round(math.log2(self.config.strides[0])),
            )

        return jax.vmap(of_one)(list(pyramid), boxes)

    def _mask_logits(self, pyramid: Sequence[Array], boxes: Array, classes: Array) -> Array:
        """boxes [B, n, 4] of classes [B, n] -> [B, n, S, S]."""
        B, n = boxes.shape[:2]
        cut = self._cut(pyramid, boxes, self.config.heads.mask_side)
        logits = self.masks(cut.reshape(B * n, *cut.shape[2:]))
        own = heads.select_class(logits, classes.reshape(-1), 3)
        return own.reshape(B, n, *own.shape[1:])
