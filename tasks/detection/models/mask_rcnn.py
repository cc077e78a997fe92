"""Mask R-CNN (He et al. 2017), or Faster R-CNN (Ren et al. 2015) without masks, with static shapes.

Every image has the same numbers of proposals, regions and detections; boolean arrays `valid` are
False for padding.

In shapes, B is the batch size, Y and X are height and width, C is the number of channels, N the
number of anchors, P the number of proposals, R the number of sampled regions, D the number of
detections, M the number of objects including padding, K the number of classes, and S the side of a
mask.
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

from attention.sharding import over_examples
from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tasks.common.configs import Config, NonNegativeInt, PositiveInt
from tasks.detection.models import heads, losses, rpn
from tasks.detection.models.heads import BoxHead, Detections, HeadsConfig, MaskHead
from tasks.detection.models.pyramid import FeaturePyramid, standardize
from tasks.detection.models.rpn import RPNConfig, RPNHead
from tasks.detection.ops.anchors import anchors as make_anchors
from tasks.detection.ops.roi_align import mask_targets, multilevel_roi_align

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MaskRCNNConfig(Config):
    """Config of Mask R-CNN.

    Attributes:
      backbone: config of the backbone; its `attention` is applied after each stage.
      first_stage: first stage of the backbone that the pyramid uses, counted from 1.
      extra_levels: number of levels of the pyramid beyond the last stage.
      pyramid_channels: C, number of channels of the pyramid.
      rpn: config of the region proposal network, with one anchor size for each level.
      heads: config of the second stage.
    """

    name: str = "mask_rcnn"
    backbone: ResNetConfig = dataclasses.field(default_factory=lambda: ResNetConfig(norm="group"))
    first_stage: PositiveInt = 1
    extra_levels: NonNegativeInt = 0
    pyramid_channels: PositiveInt = 64
    rpn: RPNConfig = dataclasses.field(default_factory=RPNConfig)
    heads: HeadsConfig = dataclasses.field(default_factory=HeadsConfig)

    def __post_init__(self):
        super().__post_init__()
        stages = len(self.backbone.channels)
        self.expect("first_stage", self.first_stage <= stages, f"a stage from 1 to {stages}")
        levels = stages - self.first_stage + 1 + self.extra_levels
        if len(self.rpn.sizes) != levels:
            raise ValueError(
                f"rpn.sizes: got {list(self.rpn.sizes)}, expected one size for each of {levels} "
                "levels"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level, finest level first."""
        strides = self.backbone.strides[self.first_stage - 1 :]
        return (*strides, *(strides[-1] * 2 ** (n + 1) for n in range(self.extra_levels)))


class Features(NamedTuple):
    """Feature pyramid of a batch, and outputs of the region proposal network.

    Attributes:
      pyramid: feature maps, [B, Yi, Xi, C] each, finest level first.
      logits: logits of the anchors, [B, N].
      deltas: deltas of the anchors' boxes, [B, N, 4].
      anchors: boxes of the anchors, [N, 4].
      level_sizes: number of anchors of each level.
      weights: attention weights of the backbone by stage.
    """

    pyramid: list[Array]
    logits: Array
    deltas: Array
    anchors: np.ndarray
    level_sizes: list[int]
    weights: dict[str, Array]


