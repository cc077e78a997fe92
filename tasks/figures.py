"""Figures of tasks as plain data; `launch.reporting.figures` draws them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ConfusionMatrix:
    """Counts [true class, predicted class] with the names of the classes."""

    title: str
    matrix: np.ndarray
    labels: Sequence[str]


@dataclasses.dataclass(frozen=True)
class AttendedText:
    """A text with a weight for each token; darker tokens have larger weights.

    Attributes:
      caption: prediction and truth.
      tokens: pieces of the text, in order.
      weights: [tokens], nonnegative.
    """

    caption: str
    tokens: Sequence[str]
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class AttendedImage:
    """An image [Y, X] or [Y, X, C] with a weight map [y, x] over it."""

    caption: str
    image: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class SegmentedImage:
    """An image with the class of each pixel over it, next to the truth if it is known.

    Attributes:
      caption: what is shown.
      image: [Y, X] or [Y, X, C], uint8 or from 0 to 1.
      labels: int [Y, X], predicted classes; other values than indices of `names` have no color.
      names: of the classes.
      truth: int [Y, X], likewise.
    """

    caption: str
    image: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    truth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class DetectedImage:
    """An image with n detected objects; n may be 0.

    Attributes:
      caption: what is shown.
      image: [Y, X] or [Y, X, C], uint8 or from 0 to 1.
      boxes: [n, 4], corners x1, y1, x2, y2 in pixels of the image.
      labels: class name of each.
      scores: [n].
      masks: bool [n, Y, X].
      truth_boxes: true boxes, [m, 4].
    """

    caption: str
    image: np.ndarray
    boxes: np.ndarray
    labels: Sequence[str]
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None
    truth_boxes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Attention weights of decoding steps over the inputs.

    Attributes:
      caption: what is shown.
      weights: [outputs, inputs].
      outputs, inputs: names; those of inputs may be "".
      over: [rows, columns], an image of the inputs from left to right, drawn above the weights at
        the same width.
    """

    caption: str
    weights: np.ndarray
    outputs: Sequence[str]
    inputs: Sequence[str]
    over: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Curves:
    """Lines over one axis; `series` maps names to (x, y)."""

    title: str
    x_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The past of a series and its forecast, with the truth if it is known.

    Attributes:
      caption: what is shown.
      x_label: of the time axis; step 1 is the first forecast.
      past: [T], steps up to 0; NaN for missing values.
      forecast: [F], steps from 1.
      intervals: coverage -> lower and upper bound, [F] each.
      truth: [F], NaN for missing values.
    """

    caption: str
    x_label: str
    past: np.ndarray
    forecast: np.ndarray
    intervals: Mapping[float, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    truth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """Recommendations to a user with their attributions.

    Attributes:
      caption: name of the user.
      history: titles of the items of the user, latest first.
      titles: recommended items, best first.
      reasons: for each of `titles` items of the history and their fractions of the score, largest
        first; empty for models without attributions.
      truth: title of the next item of the user; None if unknown.
    """

    caption: str
    history: Sequence[str]
    titles: Sequence[str]
    reasons: Sequence[Sequence[tuple[str, float]]]
    truth: str | None = None


Figure = (
    ConfusionMatrix
    | AttendedText
    | AttendedImage
    | SegmentedImage
    | DetectedImage
    | Alignment
    | Curves
    | Forecast
    | Recommendations
)
