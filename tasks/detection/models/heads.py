"""Second stage of Mask R-CNN: class, box and mask of each region (Girshick 2015, He et al. 2017).

In shapes, R is the number of sampled regions of an image, P the number of proposals, K the number
of classes, C the number of channels of the pyramid, D the number of detections, and M the number of
objects including padding.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention.image.maps import kernel_init
from attention.projection import Projection
from tasks.common.backbones.convolutional import Convolution
from tasks.common.configs import Config, Fraction, PositiveFloat, PositiveInt
from tasks.detection.models import losses
from tasks.detection.models.rpn import Proposals, initialize_small
from tasks.detection.ops.boxes import clip, decode, encode, iou
from tasks.detection.ops.matching import BETWEEN, match, sample
from tasks.detection.ops.nms import batched_nms

Array = jax.Array

# Factors of the deltas, see `encode`. With them, targets have about unit variance (Girshick 2015).
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclasses.dataclass(frozen=True)
class HeadsConfig(Config):
    """Config of the second stage.

    Attributes:
      positive_iou: IoU from which on a region has the class of the object that it overlaps most.
        Other regions are background.
      samples: number of regions per image in training.
      positive_fraction: maximum fraction of positive regions among the samples. Only positive
        regions have a mask loss.
      box_resolution: side length in cells of the features that RoIAlign pools for the box head.
      hidden_size: size of the two hidden layers of the box head.
      mask_resolution: side length in cells of the features that RoIAlign pools for the mask head;
        the predicted mask is twice as large.
      mask_channels: number of channels of the mask convolutions.
      mask_convolutions: number of mask convolutions.
      class_agnostic: whether to predict one box and mask per region instead of one per class.
      canonical_scale: side in pixels of regions that are pooled from the finest level of the
        pyramid; the side doubles with each level.
      score_threshold: minimum probability of a detection.
      nms_iou: IoU above which NMS removes the worse of two detections of a class.
      pre_nms_top_k: number of pairs of region and class that are kept before NMS.
      detections: D, maximum number of detections of an image.
    """

    positive_iou: Fraction = 0.5
    samples: PositiveInt = 128
    positive_fraction: Fraction = dataclasses.field(
        default=0.25, metadata={"formerly": "positive_share"}
    )
    box_resolution: PositiveInt = dataclasses.field(default=7, metadata={"formerly": "box_side"})
    hidden_size: PositiveInt = 256
    mask_resolution: PositiveInt = dataclasses.field(default=14, metadata={"formerly": "mask_side"})
    mask_channels: PositiveInt = 64
    mask_convolutions: PositiveInt = 4
    class_agnostic: bool = False
    canonical_scale: PositiveFloat = dataclasses.field(
        default=16.0, metadata={"formerly": "canonical_side"}
    )
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = dataclasses.field(default=0.5, metadata={"formerly": "suppression_iou"})
    pre_nms_top_k: PositiveInt = dataclasses.field(default=400, metadata={"formerly": "candidates"})
    detections: PositiveInt = 100

    def __post_init__(self):
        super().__post_init__()
        expected = f"a fraction that gives at least one positive region with samples={self.samples}"
        self.expect("positive_fraction", self.positives >= 1, expected)

    @property
    def positives(self) -> int:
        """Maximum number of positive regions of an image in training."""
        return int(self.samples * self.positive_fraction)


class BoxHead(nnx.Module):
    """Head that maps the features x of a region to class logits and box deltas.

        h = relu(W_2 relu(W_1 x)),   logits = h W + b,   deltas = h V + c

    Args:
      config: config of the heads.
      channels: C, number of channels of the pyramid.
      classes: K, number of classes without the background.
      dtype: dtype of h; the results are float32.
    """

    def __init__(
        self, config: HeadsConfig, channels: int, classes: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        side, hidden = config.box_resolution, config.hidden_size
        self.first = Projection((side, side, channels), (hidden,), dtype=dtype, rngs=rngs)
        self.second = Projection((hidden,), (hidden,), dtype=dtype, rngs=rngs)
        self.classify = Projection((hidden,), (classes + 1,), rngs=rngs)
        boxes = 1 if config.class_agnostic else classes
        self.deltas = Projection((hidden,), (boxes, 4), rngs=rngs)
        initialize_small(self.classify, 0.01, rngs)
        initialize_small(self.deltas, 0.001, rngs)

    def __call__(self, regions: Array) -> tuple[Array, Array]:
        """Computes the class logits and the box deltas of regions.

        Args:
          regions: features [..., side, side, C].

        Returns:
          Logits [..., 1 + K], background first; and deltas [..., K, 4], or [..., 1, 4] if the head
          is class-agnostic.
        """
        hidden = jax.nn.relu(self.second(jax.nn.relu(self.first(regions))))
        return self.classify(hidden), self.deltas(hidden)


class MaskHead(nnx.Module):
    """Head with mask logits conv1x1(relu(deconv2x2(convolutions(x)))) (He et al. 2017, figure 4).

    Args:
      config: config of the heads.
      channels: C, number of channels of the pyramid.
      classes: K, number of classes without the background.
      dtype: dtype of the computation; the results are float32.
    """

    def __init__(
        self, config: HeadsConfig, channels: int, classes: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dtype = jnp.dtype(dtype)
        hidden = config.mask_channels
        options = {"norm": "none", "dtype": dtype, "rngs": rngs}
        self.convolutions = nnx.List(
            [
                Convolution(channels if number == 0 else hidden, hidden, **options)
                for number in range(config.mask_convolutions)
            ]
        )
        # Equals a transposed convolution of 2 x 2 with stride 2, whose outputs do not overlap.
        self.enlarge = Projection((hidden,), (2, 2, hidden), dtype=dtype, rngs=rngs)
        self.enlarge.kernel = nnx.Param(
            kernel_init(rngs, 1, 1, hidden, 4 * hidden)[...].reshape(hidden, 2, 2, hidden)
        )
        masks = 1 if config.class_agnostic else classes
        self.mask = Convolution(hidden, masks, size=1, norm="none", relu=False, rngs=rngs)

    def __call__(self, regions: Array) -> Array:
        """Computes the mask logits of n regions.

        Args:
          regions: features [n, side, side, C].

        Returns:
          float32 [n, 2 side, 2 side, K], or [n, 2 side, 2 side, 1] if the head is class-agnostic.
        """
        x = regions
        for convolution in self.convolutions:
            x = convolution(x)
        n, side = x.shape[:2]
        x = jax.nn.relu(self.enlarge(x))  # [n, side, side, 2, 2, hidden]
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * side, 2 * side, -1)
        return self.mask(x)


class RegionSamples(NamedTuple):
    """Sampled regions of one image, or of a batch with a leading axis.

    Attributes:
      boxes: boxes of the regions, float32 [R, 4].
      objects: int [R], index of the matched object; arbitrary for background.
      labels: int [R], 0 for background, else class + 1.
      targets: float32 [R, 4], deltas of the objects' boxes; arbitrary for background.
      valid: bool [R], False for padding. Positive regions come first.
    """

    boxes: Array
    objects: Array
    labels: Array
    targets: Array
    valid: Array


def sample_regions(
    proposals: Proposals, boxes: Array, labels: Array, key: Array, config: HeadsConfig
) -> RegionSamples:
    """Samples regions of one image for the loss (Girshick 2015, section 2.3).

    Regions are sampled from the proposals and the true boxes.

    Args:
      proposals: proposals of the image.
      boxes: true boxes, [M, 4].
      labels: true classes, int [M], -1 for padding.
      key: random key of the sampling.
      config: config of the heads.
    """
    real = labels >= 0
    candidates = jax.lax.stop_gradient(jnp.concatenate([proposals.boxes, boxes]))
    usable = jnp.concatenate([proposals.valid, real])
    matches = match(iou(boxes, candidates), real, config.positive_iou, config.positive_iou, False)
    matches = jnp.where(usable, matches, BETWEEN)
    chosen, positive, valid = sample(matches, key, config.samples, config.positive_fraction)
    objects = jnp.maximum(matches[chosen], 0)
    return RegionSamples(
        candidates[chosen],
        objects,
        jnp.where(positive, labels[objects] + 1, 0),
        encode(candidates[chosen], boxes[objects], BOX_WEIGHTS),
        valid,
    )


def select_class(values: Array, classes: Array, axis: int) -> Array:
    """Selects the head output of one class for each region.

    Args:
      values: [R, ...] with K or 1 entries along `axis`.
      classes: class of each region, int [R], from 0.
      axis: axis of the classes.

    Returns:
      The values without that axis.
    """
    if values.shape[axis] == 1:
        return jnp.squeeze(values, axis)
    indices = classes.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.squeeze(jnp.take_along_axis(values, indices, axis=axis), axis)


def box_losses(
    logits: Array, deltas: Array, regions: RegionSamples
) -> tuple[losses.LossTerm, losses.LossTerm]:
    """Computes class and box loss of one image (Girshick 2015, equation 1).

    Args:
      logits: class logits, [R, 1 + K], background first.
      deltas: box deltas, [R, K or 1, 4].
      regions: regions returned by `sample_regions`.
    """
    own = select_class(deltas, jnp.maximum(regions.labels - 1, 0), 1)
    return (
        losses.classes(logits, regions.labels, regions.valid),
        losses.boxes(own, regions.targets, regions.labels > 0, regions.valid),
    )


class Detections(NamedTuple):
    """Detections of one image, highest score first, or of a batch with a leading axis.

    Attributes:
      boxes: predicted boxes, float32 [D, 4].
      scores: float32 [D], probabilities.
      labels: predicted classes, int32 [D], from 0.
      valid: bool [D]; False for padding.
    """

    boxes: Array
    scores: Array
    labels: Array
    valid: Array


def detect(
    logits: Array, deltas: Array, proposals: Proposals, size: Array, config: HeadsConfig
) -> Detections:
    """Returns the detections of one image after NMS in each class (Girshick 2015, section 4.1).

    Args:
      logits: class logits, [P, 1 + K], background first.
      deltas: box deltas, [P, K or 1, 4].
      proposals: proposals of the image.
      size: int [2], height and width without padding.
      config: config of the heads.
    """
    P, K = logits.shape[0], logits.shape[1] - 1
    probabilities = jax.nn.softmax(logits)[:, 1:]
    usable = proposals.valid[:, None] & (probabilities >= config.score_threshold)
    ranked = jnp.where(usable, probabilities, -1.0).reshape(-1)
    scores, chosen = jax.lax.top_k(ranked, min(config.pre_nms_top_k, P * K))
    region, label = chosen // K, chosen % K
    own = select_class(deltas[region], label, 1)
    boxes = clip(decode(own, proposals.boxes[region], BOX_WEIGHTS), size[0], size[1])
    sides = boxes[:, 2:] - boxes[:, :2]
    valid = (scores >= 0) & jnp.all(sides > 0, axis=-1)
    threshold, count = config.nms_iou, config.detections
    kept, valid = batched_nms(boxes, scores, label, valid, threshold, count)
    return Detections(
        jnp.where(valid[:, None], boxes[kept], 0),
        jnp.where(valid, scores[kept], 0),
        jnp.where(valid, label[kept], 0).astype(jnp.int32),
        valid,
    )
