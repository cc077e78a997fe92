"""What a task shows a person, as plain data; `launch.reporting.figures` draws it."""

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
    """One text with a weight for each token: the darker, the more attended.

    Attributes:
      caption: what was predicted, and what is true.
      tokens: pieces of the text, in order.
      weights: [tokens], not negative.
    """

    caption: str
    tokens: Sequence[str]
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class AttendedImage:
    """One image [Y, X] or [Y, X, C] with a weight map [y, x] over it."""

    caption: str
    image: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class SegmentedImage:
    """An image with the class of each pixel over it, beside what is true where that is known.

    Attributes:
      caption: what is shown.
      image: [Y, X] or [Y, X, C], uint8 or from 0 to 1.
      labels: int [Y, X], predicted classes; what is no index of `names` has no colour.
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
    """An image with the objects found in it, n of them or none.

    Attributes:
      caption: what is shown.
      image: [Y, X] or [Y, X, C], uint8 or from 0 to 1.
      boxes: [n, 4], corners x1, y1, x2, y2 in pixels of the image.
      labels: a class' name for each.
      scores: [n].
      masks: bool [n, Y, X].
      truth_boxes: [m, 4], the true ones.
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
    """Weights [outputs, inputs] of a decoder's steps over what it reads.

    Attributes:
      caption: what is shown.
      weights: [outputs, inputs].
      outputs, inputs: names; an input may have "".
      over: [rows, columns], what the inputs stand for from left to right, as a picture: drawn above
        the weights, over the same width.
    """

    caption: str
    weights: np.ndarray
    outputs: Sequence[str]
    inputs: Sequence[str]
    over: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Curves:
    """Lines over one axis: series' name -> (x, y)."""

    title: str
    x_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A series' past and what is forecast of it, beside what came where that is known.

    Attributes:
      caption: what is shown.
      x_label: of the axis of time: step 1 is the first that is forecast.
      past: [T], the steps up to 0; NaN where it is missing.
      forecast: [F], the steps from 1 on.
      intervals: share of the truth that each is to hold -> lower and upper bound, [F] each.
      truth: [F], NaN where it is missing.
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
    """What was recommended to a person, and why.

    Attributes:
      caption: who it is.
      history: titles of what the person had, the latest first.
      titles: what is recommended, the best first.
      reasons: for each of `titles` what speaks for it and its share of all that does, the greatest
        first; empty where a model names none.
      truth: title of what the person took next; None where that is not known.
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