class MaskRCNN(nnx.Module):
    """Detector of boxes, classes and masks.

    Args:
      config: config of the model.
      channels: channels of the images.
      classes: K, number of classes.
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
        """Computes the feature pyramid and the outputs of the region proposal network.

        Args:
          images: [B, Y, X, C], values 0 to 255, padded below and to the right.
          sizes: int [B, 2], height and width without padding.
          valid: bool [B], images to include in batch statistics.
          training: whether to update the batch statistics.
          return_weights: whether to return the attention weights.
        """
        config = self.config
        flags = {"valid": valid, "training": training, "return_weights": return_weights}
        maps, weights = self.backbone(standardize(images, sizes), **flags)
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
        """Computes the losses of each image (He et al. 2017, section 3).

        There are five terms, or four without masks.

        Args:
          batch: image [B, Y, X, C]; size [B, 2]; boxes [B, M, 4]; labels [B, M], -1 for padding;
            and, with a mask head, instances [B, Y, X], k + 1 at pixels of object k and 0 elsewhere.
          keys: random keys [B] of the sampling of anchors and regions.
          valid, training: as for `features`.

        Returns:
          The terms "objectness", "proposal_box", "class", "box" and, with masks, "mask", each with
          its total and count [B].
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
        objectness, proposal_box = over_examples(
            jax.vmap(first_stage), found.logits, found.deltas, *truth, batch["size"], split[:, 0]
        )
        proposals = self._propose(found, batch["size"])
        regions = over_examples(jax.vmap(regions_of), proposals, *truth, split[:, 1])
        crops = self._crop(found.pyramid, regions.boxes, self.config.heads.box_resolution)
        class_loss, box_loss = over_examples(
            jax.vmap(heads.box_losses), *self.boxes(crops), regions
        )
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
        """Computes the mask losses of positive regions, which are the first regions of an image."""
        own = jax.tree.map(lambda leaf: leaf[:, : self.config.heads.positives], regions)
        logits = self._mask_logits(pyramid, own.boxes, jnp.maximum(own.labels - 1, 0))
        side = logits.shape[-1]
        targets = over_examples(
            jax.vmap(lambda ids, objects, boxes: mask_targets(ids, objects, boxes, side)),
            *(instances, own.objects, own.boxes),
        )
        counted = (own.labels > 0) & own.valid
        return over_examples(jax.vmap(losses.masks), logits, targets, counted)

    def detect(self, images: Array, sizes: Array) -> tuple[Detections, Array | None]:
        """Detects objects.

        Args:
          images, sizes: as for `features`.

        Returns:
          Detections; and mask probabilities within their boxes, float32 [B, D, S, S], 0 for
          padding, or None without a mask head.
        """
        found = self.features(images, sizes)
        proposals = self._propose(found, sizes)
        crops = self._crop(found.pyramid, proposals.boxes, self.config.heads.box_resolution)

        def of_one(logits, deltas, proposals, size):
            return heads.detect(logits, deltas, proposals, size, self.config.heads)

        detections = over_examples(jax.vmap(of_one), *self.boxes(crops), proposals, sizes)
        if self.masks is None:
            return detections, None
        logits = self._mask_logits(found.pyramid, detections.boxes, detections.labels)
        valid = detections.valid[..., None, None]
        return detections, jnp.where(valid, jax.nn.sigmoid(logits), 0)

    def attention(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Returns the attention weights of the backbone by stage, with leading dimension B."""
        return self.features(images, sizes, return_weights=True).weights

    def _propose(self, found: Features, sizes: Array) -> rpn.Proposals:
        def of_one(logits, deltas, size):
            return rpn.propose(
                logits, deltas, found.anchors, found.level_sizes, size, self.config.rpn
            )

        logits, deltas = jax.lax.stop_gradient((found.logits, found.deltas))
        return over_examples(jax.vmap(of_one), logits, deltas, sizes)

    def _crop(self, pyramid: Sequence[Array], boxes: Array, side: int) -> Array:
        """Pools the features of boxes, each from the level of the pyramid that fits its size.

        Args:
          pyramid: feature maps, [B, Yi, Xi, C] each.
          boxes: [B, n, 4].
          side: number of bins along each side.

        Returns:
          [B, n, side, side, C].
        """

        def of_one(maps, boxes):
            return multilevel_roi_align(
                maps,
                boxes,
                self.config.strides,
                side,
                canonical_size=self.config.heads.canonical_scale,
                canonical_level=round(math.log2(self.config.strides[0])),
            )

        return over_examples(jax.vmap(of_one), list(pyramid), boxes)

    def _mask_logits(self, pyramid: Sequence[Array], boxes: Array, classes: Array) -> Array:
        """Computes the mask logits of boxes, each for one class.

        Args:
          pyramid: feature maps, [B, Yi, Xi, C] each.
          boxes: [B, n, 4].
          classes: class of each box, int [B, n], from 0.

        Returns:
          [B, n, S, S].
        """
        B, n = boxes.shape[:2]
        crops = self._crop(pyramid, boxes, self.config.heads.mask_resolution)
        logits = self.masks(crops.reshape(B * n, *crops.shape[2:]))
        own = heads.select_class(logits, classes.reshape(-1), 3)
        return own.reshape(B, n, *own.shape[1:])
