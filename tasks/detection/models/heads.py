"""What is said of a region: its class, a better box, and a mask (Girshick 2015, He et al. 2017).

B batch, R regions of a picture, K classes, C channels of the pyramid, D detections, M places for
objects, S side of a mask.
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
from tasks.detection.models import losses
from tasks.detection.models.rpn import Proposals, check_counts, check_shares, draw_small
from tasks.detection.ops.boxes import clip, decode, encode, iou
from tasks.detection.ops.matching import BETWEEN, match, sample
from tasks.detection.ops.nms import batched_nms

Array = jax.Array

# Of the code of a box (Girshick 2015): targets of about unit variance.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """The second stage.

    Attributes:
      positive_iou: a region that overlaps an object by at least this is one of its class, any other
        is background.
      samples: regions of a picture in training.
      positive_share: of them that are objects at most; these have masks.
      box_side: of what is cut out of a map for a box.
      hidden_size: of the two dense layers.
      mask_side: of what is cut out for a mask; the mask is twice as large.
      mask_channels: of the convolutions of a mask.
      mask_convolutions: number of them.
      class_agnostic: one box and one mask of a region in place of one for each class.
      canonical_side: of a region that is cut out of the finest level; from one level to the next
        sides double.
      score_threshold: a detection has at least this probability.
      suppression_iou: of two detections of a class that overlap by more the worse one goes.
      candidates: the best regions and classes that go into suppression.
      detections: D of a picture.
    """

    positive_iou: float = 0.5
    samples: int = 128
    positive_share: float = 0.25
    box_side: int = 7
    hidden_size: int = 256
    mask_side: int = 14
    mask_channels: int = 64
    mask_convolutions: int = 4
    class_agnostic: bool = False
    canonical_side: float = 16.0
    score_threshold: float = 0.05
    suppression_iou: float = 0.5
    candidates: int = 400
    detections: int = 100

    def __post_init__(self):
        check_shares(self, "positive_iou", "positive_share", "score_threshold", "suppression_iou")
        counts = ("samples", "box_side", "hidden_size", "mask_side", "mask_channels")
        check_counts(self, *counts, "mask_convolutions", "candidates", "detections")
        if not self.canonical_side > 0:
            raise ValueError(
                f"canonical_side: got {self.canonical_side}, expected a number above 0"
            )
        if self.positives < 1:
            raise ValueError(
                f"positive_share: got {self.positive_share}, expected a share that leaves a "
                f"positive among samples={self.samples}"
            )

    @property
    def positives(self) -> int:
        """Regions of a picture that have a mask in training."""
        return int(self.samples * self.positive_share)


class BoxHead(nnx.Module):
    """logits = h W + b, t = h V + c, h = relu(W_2 relu(W_1 x)) of the map's values x in a region.

    Args:
      config: see `HeadsConfig`.
      channels: C.
      classes: K without the background.
      dtype: of h; what comes out is float32.
    """

    def __init__(
        self,
        config: HeadsConfig,
        channels: int,
        classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        side, hidden = config.box_side, config.hidden_size
        self.first = Projection((side, side, channels), (hidden,), dtype=dtype, rngs=rngs)
        self.second = Projection((hidden,), (hidden,), dtype=dtype, rngs=rngs)
        self.classify = Projection((hidden,), (classes + 1,), rngs=rngs)
        boxes = 1 if config.class_agnostic else classes
        self.deltas = Projection((hidden,), (boxes, 4), rngs=rngs)
        draw_small(self.classify, 0.01, rngs)
        draw_small(self.deltas, 0.001, rngs)

    def __call__(self, regions: Array) -> tuple[Array, Array]:
        """[..., side, side, C] -> logits [..., 1 + K], background first; codes [..., K or 1, 4]."""
        hidden = jax.nn.relu(self.second(jax.nn.relu(self.first(regions))))
        return self.classify(hidden), self.deltas(hidden)


class MaskHead(nnx.Module):
    """m = conv1x1(relu(deconv2x2(h))), h of some convolutions over a region (He et al. 2017,
    figure 4).

    Args:
      config: see `HeadsConfig`.
      channels: C.
      classes: K without the background.
      dtype: of the computation; what comes out is float32.
    """

    def __init__(
        self,
        config: HeadsConfig,
        channels: int,
        classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
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
        # Each position becomes 2 x 2 that no other reaches.
        self.enlarge = Projection((hidden,), (2, 2, hidden), dtype=dtype, rngs=rngs)
        self.enlarge.kernel = nnx.Param(
            kernel_init(rngs, 1, 1, hidden, 4 * hidden)[...].reshape(hidden, 2, 2, hidden)
        )
        masks = 1 if config.class_agnostic else classes
        self.mask = Convolution(hidden, masks, size=1, norm="none", relu=False, rngs=rngs)

    def __call__(self, regions: Array) -> Array:
        """[n, side, side, C] -> logits float32 [n, 2 side, 2 side, K or 1]."""
        x = regions
        for convolution in self.convolutions:
            x = convolution(x)
        n, side = x.shape[:2]
        x = jax.nn.relu(self.enlarge(x))  # [n, side, side, 2, 2, hidden]
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * side, 2 * side, -1)
        return self.mask(x)


class RegionSamples(NamedTuple):
    """Regions of one picture to learn from, or of a batch with one more axis first.

    Attributes:
      boxes: float32 [R, 4].
      objects: int [R], number of the object that each is about; of background any.
      labels: int [R], 0 background, else class + 1.
      targets: float32 [R, 4], codes of the objects' boxes; of background any.
      valid: bool [R]; the positives come first.
    """

    boxes: Array
    objects: Array
    labels: Array
    targets: Array
    valid: Array


def sample_regions(
    proposals: Proposals, boxes: Array, labels: Array, key: Array, config: HeadsConfig
) -> RegionSamples:
    """Regions of one picture for the loss: proposals and the true boxes themselves (Girshick 2015,
    section 2.3).

    Args:
      proposals: of the picture.
      boxes: [M, 4], true ones.
      labels: int [M], -1 where there is none.
      key: by which regions are sampled.
    """
    there = labels >= 0
    candidates = jax.lax.stop_gradient(jnp.concatenate([proposals.boxes, boxes]))
    usable = jnp.concatenate([proposals.valid, there])
    matches = match(iou(boxes, candidates), there, config.positive_iou, config.positive_iou, False)
    matches = jnp.where(usable, matches, BETWEEN)
    chosen, positive, valid = sample(matches, key, config.samples, config.positive_share)
    objects = jnp.maximum(matches[chosen], 0)
    return RegionSamples(
        candidates[chosen],
        objects,
        jnp.where(positive, labels[objects] + 1, 0),
        encode(candidates[chosen], boxes[objects], BOX_WEIGHTS),
        valid,
    )


def select_class(values: Array, classes: Array, axis: int) -> Array:
    """What a head says of one class of each region.

    Args:
      values: [R, ...] with K or 1 entries along `axis`.
      classes: int [R], from 0.
      axis: which is K.

    Returns:
      the same without that axis.
    """
    if values.shape[axis] == 1:
        return jnp.squeeze(values, axis)
    places = classes.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.squeeze(jnp.take_along_axis(values, places, axis=axis), axis)


def box_losses(
    logits: Array, deltas: Array, regions: RegionSamples
) -> tuple[losses.LossTerm, losses.LossTerm]:
    """Class and box loss of one picture (Girshick 2015, equation 1).

    Args:
      logits: [R, 1 + K].
      deltas: [R, K or 1, 4].
      regions: of `sample_regions`.
    """
    own = select_class(deltas, jnp.maximum(regions.labels - 1, 0), 1)
    return (
        losses.classes(logits, regions.labels, regions.valid),
        losses.boxes(own, regions.targets, regions.labels > 0, regions.valid),
    )


class Detections(NamedTuple):
    """What was found in one picture, or in a batch with one more axis first; the best first.

    Attributes:
      boxes: float32 [D, 4].
      scores: float32 [D], probabilities.
      labels: int32 [D], from 0.
      valid: bool [D]; the others mean nothing.
    """

    boxes: Array
    scores: Array
    labels: Array
    valid: Array


def detect(
    logits: Array, deltas: Array, proposals: Proposals, size: Array, config: HeadsConfig
) -> Detections:
    """Detections of one picture: the best regions and classes, less those that overlap a better one
    of their class (Girshick 2015, section 4.1).

    Args:
      logits: [P, 1 + K].
      deltas: [P, K or 1, 4].
      proposals: the regions.
      size: int [2], real height and width.
      config: see `HeadsConfig`.
    """
    P, K = logits.shape[0], logits.shape[1] - 1
    probabilities = jax.nn.softmax(logits)[:, 1:]
    usable = proposals.valid[:, None] & (probabilities >= config.score_threshold)
    ranked = jnp.where(usable, probabilities, -1.0).reshape(-1)
    scores, chosen = jax.lax.top_k(ranked, min(config.candidates, P * K))
    region, label = chosen // K, chosen % K
    own = select_class(deltas[region], label, 1)
    boxes = clip(decode(own, proposals.boxes[region], BOX_WEIGHTS), size[0], size[1])
    sides = boxes[:, 2:] - boxes[:, :2]
    valid = (scores >= 0) & jnp.all(sides > 0, axis=-1)
    threshold, count = config.suppression_iou, config.detections
    kept, valid = batched_nms(boxes, scores, label, valid, threshold, count)
    return Detections(
        jnp.where(valid[:, None], boxes[kept], 0),
        jnp.where(valid, scores[kept], 0),
        jnp.where(valid, label[kept], 0).astype(jnp.int32),
        valid,
    )
