"""Pictures and the objects in them changed at random in training, under `jax.jit`.

What is drawn for an example depends on its own key alone. The picture stays in the upper left
corner of its square, padded with 0 to the right and below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tasks.common.images import augmentation as common
from tasks.detection.ops.boxes import area, clip

Array = jax.Array

# Share of an object that must be left of it where its picture is cut.
LEAST_VISIBLE = 0.25


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """What is changed at random in training, in this order; what is 0 or False is not.

    Attributes:
      scale_min, scale_max: a picture is scaled by a factor between them, uniform in its logarithm,
        and where it then is larger than the square, cut at random; both 1: not. Objects of which
        less than a quarter is left are objects no more.
      flip: left and right are exchanged in every second picture.
      flip_vertical: top and bottom are.
      turn: rows and columns are; with both flips this gives all eight ways to lay a square.
      brightness, contrast, saturation, hue: see `tasks.common.images.augmentation`.
    """

    scale_min: float = 1.0
    scale_max: float = 1.0
    flip: bool = False
    flip_vertical: bool = False
    turn: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        self.common  # noqa: B018 - checks the values

    @property
    def common(self) -> common.AugmentationConfig:
        """What pictures of all tasks have."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "turn"]
        return common.AugmentationConfig(**{name: getattr(self, name) for name in names})


def augment(
    batch: Mapping[str, Array], keys: Array, config: AugmentationConfig
) -> dict[str, Array]:
    """All that a config asks for.

    Args:
      batch: image [B, S, S, 3], values 0 to 255; size int [B, 2]; boxes [B, M, 4]; labels int
        [B, M], -1 where there is no object; with masks instances int [B, S, S], k + 1 where object
        k is.
      keys: [B].
      config: see `AugmentationConfig`.

    Returns:
      The batch with these fields changed; image is float32. Objects keep their places.
    """
    fields = ("image", "size", "boxes", "labels", "instances")
    changed = {name: batch[name] for name in fields if name in batch}
    changed["image"] = changed["image"].astype(jnp.float32)

    def one(example: dict[str, Array], key: Array) -> dict[str, Array]:
        # A key for each kind, so that one more kind does not change what the others draw.
        keys = [jax.random.fold_in(key, number) for number in range(4)]
        if (config.scale_min, config.scale_max) != (1, 1):
            example = _random_scale_and_crop(example, keys[0], config.scale_min, config.scale_max)
        for axis, wanted in enumerate((config.flip_vertical, config.flip)):
            if wanted:
                example = _chosen(keys[1 + axis], flip(example, axis), example)
        return _chosen(keys[3], transpose(example), example) if config.turn else example

    changed = jax.vmap(one)(changed, keys)
    jittered = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 4)
    image = common.color_jitter(changed["image"] / 255, jittered, config.common)
    return {**batch, **changed, "image": image * 255}


def _chosen(key: Array, changed: dict[str, Array], example: dict[str, Array]) -> dict[str, Array]:
    heads = jax.random.bernoulli(key)
    return {name: jnp.where(heads, changed[name], example[name]) for name in example}


def flip(example: Mapping[str, Array], axis: int) -> dict[str, Array]:
    """One example mirrored within its picture's size: top and bottom (axis 0), left and right (1).

    Args:
      example: fields as for `augment`, without B.
      axis: of the picture.
    """
    length = example["size"][axis]
    places = jnp.arange(example["image"].shape[axis])
    places = jnp.where(places < length, length - 1 - places, places)
    result = dict(example)
    for name in ("image", "instances"):
        if name in example:
            result[name] = jnp.take(example[name], places, axis=axis)
    boxes = jnp.asarray(example["boxes"])
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    corners = (length - x2, y1, length - x1, y2) if axis else (x1, length - y2, x2, length - y1)
    mirrored = jnp.stack(corners, axis=-1)
    result["boxes"] = jnp.where((example["labels"] >= 0)[:, None], mirrored, boxes)
    return result


