"""DETR (Carion et al. 2020) with reference points, which predicts boxes and classes.

Each query has a learned reference point, which defines its position embedding and the origin of its
box, as in Conditional DETR (Meng et al. 2021). Reference points reduce the training time of DETR to
about a tenth.

In shapes, B is the batch size, Y and X are height and width of the last backbone map, S = Y·X is
the number of its cells, Q the number of queries, D the model size, N the number of heads, L the
number of decoder layers, K the number of classes, and M the number of objects including padding.
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

from attention import MultiHeadAttention, masks
from attention.normalization import LayerNorm
from attention.projection import Projection
from attention.sharding import constrain, over_examples
from tasks.common.backbones.convolutional import Convolution
from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tasks.common.backbones.transformer_layers import (
    EncoderConfig,
    FeedForward,
    maybe_dropout,
    split_keys,
)
from tasks.common.configs import (
    Config,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Rate,
)
from tasks.detection.models import losses
from tasks.detection.models.heads import Detections
from tasks.detection.models.pyramid import standardize, valid_pixels
from tasks.detection.models.set_loss import set_losses, to_normalized_cyxhw, to_xyxy
from tasks.detection.ops.boxes import clip

Array = jax.Array

# Initial height and width of boxes, as fractions of the height and width of the image.
_FIRST_SIDE = 0.2

# Config fields that are arguments of `set_losses`.
LOSS_WEIGHTS = ("class_weight", "box_weight", "overlap_weight", "no_object_weight")


@dataclasses.dataclass(frozen=True)
class DETRConfig(Config):
    """Config of DETR.

    Attributes:
      backbone: config of the backbone; the queries attend to its last map.
      model_size: D, a multiple of 4.
      num_heads: number of attention heads, a divisor of D.
      feedforward_size: feedforward size of the layers.
      encoder_layers: number of encoder layers over the cells of the map; may be 0.
      decoder_layers: L, number of decoder layers; each has a loss.
      queries: Q, maximum number of detections.
      dropout_rate: dropout rate after attention and feed-forward.
      no_object_weight: weight of "no object" in the class loss.
      class_weight, box_weight, overlap_weight: weights of the class, of the L1 distance and of the
        generalized IoU, both in the matching costs and in the loss.
      score_threshold: minimum probability of a detection.
    """

    name: str = "detr"
    backbone: ResNetConfig = dataclasses.field(default_factory=lambda: ResNetConfig(norm="group"))
    model_size: PositiveInt = 128
    num_heads: PositiveInt = 8
    feedforward_size: PositiveInt = 256
    encoder_layers: NonNegativeInt = 2
    decoder_layers: PositiveInt = 3
    queries: PositiveInt = 50
    dropout_rate: Rate = 0.0
    no_object_weight: Fraction = 0.1
    class_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 5.0
    overlap_weight: NonNegativeFloat = 2.0
    score_threshold: Fraction = 0.05

    def __post_init__(self):
        super().__post_init__()
        fits = self.model_size % 4 == self.model_size % self.num_heads == 0
        expected = f"a multiple of 4 and of num_heads={self.num_heads}"
        self.expect("model_size", fits, expected)

    @property
    def layers(self) -> EncoderConfig:
        """Config of the feed-forward part of a layer."""
        return EncoderConfig.of(self, activation="relu", dtype=self.backbone.dtype)


def sine_embedding(points: Array, size: int) -> Array:
    """Computes sines and cosines of both coordinates (Carion et al. 2020, appendix A.4).

        sin(2π p / T^(4i / D)), cos(2π p / T^(4i / D)),   T = 10,000,   i = 0 ... D / 4 - 1

    for each coordinate p. The first D / 2 features are those of y, the others those of x.

    Args:
      points: [..., 2], y and x as fractions of the sides of the image.
      size: D, number of features, a multiple of 4.

    Returns:
      float32 [..., D].
    """
    rates = 10_000.0 ** (-4 * jnp.arange(size // 4) / size)
    angles = 2 * math.pi * points.astype(jnp.float32)[..., None] * rates
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(*points.shape[:-1], size)


class PositionedAttention(MultiHeadAttention):
    """Attention with position embeddings of queries and keys (Carion et al. 2020, appendix A.3).

        attend((x + p) W_q, (m + p_m) W_k, m W_v) W_o

    with queries x, memory m, and their position embeddings p and p_m.
    """

    def __call__(
        self,
        x: Array,
        q_pos: Array,
        memory: Array,
        k_pos: Array,
        mask: masks.Mask | None = None,
        *,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Attends from T queries to S positions of the memory.

        Args:
          x: queries, [B, T, D].
          q_pos: position embeddings of x.
          memory: sequence to which the queries attend, [B, S, D].
          k_pos: position embeddings of the memory.
          mask: True where a query may attend to a position; None for all positions.
          return_weights: whether to return the attention weights.

        Returns:
          Outputs [B, T, D]; with `return_weights` also the attention weights [B, N, T, S].
        """
        query = constrain(self.query(x + q_pos), "B T N H")
        key = constrain(self.key(memory + k_pos), "B S K H")
        value = constrain(self.value(memory), "B S K H")
        options = {"mask": mask, "bias": None}
        result = self._attend(x, query, key, value, **options)
        return (result, self._weights(query, key, **options)) if return_weights else result


