"""Data classes of explanations of single predictions; `launch.reporting` renders them as pages.

An explanation has named axes, such as the tokens of a text or the patches of an image. Attention
maps and attributions refer to axes by name. The medium is the image, sound or time series of the
example. The positions of an axis may be areas of the medium, such as patches.

In shapes, Y and X are height and width of an image, C is its number of channels, and n the number
of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """Positions of an input or output.

    Attributes:
      kind: what a position is: "token", "character", "patch", "cell", "column", "frame", "lag",
        "time", "channel", "item", "user", "object" or "step".
      labels: label of each position, [n].
      areas: corners x1, y1, x2, y2 of each position in the medium, as fractions of its width and
        height, [n, 4]; None for positions without an area. In a series, the width is the time from
        the first to the last value.
    """

    kind: str
    labels: Sequence[str]
    areas: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """Attention weights between positions of two axes.

    Attributes:
      title: name of the attention, such as "encoder".
      weights: attention weights, [layers, heads, queries, keys]. A dimension that the attention
        lacks has size 1, such as the queries of attention pooling.
      queries: name of the axis of the queries; None for a single query without a label.
      keys: name of the axis of the keys.
      statistics: measurements of each head by name, such as "pattern": arrays [layers, heads] of
        numbers or labels.
    """

    title: str
    weights: np.ndarray
    queries: str | None
    keys: str
    statistics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Contribution of each position to the explained score.

    Attributes:
      method: name of the method, such as "integrated_gradients".
      values: contribution of each position, [n]; may be negative, unless the method gives only
        magnitudes.
      axis: name of the axis of the positions.
      numbers: measurements of this attribution by name, such as "deletion" and "insertion", the
        areas under its deletion and insertion curves.
    """

    method: str
    values: np.ndarray
    axis: str
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Scores of the prediction while positions are replaced, in the order of their attributions.

    Attributes:
      method: name of the method whose attributions order the positions.
      kind: "deletion" or "insertion". In a deletion curve, positions are replaced step by step, the
        most important first. In an insertion curve, all positions are replaced at the beginning and
        restored step by step, the most important first.
      fractions: fraction of the positions that are replaced or restored at each of the p points of
        the curve, ascending, [p].
      scores: result of `tasks.explainer.Explainer.measure` for each fraction, [p].
    """

    method: str
    kind: str
    fractions: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with predicted boxes and masks.

    Attributes:
      image: the image, [Y, X] or [Y, X, C], uint8 or floating point in [0, 1]. For a sound, it is
        the spectrogram with the lowest frequency in the last row.
      boxes: predicted boxes x1, y1, x2, y2 as fractions of width and height, by label.
      masks: predicted masks, bool [Y, X], by label.
    """

    image: np.ndarray
    boxes: Sequence[tuple[str, np.ndarray]] = ()
    masks: Sequence[tuple[str, np.ndarray]] = ()


@dataclasses.dataclass(frozen=True)
class Sound:
    """A recording, shown as a spectrogram with playback.

    Attributes:
      samples: values in [-1, 1], [n].
      rate: samples per second.
      spectrogram: image with the lowest frequency in the last row.
    """

    samples: np.ndarray
    rate: int
    spectrogram: Picture


@dataclasses.dataclass(frozen=True)
class Series:
    """Past and forecast of one channel of a time series.

    Attributes:
      past: values of the T past steps, [T]; NaN for missing values.
      forecast: predicted values of the F future steps, [F].
      truth: true values of the future steps, [F]; None if unknown.
      times: label of each step of past and forecast, [T + F].
      name: name of the channel.
    """

    past: np.ndarray
    forecast: np.ndarray
    truth: np.ndarray | None
    times: Sequence[str]
    name: str = ""


Medium = Picture | Sound | Series
"""Image, sound or series in which axes have areas; texts and lists of items have no medium."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Explanation of one prediction.

    Attributes:
      id: id of the example in predictions-<split>.csv, or the name of the input.
      input: input as text, or its file name.
      prediction, target: prediction and true output as texts; target is None if unknown.
      explained: description of the score to which positions contribute, such as "log-odds of
        positive".
      axes: axes by name.
      maps: attention maps.
      attributions: attributions; may be empty.
      curves: deletion and insertion curves.
      medium: image, sound or series that areas of axes refer to; None for texts and items.
      confidence: probability of the prediction; None if there is none.
      score: value of the primary metric on this example; None if unknown.
      kind: category of the example: "correct", "wrong" or "uncertain"; "" if unknown.
      replacement: name of the replacement of positions in curves and occlusion, such as "a blurred
        copy".
      notes: sentences for the reader, such as one about truncated tokens.
    """

    id: str
    input: str
    prediction: str
    target: str | None
    explained: str
    axes: Mapping[str, Axis]
    maps: Sequence[AttentionMap] = ()
    attributions: Sequence[Attribution] = ()
    curves: Sequence[Curve] = ()
    medium: Medium | None = None
    confidence: float | None = None
    score: float | None = None
    kind: str = ""
    replacement: str = ""
    notes: Sequence[str] = ()
