"""DETR (Carion et al. 2020): a set of queries that each find an object or none, in a decoder that
attends to the picture and to the other queries. Boxes alone.

Each query stands at a learned point, from which its position is encoded and its box is told, as in
Conditional DETR (Meng et al. 2021): it learns in a tenth of the time.

B batch, Y X height and width of the map, S = Y·X its positions, Q queries, D model size, L decoder
layers, K classes, M places for objects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import attend, attention_weights, masks
from attention.normalization import LayerNorm
from attention.projection import Projection
from tasks.common.backbones.convolutional import Convolution
from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tasks.common.backbones.transformer_layers import EncoderConfig, FeedForward, maybe_dropout
from tasks.detection.models import losses
from tasks.detection.models.heads import Detections
from tasks.detection.models.pyramid import standardize, valid_pixels
from tasks.detection.models.rpn import check_counts, check_shares
from tasks.detection.models.set_loss import set_losses, to_normalized_cyxhw, to_xyxy
from tasks.detection.ops.boxes import clip

Array = jax.Array

# Sides of boxes at the start, as a share of the picture's.
_FIRST_SIDE = 0.2

# Fields of the config that `set_losses` takes.
LOSS_WEIGHTS = ("class_weight", "box_weight", "overlap_weight", "no_object_weight")


@dataclasses.dataclass(frozen=True)
class DETRConfig:
    """DETR.

    Attributes:
      backbone: see `ResNetConfig`; its last map is attended to.
      model_size: D, a multiple of 4.
      num_heads: divides D.
      feedforward_size: of the layers.
      encoder_layers: over the map's positions; may be 0.
      decoder_layers: L; the loss is taken after each.
      queries: Q, the most objects that can be found.
      dropout_rate: after attention and feed-forward.
      no_object_weight: of "no object" in the class loss.
      class_weight, box_weight, overlap_weight: of the class, of the boxes' L1 distance and of their
        generalised IoU, in the matching and in the loss.
      score_threshold: a detection has at least this probability.
    """

    name: str = "detr"
    backbone: ResNetConfig = dataclasses.field(default_factory=lambda: ResNetConfig(norm="group"))
    model_size: int = 128
    num_heads: int = 8
    feedforward_size: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 3
    queries: int = 50
    dropout_rate: float = 0.0
    no_object_weight: float = 0.1
    class_weight: float = 1.0
    box_weight: float = 5.0
    overlap_weight: float = 2.0
    score_threshold: float = 0.05

    def __post_init__(self):
        counts = ("model_size", "num_heads", "feedforward_size", "decoder_layers", "queries")
        check_counts(self, *counts)
        if self.model_size % 4 or self.model_size % self.num_heads:
            expected = f"a multiple of 4 and of num_heads={self.num_heads}"
            raise ValueError(f"model_size: got {self.model_size}, expected {expected}")
        if self.encoder_layers < 0:
            raise ValueError(f"encoder_layers: got {self.encoder_layers}, expected at least 0")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate: got {self.dropout_rate}, expected a rate in [0, 1)")
        check_shares(self, "no_object_weight", "score_threshold")
        for name in ("class_weight", "box_weight", "overlap_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")

    @property
    def layers(self) -> EncoderConfig:
        """Sizes of the feed-forward part of a layer."""
        return EncoderConfig(
            model_size=self.model_size,
            num_heads=self.num_heads,
            feedforward_size=self.feedforward_size,
            activation="relu",
            dtype=self.backbone.dtype,
        )


def sine_embedding(points: Array, size: int) -> Array:
    """Sines and cosines of both coordinates (Carion et al. 2020, appendix A.4).

        sin(2π p / T^(4i / D)), cos(2π p / T^(4i / D)),   T = 10,000, D / 2 features of y, then of x

    Args:
      points: [..., 2], y and x as shares of the picture's sides.
      size: D, a multiple of 4.

    Returns:
      float32 [..., D].
    """
    rates = 10_000.0 ** (-4 * jnp.arange(size // 4) / size)
    angles = 2 * math.pi * points.astype(jnp.float32)[..., None] * rates
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*points.shape[:-1], size)


class PlacedAttention(nnx.Module):
    """attend((x + p) W_q, (m + p_m) W_k, m W_v) W_o: places say where to look, not what is there
    (Carion et al. 2020, appendix A.3).
    """

    def __init__(self, size: int, num_heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        heads = (num_heads, size // num_heads)
        options = {"dtype": dtype, "rngs": rngs}
        self.query = Projection((size,), heads, **options)
        self.key = Projection((size,), heads, **options)
        self.value = Projection((size,), heads, **options)
        self.out = Projection(heads, (size,), **options)

    def __call__(
        self,
        x: Array,
        places: Array,
        memory: Array,
        memory_places: Array,
        mask: masks.Mask | None = None,
        *,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """[B, T, D] and [B, S, D], each with its places -> [B, T, D], and the weights [B, N, T, S]
        where asked for.
        """
        query, key = self.query(x + places), self.key(memory + memory_places)
        result = self.out(attend(query, key, self.value(memory), mask=mask))
        if return_weights:
            return result, attention_weights(query, key, mask=mask)
        return result


class Layer(nnx.Module):
    """x + f(norm(x)) for f self-attention, in the decoder attention to the map, and feed-forward.

    Args:
      config: see `DETRConfig`.
      decoder: whether there is attention to the map.
    """

    def __init__(self, config: DETRConfig, *, decoder: bool, rngs: nnx.Rngs):
        D, dtype = config.model_size, jnp.dtype(config.backbone.dtype)
        options = {"dtype": dtype, "rngs": rngs}
        self.dropout_rate = config.dropout_rate
        self.attention = PlacedAttention(D, config.num_heads, **options)
        self.attention_norm = LayerNorm(D)
        self.cross = PlacedAttention(D, config.num_heads, **options) if decoder else None
        self.cross_norm = LayerNorm(D) if decoder else None
        self.feedforward = FeedForward(config.layers, rngs=rngs)
        self.feedforward_norm = LayerNorm(D)

    def __call__(
        self,
        x: Array,
        places: Array,
        *,
        mask: masks.Mask | None = None,
        memory: Array | None = None,
        memory_places: Array | None = None,
        memory_mask: masks.Mask | None = None,
        key: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """[B, T, D] -> [B, T, D], and of a decoder the weights over the map [B, N, T, S]."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        rate, weights = self.dropout_rate, None
        y = self.attention_norm(x)
        x = x + maybe_dropout(self.attention(y, places, y, places, mask), rate, keys[0])
        if self.cross is not None:
            source = memory, memory_places, memory_mask
            y, weights = self.cross(self.cross_norm(x), places, *source, return_weights=True)
            x = x + maybe_dropout(y, rate, keys[1])
        y = self.feedforward(self.feedforward_norm(x))
        return x + maybe_dropout(y, rate, keys[2]), weights


