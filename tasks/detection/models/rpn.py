"""Region proposal network of Faster R-CNN (Ren et al. 2015) over a feature pyramid.

In shapes, B is the batch size, N the number of anchors of all levels, M the number of objects
including padding, P the number of proposals, and C the number of channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.convolutional import Convolution
from tasks.common.configs import Config, Fraction, PositiveFloats, PositiveInt, PositiveInts
from tasks.detection.models import losses
from tasks.detection.ops.boxes import clip, decode, encode, iou
from tasks.detection.ops.matching import BETWEEN, match, sample
from tasks.detection.ops.nms import batched_nms

Array = jax.Array

# Factors of the deltas of proposals, see `encode` (Girshick 2015).
PROPOSAL_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class RPNConfig(Config):
    """Config of the region proposal network.

    Attributes:
      sizes: size of the anchors of each level, which is the square root of their area in pixels,
        the finest level first.
      ratios: height / width of the anchors.
      positive_iou, negative_iou: anchors are positive if their IoU with an object is at least
        `positive_iou`, and negative if their IoU with every object is below `negative_iou`. The
        best anchor of each object is always positive.
      samples: number of anchors per image in the loss, at most half of them positive.
      pre_nms_top_k: number of anchors of each level that are kept before NMS.
      nms_iou: IoU above which NMS removes the worse of two proposals.
      post_nms_top_k: P, maximum number of proposals of an image.
    """

    sizes: PositiveInts = (8, 16, 32, 64)
    ratios: PositiveFloats = (0.5, 1.0, 2.0)
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples: PositiveInt = 128
    pre_nms_top_k: PositiveInt = dataclasses.field(default=300, metadata={"formerly": "candidates"})
    nms_iou: Fraction = dataclasses.field(default=0.7, metadata={"formerly": "suppression_iou"})
    post_nms_top_k: PositiveInt = dataclasses.field(default=300, metadata={"formerly": "proposals"})

    def __post_init__(self):
        super().__post_init__()
        most = self.positive_iou
        self.expect("negative_iou", self.negative_iou <= most, f"at most positive_iou={most}")


class Proposals(NamedTuple):
    """Proposals of one image, highest score first, or of a batch with a leading axis.

    Attributes:
      boxes: proposed boxes, float32 [P, 4].
      scores: objectness logits, float32 [P].
      valid: bool [P], False for padding.
    """

    boxes: Array
    scores: Array
    valid: Array


class RPNHead(nnx.Module):
    """Head that computes objectness logits and box deltas from each level x of the pyramid.

        logits = conv1x1(h),   deltas = conv1x1(h),   h = relu(conv3x3(x))

    Args:
      channels: channels of the maps and of h.
      anchors: number of anchors per cell.
      dtype: dtype of h; the results are float32.
    """

    def __init__(self, channels: int, anchors: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.hidden = Convolution(channels, channels, norm="none", dtype=dtype, rngs=rngs)
        options = {"size": 1, "norm": "none", "relu": False, "rngs": rngs}
        self.objectness = Convolution(channels, anchors, **options)
        self.deltas = Convolution(channels, 4 * anchors, **options)
        for layer in (self.objectness, self.deltas):
            initialize_small(layer, 0.01, rngs)

    def __call__(self, pyramid: Sequence[Array]) -> tuple[Array, Array]:
        """Maps the levels [B, Yi, Xi, C] to logits [B, N] and deltas [B, N, 4] of all anchors."""
        logits, deltas = [], []
        for level in pyramid:
            hidden, B = self.hidden(level), level.shape[0]
            logits.append(self.objectness(hidden).reshape(B, -1))
            deltas.append(self.deltas(hidden).reshape(B, -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)


def initialize_small(layer: nnx.Module, deviation: float, rngs: nnx.Rngs) -> None:
    """Initializes a kernel from a normal distribution with mean 0 (Girshick 2015).

    Args:
      layer: layer whose kernel is replaced.
      deviation: standard deviation of the normal distribution.
      rngs: random streams of the initialization.
    """
    shape = layer.kernel.shape
    layer.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), shape))


def inside_image(anchors: np.ndarray, size: Array) -> Array:
    """Finds the anchors whose center is in the image, not in the padding.

    Args:
      anchors: boxes of the anchors, [N, 4].
      size: int [2], height and width without padding.

    Returns:
      bool [N], True for these anchors.
    """
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return (center[:, 0] < size[1]) & (center[:, 1] < size[0])


def propose(
    logits: Array,
    deltas: Array,
    anchors: np.ndarray,
    level_sizes: Sequence[int],
    size: Array,
    config: RPNConfig,
) -> Proposals:
    """Returns the proposals of one image (Lin et al. 2017, section 4.1).

    The boxes of the highest-scoring anchors of each level are clipped to the image, and filtered by
    NMS per level.

    Args:
      logits: objectness logits of the anchors, float [N].
      deltas: box deltas of the anchors, float [N, 4].
      anchors: boxes of the anchors, [N, 4].
      level_sizes: number of anchors of each level; the sum is N.
      size: int [2], height and width without padding.
      config: config of the region proposal network.
    """
    usable = inside_image(anchors, size)
    chosen, levels, start = [], [], 0
    for level, count in enumerate(level_sizes):
        own = slice(start, start + count)
        kept = min(config.pre_nms_top_k, count)
        ranked = jnp.where(usable[own], logits[own], -jnp.inf)
        chosen.append(start + jax.lax.top_k(ranked, kept)[1])
        levels.append(jnp.full(kept, level))
        start += count
    chosen = jnp.concatenate(chosen)
    boxes = decode(deltas[chosen], jnp.asarray(anchors)[chosen], PROPOSAL_WEIGHTS)
    boxes = clip(boxes, size[0], size[1])
    sides = boxes[:, 2:] - boxes[:, :2]
    valid = usable[chosen] & jnp.all(sides >= 1, axis=-1)
    kept, valid = batched_nms(
        boxes, logits[chosen], jnp.concatenate(levels), valid, config.nms_iou, config.post_nms_top_k
    )
    return Proposals(boxes[kept], logits[chosen][kept], valid)


def proposal_losses(
    logits: Array,
    deltas: Array,
    anchors: np.ndarray,
    boxes: Array,
    valid: Array,
    size: Array,
    key: Array,
    config: RPNConfig,
) -> tuple[losses.LossTerm, losses.LossTerm]:
    """Computes objectness and box loss of one image (Ren et al. 2015, equation 1).

    Args:
      logits, deltas, anchors, size, config: as for `propose`.
      boxes: true boxes, [M, 4].
      valid: bool [M]; False for padding.
      key: random key of the sampling.
    """
    overlaps = iou(boxes, jnp.asarray(anchors, jnp.float32))
    matches = match(overlaps, valid, config.positive_iou, config.negative_iou, True)
    matches = jnp.where(inside_image(anchors, size), matches, BETWEEN)
    chosen, positive, counted = sample(matches, key, config.samples, 0.5)
    true = boxes[jnp.maximum(matches[chosen], 0)]
    targets = encode(jnp.asarray(anchors)[chosen], true, PROPOSAL_WEIGHTS)
    return (
        losses.objectness(logits[chosen], positive, counted),
        losses.boxes(deltas[chosen], targets, positive, counted),
    )