def transpose(example: Mapping[str, Array]) -> dict[str, Array]:
    """One example with rows and columns exchanged; fields as for `augment`, without B."""
    result = dict(example)
    for name in ("image", "instances"):
        if name in example:
            result[name] = jnp.swapaxes(example[name], 0, 1)
    return {
        **result,
        "size": example["size"][::-1],
        "boxes": example["boxes"][:, jnp.array([1, 0, 3, 2])],
    }


def _random_scale_and_crop(
    example: Mapping[str, Array], key: Array, smallest: float, largest: float
) -> dict[str, Array]:
    scale_key, place_key = jax.random.split(key)
    low, high = jnp.log(smallest), jnp.log(largest)
    scale = jnp.exp(jax.random.uniform(scale_key, (), minval=low, maxval=high))
    side = jnp.array(example["image"].shape[:2], jnp.float32)
    juts_out = jnp.maximum(example["size"] * scale - side, 0)
    return scale_and_crop(example, scale, jax.random.uniform(place_key, (2,)) * juts_out)


def scale_and_crop(example: Mapping[str, Array], scale: Array, offset: Array) -> dict[str, Array]:
    """One example scaled, and the part of it from `offset` on that its square can hold.

    Pixels are interpolated linearly, with antialiasing; instances are those of the nearest pixel,
    and boxes then stand tight around what is left of them.

    Args:
      example: fields as for `augment`, without B.
      scale: [], pixels of the result for one of the picture.
      offset: [2], rows above and columns to the left that are cut, of the scaled picture.
    """
    shape = example["image"].shape
    both = jnp.stack([scale, scale])
    image = jax.image.scale_and_translate(
        example["image"], shape, (0, 1), both, -offset, "linear", precision="highest"
    )
    side = jnp.array(shape[:2], jnp.float32)
    size = jnp.clip(jnp.floor(example["size"] * scale - offset), 1, side).astype(jnp.int32)
    places = [jnp.arange(length) for length in shape[:2]]
    rows, columns = (
        jnp.floor((at + 0.5 + start) / scale).astype(jnp.int32)
        for at, start in zip(places, offset, strict=True)
    )
    real = (places[0] < size[0])[:, None] & (places[1] < size[1])
    result = dict(example) | {"image": jnp.where(real[..., None], image, 0), "size": size}
    moved = example["boxes"] * scale - jnp.tile(offset[::-1], 2)
    boxes = clip(moved, size[0], size[1])
    visible = (area(boxes) >= LEAST_VISIBLE * area(moved)) & jnp.all(
        boxes[:, 2:] - boxes[:, :2] >= 1, axis=-1
    )
    if "instances" in example:
        last = example["instances"].shape
        found = example["instances"][jnp.clip(rows, 0, last[0] - 1)]
        found = found[:, jnp.clip(columns, 0, last[1] - 1)]
        result["instances"] = jnp.where(real, found, 0)
        boxes, there = tight_boxes(result["instances"], len(boxes))
        visible &= there
    there = visible & (example["labels"] >= 0)
    result["labels"] = jnp.where(there, example["labels"], -1)
    return result | {"boxes": jnp.where(there[:, None], boxes, 0)}


def tight_boxes(instances: Array, count: int) -> tuple[Array, Array]:
    """The smallest box around each object of a map of instances.

    Args:
      instances: int [Y, X], k + 1 where object k is.
      count: M.

    Returns:
      float32 [M, 4] and bool [M], whether the object has a pixel; without one its box is 0.
    """
    ids = instances.astype(jnp.int32)
    Y, X = ids.shape
    y, x = jnp.arange(Y)[:, None], jnp.arange(X)[None]

    def greatest(places: Array) -> Array:
        values = jnp.broadcast_to(places, (Y, X)).ravel()
        return jax.ops.segment_max(values, ids.ravel(), num_segments=count + 1)[1:]

    there = jnp.bincount(ids.ravel(), length=count + 1)[1:] > 0
    corners = (X - greatest(X - x), Y - greatest(Y - y), greatest(x + 1), greatest(y + 1))
    boxes = jnp.stack(corners, axis=-1).astype(jnp.float32)
    return jnp.where(there[:, None], boxes, 0), there
