"""Region proposals: the network of Faster R-CNN (Ren et al. 2015) over a feature pyramid.

B batch, N anchors of all levels, M places for objects, P proposals.
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
from tasks.detection.models import losses
from tasks.detection.ops.boxes import clip, decode, encode, iou
from tasks.detection.ops.matching import BETWEEN, match, sample
from tasks.detection.ops.nms import batched_nms

Array = jax.Array

# Of the code of a box: of proposals, and of the second stage (Girshick 2015).
PROPOSAL_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class RPNConfig:
    """How regions are proposed.

    Attributes:
      sizes: side of the anchors of each level, in pixels, the finest level first.
      ratios: heights by widths of the anchors.
      positive_iou, negative_iou: an anchor that overlaps an object by at least the first is
        positive, one that overlaps none by the second negative; the best of each object is positive
        anyhow.
      samples: anchors of a picture that the loss counts, at most half of them positive.
      candidates: the best of each level that go into suppression.
      suppression_iou: of two proposals that overlap by more the worse one goes.
      proposals: P of a picture.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    samples: int = 128
    candidates: int = 300
    suppression_iou: float = 0.7
    proposals: int = 300

    def __post_init__(self):
        for name in ("sizes", "ratios"):
            values = getattr(self, name)
            if not values or not min(values) > 0:
                expected = "at least one number, each above 0"
                raise ValueError(f"{name}: got {list(values)}, expected {expected}")
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                f"negative_iou: got {self.negative_iou}, expected a share from 0 to "
                f"positive_iou={self.positive_iou}, which is at most 1"
            )
        check_shares(self, "suppression_iou")
        check_counts(self, "samples", "candidates", "proposals")


def check_counts(config: object, *names: str) -> None:
    """Raises ValueError unless these fields of a config are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least 1")


def check_shares(config: object, *names: str) -> None:
    """Raises ValueError unless these fields of a config are between 0 and 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected a share in [0, 1]")


class Proposals(NamedTuple):
    """Regions of one picture, or of a batch with one more axis first, the best first.

    Attributes:
      boxes: float32 [P, 4].
      scores: float32 [P], logits.
      valid: bool [P].
    """

    boxes: Array
    scores: Array
    valid: Array


class RPNHead(nnx.Module):
    """o = conv1x1(h), t = conv1x1(h), h = relu(conv3x3(P_i)), the same for all levels.

    Args:
      channels: of the maps and of h.
      anchors: of a position.
      dtype: of h; what comes out is float32.
    """

    def __init__(self, channels: int, anchors: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.hidden = Convolution(channels, channels, norm="none", dtype=dtype, rngs=rngs)
        options = {"size": 1, "norm": "none", "relu": False, "rngs": rngs}
        self.objectness = Convolution(channels, anchors, **options)
        self.deltas = Convolution(channels, 4 * anchors, **options)
        for layer in (self.objectness, self.deltas):
            draw_small(layer, 0.01, rngs)

    def __call__(self, pyramid: Sequence[Array]) -> tuple[Array, Array]:
        """Maps [B, Yi, Xi, C] -> logits [B, N] and box codes [B, N, 4], in the anchors' order."""
        logits, deltas = [], []
        for level in pyramid:
            hidden, B = self.hidden(level), level.shape[0]
            logits.append(self.objectness(hidden).reshape(B, -1))
            deltas.append(self.deltas(hidden).reshape(B, -1, 4))
        return jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)


def draw_small(layer: nnx.Module, deviation: float, rngs: nnx.Rngs) -> None:
    """Draws a layer's kernel from a normal distribution of that deviation (Girshick 2015)."""
    shape = layer.kernel.shape
    layer.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), shape))


def seen(anchors: np.ndarray, size: Array) -> Array:
    """Which anchors have their middle in the picture, not in the padding.

    Args:
      anchors: [N, 4].
      size: int [2], real height and width.

    Returns:
      bool [N].
    """
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    return (middle[:, 0] < size[1]) & (middle[:, 1] < size[0])


def propose(
    logits: Array,
    deltas: Array,
    anchors: np.ndarray,
    level_sizes: Sequence[int],
    size: Array,
    config: RPNConfig,
) -> Proposals:
    """The best regions of one picture (Lin et al. 2017, section 4.1).

    The best candidates of each level, their boxes cut at the picture's border, less those that
    overlap a better one of their level.

    Args:
      logits: float [N].
      deltas: float [N, 4].
      anchors: [N, 4].
      level_sizes: anchors of each level, Σ = N.
      size: int [2], real height and width.
      config: see `RPNConfig`.
    """
    usable = seen(anchors, size)
    chosen, levels, start = [], [], 0
    for level, count in enumerate(level_sizes):
        own = slice(start, start + count)
        kept = min(config.candidates, count)
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
        boxes,
        logits[chosen],
        jnp.concatenate(levels),
        valid,
        config.suppression_iou,
        config.proposals,
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
    """Objectness and box loss of one picture (Ren et al. 2015, equation 1).

    Args:
      logits, deltas, anchors, size, config: as for `propose`.
      boxes: [M, 4], true ones.
      valid: bool [M], which are there.
      key: by which anchors are sampled.
    """
    overlaps = iou(boxes, jnp.asarray(anchors, jnp.float32))
    matches = match(overlaps, valid, config.positive_iou, config.negative_iou, True)
    matches = jnp.where(seen(anchors, size), matches, BETWEEN)
    chosen, positive, counted = sample(matches, key, config.samples, 0.5)
    true = boxes[jnp.maximum(matches[chosen], 0)]
    targets = encode(jnp.asarray(anchors)[chosen], true, PROPOSAL_WEIGHTS)
    return (
        losses.objectness(logits[chosen], positive, counted),
        losses.boxes(deltas[chosen], targets, positive, counted),
    )
