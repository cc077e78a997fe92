"""Plain data of the figures of tasks, which are drawn by `launch.reporting.figures`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ConfusionMatrix:
    """Counts [true class, predicted class], with the class names."""

    title: str
    matrix: np.ndarray
    labels: Sequence[str]


@dataclasses.dataclass(frozen=True)
class AttendedText:
    """A text with a weight for each token; darker tokens have larger weights.

    Attributes:
      caption: prediction and true label.
      tokens: parts of the text, in order.
      weights: nonnegative weight of each token, [tokens].
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
    """An image overlaid with the class of each pixel, next to the true classes if known.

    Attributes:
      caption: description of the figure.
      image: image [Y, X] or [Y, X, C], uint8 or in [0, 1].
      labels: predicted classes, int [Y, X]; values that are not indices of `names` get no color.
      names: names of the classes.
      truth: true classes, int [Y, X].
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
      caption: description of the figure.
      image: image [Y, X] or [Y, X, C], uint8 or in [0, 1].
      boxes: corners x1, y1, x2, y2 in pixels, [n, 4].
      labels: class name of each object.
      scores: score of each object, [n].
      masks: mask of each object, bool [n, Y, X].
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
    """Attention weights of the decoding steps over the inputs.

    Attributes:
      caption: description of the figure.
      weights: attention weights, [outputs, inputs].
      outputs, inputs: axis labels; labels of inputs may be "".
      over: image of the inputs from left to right, [rows, columns], drawn above the weights with
        the same width.
    """

    caption: str
    weights: np.ndarray
    outputs: Sequence[str]
    inputs: Sequence[str]
    over: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Curves:
    """Line plots over a common x axis; `series` maps names to (x, y)."""

    title: str
    x_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The past of a time series and its forecast, with the true future if known.

    Attributes:
      caption: description of the figure.
      x_label: label of the time axis, on which step 1 is the first forecast.
      past: values up to step 0, [T]; NaN for missing values.
      forecast: forecast values from step 1, [F].
      intervals: lower and upper bounds [F] by coverage.
      truth: true values, [F]; NaN for missing values.
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
    """Recommended items for a user, with attributions.

    Attributes:
      caption: name of the user.
      history: titles of the user's past items, latest first.
      titles: titles of the recommended items, best first.
      reasons: for each title, items of the history with their fractions of the score, largest
        first; empty for models without attributions.
      truth: title of the user's true next item; None if unknown.
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
