"""Random augmentation of images and their objects, under `jax.jit`.

Each example has a random key of its own. An array of S x S pixels contains an image in its upper
left corner, and zeros to the right and below. This is also true after augmentation.

In shapes, B is the batch size, S the side of the array, M the number of objects including padding,
and Y and X are height and width of an instance map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tasks.common.images import augmentation as common
from tasks.detection.ops.boxes import area, clip

Array = jax.Array

# Objects are removed from a cropped image if less than this fraction of their box remains.
LEAST_VISIBLE = 0.25


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Config of augmentation in the order of application; 0 or False disables a step.

    Attributes:
      scale_min, scale_max: range of a log-uniform scale factor; 1 and 1 for no scaling. Scaled
        images that exceed the square are cropped at random. Objects are removed if less than a
        quarter of the area of their box remains.
      flip: whether to exchange left and right with probability 1/2.
      flip_vertical: whether to exchange top and bottom with probability 1/2.
      transpose: whether to exchange rows and columns with probability 1/2; with both flips this
        gives all eight symmetries of a square.
      brightness, contrast, saturation, hue: see
        `tasks.common.images.augmentation.AugmentationConfig`.
    """

    scale_min: float = 1.0
    scale_max: float = 1.0
    flip: bool = False
    flip_vertical: bool = False
    transpose: bool = dataclasses.field(default=False, metadata={"formerly": "turn"})
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        self.common  # noqa: B018 - checks the values

    @property
    def common(self) -> common.AugmentationConfig:
        """Augmentation that is shared by all image tasks."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "transpose"]
        return common.AugmentationConfig(**{name: getattr(self, name) for name in names})


def augment(
    batch: Mapping[str, Array], keys: Array, config: AugmentationConfig
) -> dict[str, Array]:
    """Augments a batch.

    Args:
      batch: image [B, S, S, 3], values 0 to 255; size int [B, 2], height and width of the images
        without padding; boxes [B, M, 4]; labels int [B, M], -1 for padding; and, in data with
        masks, instances int [B, S, S], k + 1 at pixels of object k and 0 elsewhere.
      keys: random key of each example, [B].
      config: see `AugmentationConfig`.

    Returns:
      The batch with these fields replaced; image is float32. Objects keep their indices; removed
      objects get label -1.
    """
    fields = ("image", "size", "boxes", "labels", "instances")
    changed = {name: batch[name] for name in fields if name in batch}
    changed["image"] = changed["image"].astype(jnp.float32)

    def one(example: dict[str, Array], key: Array) -> dict[str, Array]:
        # Each kind of change has its own key, so that its random numbers do not depend on the other
        # kinds.
        keys = [jax.random.fold_in(key, number) for number in range(4)]
        if (config.scale_min, config.scale_max) != (1, 1):
            example = _random_scale_and_crop(example, keys[0], config.scale_min, config.scale_max)
        for axis, wanted in enumerate((config.flip_vertical, config.flip)):
            if wanted:
                example = _apply_at_random(keys[1 + axis], flip(example, axis), example)
        return (
            _apply_at_random(keys[3], transpose(example), example) if config.transpose else example
        )

    changed = jax.vmap(one)(changed, keys)
    jittered = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 4)
    image = common.color_jitter(changed["image"] / 255, jittered, config.common)
    return {**batch, **changed, "image": image * 255}


def _apply_at_random(
    key: Array, changed: dict[str, Array], example: dict[str, Array]
) -> dict[str, Array]:
    heads = jax.random.bernoulli(key)
    return {name: jnp.where(heads, changed[name], example[name]) for name in example}


def flip(example: Mapping[str, Array], axis: int) -> dict[str, Array]:
    """Flips one example along an axis.

    Args:
      example: fields as for `augment`, without B.
      axis: 0 exchanges top and bottom, 1 left and right.
    """
    length = example["size"][axis]
    order = jnp.arange(example["image"].shape[axis])
    order = jnp.where(order < length, length - 1 - order, order)
    result = dict(example)
    for name in ("image", "instances"):
        if name in example:
            result[name] = jnp.take(example[name], order, axis=axis)
    boxes = jnp.asarray(example["boxes"])
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    corners = (length - x2, y1, length - x1, y2) if axis else (x1, length - y2, x2, length - y1)
    mirrored = jnp.stack(corners, axis=-1)
    result["boxes"] = jnp.where((example["labels"] >= 0)[:, None], mirrored, boxes)
    return result


def transpose(example: Mapping[str, Array]) -> dict[str, Array]:
    """Exchanges rows and columns of one example.

    Args:
      example: fields as for `augment`, without B.
    """
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
    scale_key, offset_key = jax.random.split(key)
    low, high = jnp.log(smallest), jnp.log(largest)
    scale = jnp.exp(jax.random.uniform(scale_key, (), minval=low, maxval=high))
    side = jnp.array(example["image"].shape[:2], jnp.float32)
    excess = jnp.maximum(example["size"] * scale - side, 0)
    return scale_and_crop(example, scale, jax.random.uniform(offset_key, (2,)) * excess)


def scale_and_crop(example: Mapping[str, Array], scale: Array, offset: Array) -> dict[str, Array]:
    """Scales one example, and crops it to the square that begins at `offset`.

    Images are resized by linear interpolation with antialiasing, and instance maps by nearest
    neighbor. If there is an instance map, boxes are computed from the remaining pixels of objects.

    Args:
      example: fields as for `augment`, without B.
      scale: scale factor, a scalar.
      offset: [2], top and left of the crop in the scaled image.
    """
    shape = example["image"].shape
    both = jnp.stack([scale, scale])
    image = jax.image.scale_and_translate(
        example["image"], shape, (0, 1), both, -offset, "linear", precision="highest"
    )
    side = jnp.array(shape[:2], jnp.float32)
    size = jnp.clip(jnp.floor(example["size"] * scale - offset), 1, side).astype(jnp.int32)
    axes = [jnp.arange(length) for length in shape[:2]]
    rows, columns = (
        jnp.floor((at + 0.5 + start) / scale).astype(jnp.int32)
        for at, start in zip(axes, offset, strict=True)
    )
    real = (axes[0] < size[0])[:, None] & (axes[1] < size[1])
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
        boxes, nonempty = tight_boxes(result["instances"], len(boxes))
        visible &= nonempty
    kept = visible & (example["labels"] >= 0)
    result["labels"] = jnp.where(kept, example["labels"], -1)
    return result | {"boxes": jnp.where(kept[:, None], boxes, 0)}


def tight_boxes(instances: Array, count: int) -> tuple[Array, Array]:
    """Returns the smallest box around each object of an instance map.

    Args:
      instances: instance map, int [Y, X], k + 1 at pixels of object k, 0 at pixels without one.
      count: M, number of objects.

    Returns:
      float32 [M, 4], 0 for objects without pixels; and bool [M], whether the object has pixels.
    """
    ids = instances.astype(jnp.int32)
    Y, X = ids.shape
    y, x = jnp.arange(Y)[:, None], jnp.arange(X)[None]

    def greatest(values: Array) -> Array:
        values = jnp.broadcast_to(values, (Y, X)).ravel()
        return jax.ops.segment_max(values, ids.ravel(), num_segments=count + 1)[1:]

    there = jnp.bincount(ids.ravel(), length=count + 1)[1:] > 0
    corners = (X - greatest(X - x), Y - greatest(Y - y), greatest(x + 1), greatest(y + 1))
    boxes = jnp.stack(corners, axis=-1).astype(jnp.float32)
    return jnp.where(there[:, None], boxes, 0), there
