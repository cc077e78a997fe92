"""Random augmentation of images in training, with explicit keys, under `jax.jit`.

The random numbers of an example depend only on its own key, see `example_keys`. Geometric
transforms are also applied to label maps, if there are any. Pixels from outside the image are 0; in
label maps they are `void`.

In shapes, B is the batch size, Y and X are height and width, and C is the number of channels.
Images are floating point [B, Y, X, C] from 0 to 1, label maps int [B, Y, X], and keys random keys
[B], one for each example.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp

from tasks.common.configs import Config, Fraction, NonNegativeInt, PositiveFloat, within

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class AugmentationConfig(Config):
    """Random changes of images in training, applied in this order; 0 or False disables a change.

    Attributes:
      scale_min, scale_max: limits of a log-uniform scale factor; the scaled image is randomly
        cropped or padded to its original size. Both are 1 for no scaling.
      crop_padding: maximum vertical and horizontal translation in pixels.
      flip: horizontal flip with probability 1/2.
      flip_vertical: vertical flip with probability 1/2.
      brightness: maximum number that is added to all pixels, or subtracted from them. Pixels are in
        [0, 1].
      contrast: maximum relative change of the differences from the mean pixel.
      saturation: maximum relative change of the saturation.
      hue: maximum shift of the hue, as a fraction of the color circle.
      cutout: side length in pixels of a square that is filled with the mean of the image.
    """

    scale_min: PositiveFloat = 1.0
    scale_max: PositiveFloat = 1.0
    crop_padding: NonNegativeInt = 0
    flip: bool = False
    flip_vertical: bool = False
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: within("[0, 0.5]") = 0.0
    cutout: NonNegativeInt = 0

    def __post_init__(self):
        super().__post_init__()
        ordered = self.scale_min <= self.scale_max
        self.expect("scale_min", ordered, f"at most scale_max={self.scale_max}")

    @property
    def needs_color(self) -> bool:
        """True if images must have red, green and blue."""
        return self.saturation > 0 or self.hue > 0


def augment(
    images: Array,
    keys: Array,
    config: AugmentationConfig,
    labels: Array | None = None,
    void: int = 0,
    size: tuple[int, int] | None = None,
) -> Any:
    """Applies all changes of a config.

    Args:
      images: floating point [B, Y, X, C] from 0 to 1.
      keys: random keys [B].
      config: see `AugmentationConfig`.
      labels: label maps, int [B, Y, X], which are transformed with the images; None for no maps.
      void: label of pixels from outside the image.
      size: height and width of random crops of the scaled images; None for their original size.

    Returns:
      The images; with `labels`, a pair of the images and the label maps.

    Raises:
      ValueError: images are not floating point, or saturation or hue is used without three
        channels.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: got dtype {images.dtype}, expected floating point from 0 to 1")
    if config.needs_color and images.shape[-1] != 3:
        raise ValueError(
            f"images: got {images.shape[-1]} channels, expected 3 for saturation and hue of "
            "config.data.augmentation"
        )
    # One key per kind of change, so that enabling one does not affect the others.
    scale_key, crop_key, flip_key, vertical_key, color_key, cutout_key = (
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number) for number in range(6)
    )
    has_labels = labels is not None
    limits = (config.scale_min, config.scale_max)
    if limits != (1, 1) or size is not None:
        images, labels = scale_and_crop(images, scale_key, limits, labels, void, size)
    if config.crop_padding:
        images, labels = random_crop(images, crop_key, config.crop_padding, labels, void)
    if config.flip:
        images, labels = random_flip(images, flip_key, labels)
    if config.flip_vertical:
        images, labels = random_flip(images, vertical_key, labels, axis=1)
    images = color_jitter(images, color_key, config)
    if config.cutout:
        images, labels = cutout(images, cutout_key, config.cutout, labels, void)
    return (images, labels) if has_labels else images


# ---------------------------------------------------------------- geometry


def random_flip(
    images: Array, keys: Array, labels: Array | None = None, axis: int = 2
) -> tuple[Array, Array | None]:
    """Flips each image with probability 1/2, horizontally (axis 2) or vertically (axis 1)."""
    chosen = jax.vmap(jax.random.bernoulli)(keys)

    def flip(x: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis), x)

    return flip(images), None if labels is None else flip(labels)


