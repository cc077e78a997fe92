"""Overlays of classes and object masks on images, in NumPy.

In shapes, Y and X are the height and the width of an image. Images are grayscale or RGB.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

# Distinct colors; further colors are spread evenly over the hues.
_FIRST = (
    "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 17becf bcbd22 aec7e8 "
    "ffbb78 98df8a ff9896 c5b0d5 c49c94 f7b6d2 9edae5 dbdb8d"
)
_GOLDEN = 0.618034
# Names of classes that are shown without a color.
_BACKGROUND = ("background", "no object", "other")


def palette(count: int) -> np.ndarray:
    """Returns distinct colors, uint8 [count, 3]; the first ones are the same for every count."""
    first = [tuple(bytes.fromhex(shade)) for shade in _FIRST.split()]
    for number in range(len(first), count):
        hue, value = number * _GOLDEN % 1, (0.95, 0.75, 0.55)[number % 3]
        first.append(tuple(int(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.7, value)))
    return np.array(first[:count], np.uint8).reshape(-1, 3)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image [Y, X] or [Y, X, 1 or 3], uint8 or in [0, 1], to uint8 [Y, X, 3].

    Raises:
      ValueError: the image has another shape.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image: got shape {image.shape}, expected [Y, X] or [Y, X, 1 or 3]")
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip(image.astype(np.float32), 0, 1)).astype(np.uint8)
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))


def background(names: Sequence[str]) -> tuple[int, ...]:
    """Returns the indices of background classes, which are recognized by their names."""
    return tuple(n for n, name in enumerate(names) if name.strip().lower() in _BACKGROUND)


def overlay_classes(
    image: np.ndarray,
    labels: np.ndarray,
    classes: int,
    opacity: float = 0.6,
    plain: Sequence[int] = (),
) -> np.ndarray:
    """Blends the colors of pixel classes into an image.

    Args:
      image: image in one of the formats of `to_rgb`.
      labels: int [Y, X]; pixels with labels outside [0, classes) are darkened.
      classes: number of classes.
      opacity: opacity of the colors.
      plain: classes whose pixels stay as they are, such as the background.

    Returns:
      uint8 [Y, X, 3].

    Raises:
      ValueError: labels and image have different sizes.
    """
    below, labels = to_rgb(image), np.asarray(labels)
    if labels.shape != below.shape[:2]:
        raise ValueError(f"labels: got shape {labels.shape}, expected {below.shape[:2]}")
    known = (labels >= 0) & (labels < classes)
    table = np.concatenate([palette(classes), np.zeros((1, 3), np.uint8)])
    above = table[np.where(known, labels, classes)]
    untinted = np.isin(labels, np.asarray(plain, int))[..., None]
    return np.where(untinted, below, _mixed(below, above, opacity))


def overlay_masks(
    image: np.ndarray, masks: np.ndarray, shades: Sequence[np.ndarray], opacity: float = 0.45
) -> np.ndarray:
    """Blends object masks into an image, later masks over earlier ones.

    Args:
      image: image in one of the formats of `to_rgb`.
      masks: bool [n, Y, X].
      shades: color of each mask, uint8 [3].
      opacity: opacity of the masks.

    Returns:
      uint8 [Y, X, 3].

    Raises:
      ValueError: masks and image differ in size, or masks and shades differ in number.
    """
    result, masks = to_rgb(image), np.asarray(masks, bool)
    expected = (len(shades), *result.shape[:2])
    if masks.shape != expected:
        raise ValueError(f"masks: got shape {masks.shape}, expected {expected}")
    for mask, shade in zip(masks, shades, strict=True):
        result[mask] = _mixed(result[mask], np.asarray(shade), opacity)
    return result


def overlay_weights(image: np.ndarray, weights: np.ndarray, opacity: float = 0.8) -> np.ndarray:
    """Blends attention weights into an image, which is unchanged where the weights are smallest.

    Args:
      image: image in one of the formats of `to_rgb`.
      weights: nonnegative weights [y, x] of a grid over the image.
      opacity: opacity of the largest weight if the smallest is 0. In general, the opacity is
        proportional to the difference from the smallest weight, so that a map of equal weights
        leaves the image unchanged.

    Returns:
      uint8 [Y, X, 3].
    """
    import matplotlib

    below, weights = to_rgb(image), np.asarray(weights, np.float32)
    weights = np.maximum(weights, 0)
    relative = (weights - weights.min()) / max(float(weights.max()), 1e-12)
    rows, columns = (
        np.arange(length) * cells // length
        for length, cells in zip(below.shape[:2], weights.shape, strict=True)
    )
    relative = relative[rows][:, columns]
    # The dark end of the color map is not used, because it is invisible on dark images.
    above = 255 * matplotlib.colormaps["inferno"](0.45 + 0.45 * relative)[..., :3]
    return np.round(below + opacity * relative[..., None] * (above - below)).astype(np.uint8)


def _mixed(below: np.ndarray, above: np.ndarray, opacity: float) -> np.ndarray:
    mixed = (1 - opacity) * below.astype(np.float32) + opacity * above
    return np.round(mixed).astype(np.uint8)
