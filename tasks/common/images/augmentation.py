"""Pictures changed at random in training, by explicit keys, under `jax.jit`.

B batch, Y X height and width, C channels. What is drawn for an example depends on its own key, and
on nothing else of the batch: see `example_keys`. Where places move, a label map [B, Y, X] moves
alike; where nothing is, pictures are 0 and label maps `void`.
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
    """What is changed at random in training, in this order; what is 0 or False is not.

    Attributes:
      scale_min, scale_max: a picture is scaled by a factor between them, uniform in its logarithm,
        and cut or surrounded at random to the size that it had; both 1: not.
      crop_padding: pixels by which it is moved at most, up or down and left or right.
      flip: left and right are exchanged in every second picture.
      flip_vertical: top and bottom are.
      brightness: added to all pixels, at most; they go from 0 to 1.
      contrast: the distance of pixels from their mean grows or shrinks by this share at most.
      saturation: of the colours, likewise.
      hue: of the colours, moved by this part of the circle at most.
      cutout: pixels a side of a square that is filled with the picture's mean.
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
        """Whether pictures must have red, green and blue."""
        return self.saturation > 0 or self.hue > 0


def augment(
    images: Array,
    keys: Array,
    config: AugmentationConfig,
    labels: Array | None = None,
    void: int = 0,
) -> Any:
    """All that a config asks for.

    Args:
      images: floating-point [B, Y, X, C] from 0 to 1.
      keys: [B].
      config: see `AugmentationConfig`.
      labels: int [B, Y, X], moved with the pictures.
      void: label of places where nothing is.

    Returns:
      The pictures; with labels both.

    Raises:
      ValueError: colours of pictures that are not of three channels, or no floating point.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: got dtype {images.dtype}, expected floating point from 0 to 1")
    if config.needs_color and images.shape[-1] != 3:
        raise ValueError(
            f"augmentation: saturation and hue are of pictures with 3 channels, got "
            f"{images.shape[-1]}"
        )
    # A key for each kind, so that one more kind does not change what the others draw.
    scale_key, crop_key, flip_key, vertical_key, color_key, cutout_key = (
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number) for number in range(6)
    )
    labelled = labels is not None
    if (config.scale_min, config.scale_max) != (1, 1):
        limits = (config.scale_min, config.scale_max)
        images, labels = scale_and_crop(images, scale_key, limits, labels, void)
    if config.crop_padding:
        images, labels = random_crop(images, crop_key, config.crop_padding, labels, void)
    if config.flip:
        images, labels = random_flip(images, flip_key, labels)
    if config.flip_vertical:
        images, labels = random_flip(images, vertical_key, labels, axis=1)
    images = color_jitter(images, color_key, config)
    if config.cutout:
        images, labels = cutout(images, cutout_key, config.cutout, labels, void)
    return (images, labels) if labelled else images


# ---------------------------------------------------------------- places


def random_flip(
    images: Array, keys: Array, labels: Array | None = None, axis: int = 2
) -> tuple[Array, Array | None]:
    """Every second picture mirrored: left and right (axis 2), or top and bottom (axis 1)."""
    chosen = jax.vmap(jax.random.bernoulli)(keys)

    def flipped(x: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis), x)

    return flipped(images), None if labels is None else flipped(labels)


def random_crop(
    images: Array, keys: Array, padding: int, labels: Array | None = None, void: int = 0
) -> tuple[Array, Array | None]:
    """As large a part of each picture with `padding` around (He et al. 2016, section 4.2).

    Moves by whole pixels, -padding to padding each way.
    """
    starts = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)

    def cropped(x: Array, nothing: float) -> Array:
        around = [(0, 0), (padding, padding), (padding, padding), *[(0, 0)] * (x.ndim - 3)]
        wide = jnp.pad(x, around, constant_values=nothing)
        rest = x.ndim - 3

        def part(one: Array, start: Array) -> Array:
            return jax.lax.dynamic_slice(one, (*start, *[0] * rest), x.shape[1:])

        return jax.vmap(part)(wide, starts)

    return cropped(images, 0), None if labels is None else cropped(labels, void)


def scale_and_crop(
    images: Array,
    keys: Array,
    limits: tuple[float, float],
    labels: Array | None = None,
    void: int = 0,
) -> tuple[Array, Array | None]:
    """Each picture scaled by a factor s between the limits, log s uniform, and put into a frame of
    the size that it had: a part of it at random where s > 1, all of it with nothing around where
    s < 1. Bilinear with antialiasing; labels are those of the nearest pixel.
    """
    _, Y, X, C = images.shape
    sides = jnp.array([Y, X], images.dtype)

    def draw(key: Array) -> tuple[Array, Array]:
        scale_key, place_key = jax.random.split(key)
        low, high = (jnp.log(limit) for limit in limits)
        s = jnp.exp(jax.random.uniform(scale_key, (), minval=low, maxval=high))
        # Of what juts out, or of what is left free.
        return s, jax.random.uniform(place_key, (2,)) * sides * (1 - s)

    scales, offsets = jax.vmap(draw)(keys)

    def moved(image: Array, s: Array, offset: Array) -> Array:
        both = jnp.stack([s, s])
        return jax.image.scale_and_translate(image, (Y, X, C), (0, 1), both, offset, "linear")

    images = jax.vmap(moved)(images, scales, offsets)
    if labels is None:
        return images, None

    def nearest(label: Array, s: Array, offset: Array) -> Array:
        y, x = (
            jnp.floor((jnp.arange(side) + 0.5 - start) / s).astype(jnp.int32)
            for side, start in zip((Y, X), offset, strict=True)
        )
        inside = ((y >= 0) & (y < Y))[:, None] & ((x >= 0) & (x < X))
        found = label[jnp.clip(y, 0, Y - 1)][:, jnp.clip(x, 0, X - 1)]
        return jnp.where(inside, found, void)

    return images, jax.vmap(nearest)(labels, scales, offsets)


def translate(images: Array, offsets: Array) -> Array:
    """Moves each picture, in parts of a pixel too; what comes in from outside is 0.

        out[y, x] = Σ_j Σ_i tri(y - o_y - j) · tri(x - o_x - i) · image[j, i]

    with tri(d) = max(0, 1 - |d|), which is bilinear interpolation.

    Args:
      images: [B, Y, X, C].
      offsets: [B, 2], down and to the right.
    """
    _, Y, X, _ = images.shape
    down, right = _translation_matrix(offsets[:, 0], Y), _translation_matrix(offsets[:, 1], X)
    return jnp.einsum("byj,bxi,bjic->byxc", down, right, images)


def random_translation(images: Array, largest: float, key: Array) -> Array:
    """Translates by offsets uniform in [-largest, largest], drawn from one key for the batch."""
    if largest == 0:
        return images
    offsets = jax.random.uniform(key, (len(images), 2), minval=-largest, maxval=largest)
    return translate(images, offsets)


def _translation_matrix(offsets: Array, size: int) -> Array:
    """[B] -> [B, to, from]."""
    places = jnp.arange(size, dtype=jnp.float32)
    distance = places[:, None] - offsets[:, None, None] - places
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


# ---------------------------------------------------------------- values


def color_jitter(images: Array, keys: Array, config: AugmentationConfig) -> Array:
    """Brightness, contrast, saturation and hue by dm_pix, each held to 0..1 after it."""

    def jittered(image: Array, key: Array) -> Array:
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

    return jax.vmap(jittered)(images, keys)


def cutout(
    images: Array, keys: Array, size: int, labels: Array | None = None, void: int = 0
) -> tuple[Array, Array | None]:
    """A square of each picture filled with its mean (DeVries & Taylor 2017, "Cutout").

    Its middle is any pixel, so that it may jut out. Labels within are void.
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
    """Each picture mixed with another of the batch (Zhang et al. 2018, "mixup").

        x'_b = λ_b x_b + (1 - λ_b) x_p(b),   λ ~ Beta(α, α)

    with p(b) = B - 1 - b. The loss to take is λ_b L(y_b) + (1 - λ_b) L(y_p(b)).

    Args:
      images: [B, Y, X, C].
      keys: [B].
      alpha: α, above 0.
      valid: bool [B]: with a picture that does not count, none is mixed (λ is 1); all count if
        None.

    Returns:
      x', p int32 [B] and λ [B].
    """
    partner = jnp.arange(len(images))[::-1]
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    if valid is not None:
        share = jnp.where(valid[partner], share, 1.0)
    weight = share[:, None, None, None].astype(images.dtype)
    # Where nothing is mixed, not even what is not finite comes in.
    other = jnp.where(weight < 1, images[partner], 0)
    return weight * images + (1 - weight) * other, partner, share