def random_crop(
    images: Array, keys: Array, padding: int, labels: Array | None = None, void: int = 0
) -> tuple[Array, Array | None]:
    """Pads images, and crops them to their original size (He et al. 2016, section 4.2).

    The position of the crop is random. This translates an image by up to `padding` pixels in each
    direction.
    """
    starts = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)

    def crop(x: Array, fill: float) -> Array:
        around = [(0, 0), (padding, padding), (padding, padding), *[(0, 0)] * (x.ndim - 3)]
        wide = jnp.pad(x, around, constant_values=fill)
        rest = x.ndim - 3

        def part(one: Array, start: Array) -> Array:
            return jax.lax.dynamic_slice(one, (*start, *[0] * rest), x.shape[1:])

        return jax.vmap(part)(wide, starts)

    return crop(images, 0), None if labels is None else crop(labels, void)


def scale_and_crop(
    images: Array,
    keys: Array,
    limits: tuple[float, float],
    labels: Array | None = None,
    void: int = 0,
    size: tuple[int, int] | None = None,
) -> tuple[Array, Array | None]:
    """Scales images by a log-uniform factor s between the limits, and crops them at random.

    Along an axis where the scaled image is smaller than the result, it is at a random position,
    with padding around it. Images are interpolated bilinearly with antialiasing; labels are taken
    from the nearest pixel. A crop at the original scale (s = 1) is not interpolated.

    Args:
      images: [B, Y, X, C].
      keys: random keys [B].
      limits: smallest and largest scale s.
      labels: label maps, int [B, Y, X], if any.
      void: label of pixels from outside the image.
      size: height and width of the result; None for Y and X.
    """
    _, Y, X, C = images.shape
    size = size or (Y, X)
    sides = jnp.array([Y, X], images.dtype)
    larger = jnp.array(size, images.dtype) - sides

    def draw(key: Array) -> tuple[Array, Array]:
        scale_key, offset_key = jax.random.split(key)
        low, high = (jnp.log(limit) for limit in limits)
        s = jnp.exp(jax.random.uniform(scale_key, (), minval=low, maxval=high))
        # The offset is a random fraction of the free space around a smaller image, or of the
        # overhang of a larger image, where it is negative.
        place = jax.random.uniform(offset_key, (2,))
        offset = place * sides * (1 - s) + place * larger
        return s, jnp.round(offset) if limits == (1, 1) else offset

    scales, offsets = jax.vmap(draw)(keys)

    def transform(image: Array, s: Array, offset: Array) -> Array:
        both = jnp.stack([s, s])
        return jax.image.scale_and_translate(image, (*size, C), (0, 1), both, offset, "linear")

    images = jax.vmap(transform)(images, scales, offsets)
    if labels is None:
        return images, None

    def nearest(label: Array, s: Array, offset: Array) -> Array:
        y, x = (
            jnp.floor((jnp.arange(side) + 0.5 - start) / s).astype(jnp.int32)
            for side, start in zip(size, offset, strict=True)
        )
        inside = ((y >= 0) & (y < Y))[:, None] & ((x >= 0) & (x < X))
        found = label[jnp.clip(y, 0, Y - 1)][:, jnp.clip(x, 0, X - 1)]
        return jnp.where(inside, found, void)

    return images, jax.vmap(nearest)(labels, scales, offsets)


def translate(images: Array, offsets: Array) -> Array:
    """Translates images by fractions of pixels, with 0 outside.

        out[y, x] = Σ_j Σ_i tri(y - o_y - j) · tri(x - o_x - i) · image[j, i]

    with tri(d) = max(0, 1 - |d|), which is bilinear interpolation.

    Args:
      images: [B, Y, X, C].
      offsets: o, [B, 2], in pixels downward and to the right.
    """
    _, Y, X, _ = images.shape
    down, right = _translation_matrix(offsets[:, 0], Y), _translation_matrix(offsets[:, 1], X)
    return jnp.einsum("byj,bxi,bjic->byxc", down, right, images)