class Layer(nnx.Module):
    """Pre-norm layer: self-attention, cross-attention to the map (decoder only) and feed-forward.

    Args:
      config: config of the model.
      decoder: whether there is cross-attention.
    """

    def __init__(self, config: DETRConfig, *, decoder: bool, rngs: nnx.Rngs):
        D, dtype = config.model_size, jnp.dtype(config.backbone.dtype)
        options = {"dtype": dtype, "rngs": rngs}
        self.dropout_rate = config.dropout_rate
        self.attention = PositionedAttention(D, config.num_heads, **options)
        self.attention_norm = LayerNorm(D)
        self.cross = PositionedAttention(D, config.num_heads, **options) if decoder else None
        self.cross_norm = LayerNorm(D) if decoder else None
        self.feedforward = FeedForward(config.layers, rngs=rngs)
        self.feedforward_norm = LayerNorm(D)

    def __call__(
        self,
        x: Array,
        q_pos: Array,
        *,
        mask: masks.Mask | None = None,
        memory: Array | None = None,
        k_pos: Array | None = None,
        memory_mask: masks.Mask | None = None,
        key: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """Applies the layer to T positions.

        Args:
          x: inputs of the layer, [B, T, D].
          q_pos: position embeddings of x.
          mask: mask of the self-attention; None for all positions.
          memory: encoder output, [B, S, D]; None for an encoder layer.
          k_pos: position embeddings of the memory.
          memory_mask: mask of the cross-attention.
          key: random key of dropout; None for evaluation.

        Returns:
          Outputs [B, T, D]; and the cross-attention weights [B, N, T, S], or None for an encoder
          layer.
        """
        keys = split_keys(key, 3)
        rate, weights = self.dropout_rate, None
        y = self.attention_norm(x)
        y = self.attention(y, q_pos, y, q_pos, mask)
        x = constrain(x + maybe_dropout(y, rate, keys[0]), "B T D")
        if self.cross is not None:
            source = memory, k_pos, memory_mask
            y, weights = self.cross(self.cross_norm(x), q_pos, *source, return_weights=True)
            x = constrain(x + maybe_dropout(y, rate, keys[1]), "B T D")
        y = self.feedforward(self.feedforward_norm(x))
        return constrain(x + maybe_dropout(y, rate, keys[2]), "B T D"), weights


class DETROutput(NamedTuple):
    """Predictions of the queries after each decoder layer.

    Attributes:
      logits: class logits, [L, B, Q, 1 + K], "no object" first.
      boxes: [L, B, Q, 4], center y and x, height and width, as fractions of the padded image.
      weights: cross-attention weights of the last layer, [B, N, Q, S].
      backbone: attention weights of the backbone by stage.
    """

    logits: Array
    boxes: Array
    weights: Array
    backbone: dict[str, Array]


class DETR(nnx.Module):
    """Detector of boxes and classes.

    Args:
      config: config of the model.
      channels: channels of the images.
      classes: K, number of classes.
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
        # Initially, centers of boxes are close to their reference points, and sides to
        # `_FIRST_SIDE`.
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
        """Computes the predictions of the queries.

        Args:
          images, sizes, valid, training, return_weights: as for `MaskRCNN.features`.
          dropout_key: random key of dropout; None for evaluation.
        """
        config = self.config
        flags = {"valid": valid, "training": training, "return_weights": return_weights}
        maps, found = self.backbone(standardize(images, sizes), **flags)
        x = self.reduce(maps[-1])
        B, Y, X, D = x.shape
        stride = config.backbone.strides[-1]
        mask = masks.valid(key=valid_pixels(-(-sizes // stride), Y, X).reshape(B, Y * X))
        memory, k_pos = x.reshape(B, Y * X, D), sine_embedding(_grid(Y, X), D)
        count = len(self.encoder) + len(self.decoder)
        keys = [None] * count if dropout_key is None else jax.random.split(dropout_key, count)
        for layer, key in zip(self.encoder, keys, strict=False):
            memory, _ = layer(memory, k_pos, mask=mask, key=key)
        memory = self.memory_norm(memory)
        points = self.points[...]
        q_pos = self.place(sine_embedding(jax.nn.sigmoid(points), D))
        y = jnp.broadcast_to(self.queries[...], (B, *self.queries.shape)).astype(memory.dtype)
        y = constrain(y, "B Q D")
        source = {"memory": memory, "k_pos": k_pos, "memory_mask": mask}
        logits, boxes = [], []
        for layer, key in zip(self.decoder, keys[len(self.encoder) :], strict=True):
            y, weights = layer(y, q_pos, **source, key=key)
            state = self.norm(y).astype(jnp.float32)
            logits.append(self.classify(state))
            for hidden in self.hidden:
                state = jax.nn.relu(hidden(state))
            origin = jnp.concatenate([points, jnp.zeros_like(points)], axis=-1)
            boxes.append(jax.nn.sigmoid(self.box(state) + origin))
        return DETROutput(jnp.stack(logits), jnp.stack(boxes), weights, found)

    def losses(
        self,
        batch: Mapping[str, Array],
        dropout_key: Array | None,
        *,
        valid: Array | None = None,
        training: bool = False,
    ) -> dict[str, losses.LossTerm]:
        """Computes class, L1 and generalized IoU losses (Carion et al. 2020, section 3.1).

        Args:
          batch: image [B, height, width, channels]; size [B, 2], height and width without padding;
            boxes [B, M, 4]; and labels [B, M], -1 for padding.
          dropout_key, valid, training: as for `__call__`.

        Returns:
          The terms "class", "box" and "overlap" of the last layer, and "class_1", ... of earlier
          layers. Each has its weighted total and its count, [B].
        """
        options = {"valid": valid, "training": training, "dropout_key": dropout_key}
        output = self(batch["image"], batch["size"], **options)
        Y, X = batch["image"].shape[1:3]
        targets = to_normalized_cyxhw(batch["boxes"], Y, X)

        weights = {name: getattr(self.config, name) for name in LOSS_WEIGHTS}

        def of_image(logits, boxes, true_boxes, labels):
            return set_losses(logits, boxes, true_boxes, labels, **weights)

        by_layer = over_examples(
            jax.vmap(jax.vmap(of_image, in_axes=(0, 0, None, None))),
            jnp.swapaxes(output.logits, 0, 1),
            jnp.swapaxes(output.boxes, 0, 1),
            targets,
            batch["labels"],
        )
        result = {}
        for layer in range(len(self.decoder)):
            last = layer == len(self.decoder) - 1
            for name, term in by_layer.items():
                key = name if last else f"{name}_{layer + 1}"
                result[key] = losses.LossTerm(term.total[:, layer], term.count[:, layer])
        return result

    def detect(self, images: Array, sizes: Array) -> tuple[Detections, None]:
        """Returns the best class and box of each query, most probable first; and no masks."""
        output = self(images, sizes)
        return self._ranked(output, images.shape[1:3], sizes)[0], None

    def attention(self, images: Array, sizes: Array) -> dict[str, Array]:
        """Returns attention weights.

        "objects" [B, Q, S] are the weights of each detection over the last backbone map, averaged
        over heads, in the order of `detect`. The other entries are the attention weights of the
        backbone by stage.
        """
        output = self(images, sizes, return_weights=True)
        _, order = self._ranked(output, images.shape[1:3], sizes)
        weights = jnp.mean(output.weights, axis=1)
        objects = jnp.take_along_axis(weights, order[..., None], axis=1)
        return {**output.backbone, "objects": objects}

    def _ranked(
        self, output: DETROutput, padded: tuple[int, int], sizes: Array
    ) -> tuple[Detections, Array]:
        """Returns the detections, highest score first, and their query indices, [B, Q]."""
        probabilities = jax.nn.softmax(output.logits[-1])[..., 1:]
        scores = jnp.max(probabilities, axis=-1)
        labels = jnp.argmax(probabilities, axis=-1)
        boxes = jax.vmap(lambda boxes, size: clip(to_xyxy(boxes, *padded), size[0], size[1]))(
            output.boxes[-1], sizes
        )
        order = jnp.argsort(-scores, axis=-1)
        scores, labels = (jnp.take_along_axis(x, order, axis=1) for x in (scores, labels))
        boxes = jnp.take_along_axis(boxes, order[..., None], axis=1)
        nonempty = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        valid = nonempty & (scores >= self.config.score_threshold)
        return Detections(
            jnp.where(valid[..., None], boxes, 0),
            jnp.where(valid, scores, 0),
            jnp.where(valid, labels, 0).astype(jnp.int32),
            valid,
        ), order


def _grid(Y: int, X: int) -> Array:
    """Returns the centers of the cells of a map, [Y·X, 2]: y and x as fractions of its sides."""
    y, x = jnp.meshgrid((jnp.arange(Y) + 0.5) / Y, (jnp.arange(X) + 0.5) / X, indexing="ij")
    return jnp.stack([y.ravel(), x.ravel()], axis=-1)


def _spread(count: int) -> np.ndarray:
    """Returns the first points of Roberts' R2 sequence, spread over the unit square, [count, 2]."""
    root = 1.32471795724474602596
    steps = np.arange(1, count + 1)[:, None] * np.array([1 / root, 1 / root**2])
    return (0.5 + steps) % 1


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 0.02, 0.98)
    return np.log(p / (1 - p)).astype(np.float32)
