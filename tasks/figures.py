"""Data classes of the figures that tasks return; `launch.reporting.figures` draws them.

In shapes, Y and X are height and width of an image, C is its number of channels, and y and x are
height and width of a map of attention weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Shown(NamedTuple):
    """An example of a split that a report shows.

    Attributes:
      index: index of the example in the split.
      kind: reason for the choice, such as "wrong"; may be empty.
      id: id of the example in predictions-<split>.csv; may be empty.
    """

    index: int
    kind: str = ""
    id: str = ""

    def caption(self, split: str, name: str = "") -> str:
        """Returns the beginning of a caption, such as "wrong: test example 7 (id 00ff)".

        Args:
          split: name of the split.
          name: name of the example, which replaces split and index unless it is empty.
        """
        shown = f"{self.kind}: " if self.kind else ""
        shown += name or f"{split} example {self.index}"
        return f"{shown} (id {self.id})" if self.id else shown


@dataclasses.dataclass(frozen=True)
class SplitResults:
    """Results on a split, from which the figures of a report are drawn.

    Attributes:
      statistics: statistics of `tasks.task.Task.evaluate`, summed over the split.
      outputs: outputs of the model for the complete split, in the order of the examples.
      split: name of the split.
      shown: examples to draw.
      attention: attention weights of the shown examples, in their order.
      predicted: outputs of `predict` for the shown examples, if the task sets `draws_predictions`.
    """

    statistics: Mapping[str, Any]
    outputs: Mapping[str, Any]
    split: str
    shown: Sequence[Shown] = ()
    attention: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predicted: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def indices(self) -> list[int]:
        """Indices of the shown examples in the split."""
        return [example.index for example in self.shown]

    def caption(self, example: Shown, name: str = "") -> str:
        """Returns the beginning of the caption of an example; see `Shown.caption`."""
        return example.caption(self.split, name)


@dataclasses.dataclass(frozen=True)
class ConfusionMatrix:
    """Number of examples of each true class (row) and predicted class (column).

    Attributes:
      title: title of the figure.
      matrix: the counts, [classes, classes].
      labels: names of the classes.
    """

    title: str
    matrix: np.ndarray
    labels: Sequence[str]


@dataclasses.dataclass(frozen=True)
class AttendedText:
    """A text with a weight for each token; tokens with larger weights have a stronger background.

    Attributes:
      caption: prediction and true label.
      tokens: parts of the text, in order.
      weights: nonnegative weight of each token, [tokens]; zeros for a model without attention.
    """

    caption: str
    tokens: Sequence[str]
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class AttendedImage:
    """An image overlaid with the attention weights of its parts.

    Attributes:
      caption: description of the figure.
      image: image [Y, X] or [Y, X, C].
      weights: map of attention weights, [y, x], which covers the image; None for a model without
        attention.
    """

    caption: str
    image: np.ndarray
    weights: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class SegmentedImage:
    """An image overlaid with the class of each pixel, next to the true classes if known.

    Attributes:
      caption: description of the figure.
      image: image [Y, X] or [Y, X, C], uint8 or in [0, 1].
      labels: predicted classes, int [Y, X]; values that are not indices of `names` get no color.
      names: names of the classes.
      truth: true classes, int [Y, X]; None if unknown.
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
      truth_boxes: corners of the boxes of the m true objects, [m, 4]; None if unknown.
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
      outputs, inputs: labels of the decoding steps and of the inputs; labels of inputs may be "".
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
    """Line plots over a common x axis.

    Attributes:
      title: title of the figure.
      x_label: label of the x axis.
      series: x and y values of each line by name.
    """

    title: str
    x_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The past of a time series and its forecast, with the true future if known.

    Attributes:
      caption: description of the figure.
      x_label: label of the axis of steps if there are no `times`; step 1 is the first forecast.
      past: values up to step 0, [T]; NaN for missing values.
      forecast: forecast values from step 1, [F].
      intervals: lower and upper bounds, [F] each, of prediction intervals, by their coverage.
      truth: true values, [F]; NaN for missing values.
      times: times of past and forecast, datetime64 [T + F]; None if they are unknown.
    """

    caption: str
    x_label: str
    past: np.ndarray
    forecast: np.ndarray
    intervals: Mapping[float, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    truth: np.ndarray | None = None
    times: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A transcript or translation of one input, next to its reference if known.

    Attributes:
      caption: description of the figure.
      hypothesis: text that the model predicts.
      reference: true text; None if unknown.
      source: input as text; empty for inputs that are no text.
      image: image of the input from left to right, [rows, columns].
      words: whether differences are marked by word instead of by character.
    """

    caption: str
    hypothesis: str
    reference: str | None = None
    source: str = ""
    image: np.ndarray | None = None
    words: bool = True


@dataclasses.dataclass(frozen=True)
class FigureGroup:
    """Figures of one kind under one caption and legend, such as the channels of a series."""

    caption: str
    figures: Sequence[Forecast]


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """Recommended items for a user, with attributions.

    Attributes:
      caption: name of the user.
      history: titles of the user's past items, latest first.
      titles: titles of the recommended items, best first.
      reasons: for each title, pairs of an item of the history and its fraction of the title's
        score, largest first; empty for models without attributions.
      truth: title of the user's true next item; None if unknown.
    """

    caption: str
    history: Sequence[str]
    titles: Sequence[str]
    reasons: Sequence[Sequence[tuple[str, float]]]
    truth: str | None = None


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Values with intervals, drawn in one panel for each quantity; all panels have the same rows.

    Attributes:
      title: title of the figure.
      names: names of the rows.
      panels: for the label of each quantity, its series by name. A series has the value of each row
        and the half-width of its interval, [names] each. Values of NaN are not drawn.
      zero: labels of the quantities that are differences; their panels have a line at 0.
    """

    title: str
    names: Sequence[str]
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
    zero: Sequence[str] = ()


Figure = (
    ConfusionMatrix
    | AttendedText
    | AttendedImage
    | SegmentedImage
    | DetectedImage
    | Alignment
    | Curves
    | Forecast
    | Transcript
    | FigureGroup
    | Intervals
    | Recommendations
)