def random_translation(images: Array, largest: float, key: Array) -> Array:
    """Translates images by offsets that are uniform in [-largest, largest].

    Args:
      images: [B, Y, X, C].
      largest: maximum offset in pixels, vertically and horizontally.
      key: a single key for the batch.
    """
    if largest == 0:
        return images
    offsets = jax.random.uniform(key, (len(images), 2), minval=-largest, maxval=largest)
    return translate(images, offsets)


def _translation_matrix(offsets: Array, size: int) -> Array:
    """Returns the weights of the linear interpolation along one axis.

    Args:
      offsets: offset of each image along the axis, [B].
      size: number of pixels along the axis.

    Returns:
      [B, size, size], with translated pixels on axis 1 and original pixels on axis 2.
    """
    pixels = jnp.arange(size, dtype=jnp.float32)
    distance = pixels[:, None] - offsets[:, None, None] - pixels
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


# ---------------------------------------------------------------- values


def color_jitter(images: Array, keys: Array, config: AugmentationConfig) -> Array:
    """Changes brightness, contrast, saturation and hue at random.

    After each of these changes, which dm_pix computes, pixels are clipped to [0, 1].
    """

    def jitter(image: Array, key: Array) -> Array:
        first, second, third, fourth = jax.random.split(key, 4)
        if (most := config.brightness) > 0:
            image = jnp.clip(dm_pix.random_brightness(first, image, most), 0, 1)
        if (most := config.contrast) > 0:
            image = jnp.clip(dm_pix.random_contrast(second, image, 1 - most, 1 + most), 0, 1)
        if (most := config.saturation) > 0:
            image = jnp.clip(dm_pix.random_saturation(third, image, 1 - most, 1 + most), 0, 1)
        if (most := config.hue) > 0:
            image = jnp.clip(dm_pix.random_hue(fourth, image, most), 0, 1)
        return image

    return jax.vmap(jitter)(images, keys)


def cutout(
    images: Array, keys: Array, size: int, labels: Array | None = None, void: int = 0
) -> tuple[Array, Array | None]:
    """Fills a square of each image with the image's mean (DeVries & Taylor 2017, "Cutout").

    The center of the square is a random pixel, so the square may extend beyond the image. Labels
    within the square become `void`.
    """
    _, Y, X, _ = images.shape

    def hidden(key: Array) -> Array:
        row_key, column_key = jax.random.split(key)
        top = jax.random.randint(row_key, (), 0, Y) - size // 2
        left = jax.random.randint(column_key, (), 0, X) - size // 2
        rows, columns = jnp.arange(Y) - top, jnp.arange(X) - left
        return ((rows >= 0) & (rows < size))[:, None] & ((columns >= 0) & (columns < size))

    inside = jax.vmap(hidden)(keys)
    mean = jnp.mean(images, axis=(1, 2), keepdims=True)
    images = jnp.where(inside[..., None], mean, images)
    return images, None if labels is None else jnp.where(inside, void, labels)


def mixup(
    images: Array, keys: Array, alpha: float, valid: Array | None = None
) -> tuple[Array, Array, Array]:
    """Mixes each image with another of the batch (Zhang et al. 2018, "mixup").

        x'_b = λ_b x_b + (1 - λ_b) x_p(b),   λ ~ Beta(α, α)

    with the partner p(b) = B - 1 - b. The loss is λ_b L(y_b) + (1 - λ_b) L(y_p(b)).

    Args:
      images: [B, Y, X, C].
      keys: random keys [B].
      alpha: α, above 0.
      valid: bool [B], False for padding rows. An image whose partner is a padding row is not mixed:
        its λ is 1. None if there are no padding rows.

    Returns:
      The mixed images x'; the partners p, int32 [B]; and λ, [B].
    """
    partner = jnp.arange(len(images))[::-1]
    fraction = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    if valid is not None:
        fraction = jnp.where(valid[partner], fraction, 1.0)
    weight = fraction[:, None, None, None].astype(images.dtype)
    # Images that are not mixed must not receive NaN or infinity through a product with 0.
    other = jnp.where(weight < 1, images[partner], 0)
    return weight * images + (1 - weight) * other, partner, fraction