class DETROutput(NamedTuple):
    """What the queries say after each decoder layer.

    Attributes:
      logits: [L, B, Q, 1 + K], no object first.
      boxes: [L, B, Q, 4], middle y and x, height and width, as shares of the padded picture.
      weights: of the last layer over the map, [B, N, Q, S].
      backbone: of the backbone's attention, by stage.
    """

    logits: Array
    boxes: Array
    weights: Array
    backbone: dict[str, Array]


class DETR(nnx.Module):
    """Boxes and classes of what is in a picture.

    Args:
      config: see `DETRConfig`.
      channels: of the picture.
      classes: K.
    """

    def __init__(self, config: DETRConfig, channels: int, classes: int, *, rngs: nnx.Rngs):
        D, Q = config.model_size, config.queries
        self.config = config
        self.backbone = ResNet(config.backbone, channels, rngs=rngs)
        self.reduce = Convolution(
            config.backbone.channels[-1], D, size=1, norm="none", relu=False, rngs=rngs
        )
        self.encoder = nnx.List(
            [Layer(config, decoder=False, rngs=rngs) for _ in range(config.encoder_layers)]
        )
        self.decoder = nnx.List(
            [Layer(config, decoder=True, rngs=rngs) for _ in range(config.decoder_layers)]
        )
        self.memory_norm, self.norm = LayerNorm(D), LayerNorm(D)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (Q, D)))
        self.points = nnx.Param(jnp.asarray(_logit(_spread(Q))))
        self.place = Projection((D,), (D,), rngs=rngs)
        self.classify = Projection((D,), (classes + 1,), rngs=rngs)
        self.hidden = nnx.List([Projection((D,), (D,), rngs=rngs) for _ in range(2)])
        self.box = Projection((D,), (4,), rngs=rngs)
        # At the start a box stands around its point.
        self.box.kernel = nnx.Param(0.1 * self.box.kernel[...])
        side = _logit(np.float32(_FIRST_SIDE))
        self.box.bias = nnx.Param(jnp.array([0, 0, side, side], jnp.float32))

    def __call__(
        self,
        images: Array,
        sizes: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> DETROutput:
        """What the queries say of a batch.

        Args:
          images: [B, Y, X, C], values 0 to 255, padded below and to the right.
          sizes: int [B, 2], real height and width.
          valid: bool [B], the pictures that count in batch statistics, if there are any.
          training: whether to take the batch's statistics along, if there are any.
          dropout_key: None for evaluation.
          return_weights: also return the backbone's attention weights.
        """
        config = self.config
        maps, found = self.backbone(
            standardize(images, sizes),
            valid=valid,
            training=training,
            return_weights=return_weights,
        )
        x = self.reduce(maps[-1])
        B, Y, X, D = x.shape
        stride = config.backbone.strides[-1]
        mask = masks.valid(key=valid_pixels(-(-sizes // stride), Y, X).reshape(B, Y * X))
        memory, places = x.reshape(B, Y * X, D), sine_embedding(_grid(Y, X), D)
        count = len(self.encoder) + len(self.decoder)
        keys = [None] * count if dropout_key is None else jax.random.split(dropout_key, count)
        for layer, key in zip(self.encoder, keys, strict=False):
            memory, _ = layer(memory, places, mask=mask, key=key)
        memory = self.memory_norm(memory)
        points = self.points[...]
        query_places = self.place(sine_embedding(jax.nn.sigmoid(points), D))
        y = jnp.broadcast_to(self.queries[...], (B, *self.queries.shape)).astype(memory.dtype)
        source = {"memory": memory, "memory_places": places, "memory_mask": mask}
        logits, boxes = [], []
        for layer, key in zip(self.decoder, keys[len(self.encoder) :], strict=True):
            y, weights = layer(y, query_places, **source, key=key)
            said = self.norm(y).astype(jnp.float32)
            logits.append(self.classify(said))
            for hidden in self.hidden:
                said = jax.nn.relu(hidden(said))
            around = jnp.concatenate([points, jnp.zeros_like(points)], axis=-1)
            boxes.append(jax.nn.sigmoid(self.box(said) + around))
        return DETROutput(jnp.stack(logits), jnp.stack(boxes), weights, found)

    def losses(
        self,
        batch: Mapping[str, Array],
        dropout_key: Array | None,
        *,
        valid: Array | None = None,
        training: bool = False,
    ) -> dict[str, losses.LossTerm]:
        """Class, L1 and generalised IoU losses of each picture (Carion et al. 2020, section 3.1).

        Args:
          batch: image [B, Y, X, C], size [B, 2], boxes [B, M, 4], labels [B, M] with -1 where there
            is no object.
          dropout_key, valid, training: as for `__call__`.

        Returns:
          "class", "box" and "overlap" of the last layer and "class_1", ... of those before, with
          their weights, totals and counts [B].
        """
        options = {"valid": valid, "training": training, "dropout_key": dropout_key}
        answers = self(batch["image"], batch["size"], **options)
        Y, X = batch["image"].shape[1:3]
        shares = to_normalized_cyxhw(batch["boxes"], Y, X)

        weights = {name: getattr(self.config, name) for name in LOSS_WEIGHTS}

        def of_picture(logits, boxes, true_boxes, labels):
            return set_losses(logits, boxes, true_boxes, labels, **weights)

        by_batch = jax.vmap(of_picture)
        by_layer = jax.vmap(by_batch, in_axes=(0, 0, None, None))(
            answers.logits, answers.boxes, shares, batch["labels"]
        )
        result = {}
        for layer in range(len(self.decoder)):
            last = layer == len(self.decoder) - 1
            for name, part in by_layer.items():
                key = name if last else f"{name}_{layer + 1}"
                result[key] = losses.LossTerm(part.total[layer], part.count[layer])
        return result

    def detect(self, images: Array, sizes: Array) -> tuple[Detections, None]:
        """What is in the pictures: each query's best class, the most probable first; no masks."""
        answers = self(images, sizes)
        return self._ranked(answers, images.shape[1:3], sizes)[0], None

    def attention(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Weights of each detection over the last map, as "objects" [B, Q, S], mean over heads, in
        the order of `detect`; and those of the attention after each stage of the backbone.
        """
        answers = self(images, sizes, return_weights=True)
        _, order = self._ranked(answers, images.shape[1:3], sizes)
        weights = jnp.mean(answers.weights, axis=1)
        objects = jnp.take_along_axis(weights, order[..., None], axis=1)
        return {**answers.backbone, "objects": objects}

    def _ranked(
        self, answers: DETROutput, padded: tuple[int, int], sizes: Array
    ) -> tuple[Detections, Array]:
        """Detections and the number of the query of each, [B, Q]."""
        probabilities = jax.nn.softmax(answers.logits[-1])[..., 1:]
        scores = jnp.max(probabilities, axis=-1)
        labels = jnp.argmax(probabilities, axis=-1)
        boxes = jax.vmap(lambda boxes, size: clip(to_xyxy(boxes, *padded), size[0], size[1]))(
            answers.boxes[-1], sizes
        )
        order = jnp.argsort(-scores, axis=-1)
        scores, labels = (jnp.take_along_axis(x, order, axis=1) for x in (scores, labels))
        boxes = jnp.take_along_axis(boxes, order[..., None], axis=1)
        there = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        valid = there & (scores >= self.config.score_threshold)
        return Detections(
            jnp.where(valid[..., None], boxes, 0),
            jnp.where(valid, scores, 0),
            jnp.where(valid, labels, 0).astype(jnp.int32),
            valid,
        ), order


def _grid(Y: int, X: int) -> Array:
    """Middles of the positions of a map, y and x as shares: [Y·X, 2]."""
    y, x = jnp.meshgrid((jnp.arange(Y) + 0.5) / Y, (jnp.arange(X) + 0.5) / X, indexing="ij")
    return jnp.stack([y.ravel(), x.ravel()], axis=-1)


def _spread(count: int) -> np.ndarray:
    """Points all over the unit square, [count, 2]: Roberts' sequence, even for any count."""
    root = 1.32471795724474602596
    steps = np.arange(1, count + 1)[:, None] * np.array([1 / root, 1 / root**2])
    return (0.5 + steps) % 1


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 0.02, 0.98)
    return np.log(p / (1 - p)).astype(np.float32)
