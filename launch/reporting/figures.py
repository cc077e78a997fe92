"""Drawing of the figures of `tasks.figures` and of training curves as self-contained HTML."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launch.reporting import overlays
from tasks.figures import (
    Alignment,
    AttendedImage,
    AttendedText,
    ConfusionMatrix,
    Curves,
    DetectedImage,
    Figure,
    Forecast,
    Recommendations,
    SegmentedImage,
)

# Characters that can be neither drawn nor written in XML: control characters and unpaired
# surrogates, which occur in file names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
# Characters of a line of words in a PNG file.
_LINE = 90


def draw(figure: Figure) -> str:
    """Renders one figure as HTML.

    Raises:
      TypeError: the class of the figure is unknown.
    """
    figure = _printable(figure)
    if isinstance(figure, AttendedText):
        return _attended_text(figure)
    if isinstance(figure, Recommendations):
        return _recommendations(figure)
    if isinstance(figure, Curves):
        return curves(figure.title, figure.series, figure.x_label)
    title = figure.title if isinstance(figure, ConfusionMatrix) else getattr(figure, "caption", "")
    return _svg(_drawn(figure), title)


def png(figure: Figure) -> bytes:
    """Renders one figure as the content of a PNG file.

    Raises:
      TypeError: the figure consists of text.
    """
    buffer = io.BytesIO()
    with _plain_text():
        _drawn(_printable(figure)).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _drawn(figure: Figure):
    """Draws a figure and returns its matplotlib canvas."""
    kinds = {
        ConfusionMatrix: _confusion_matrix,
        AttendedText: _attended_words,
        AttendedImage: _attended_image,
        SegmentedImage: _segmented_image,
        DetectedImage: _detected_image,
        Alignment: _alignment,
        Forecast: _forecast,
    }
    if type(figure) not in kinds:
        raise TypeError(f"no drawing for {type(figure).__name__}")
    with _plain_text():
        return kinds[type(figure)](figure)


def _printable(value: Any) -> Any:
    """Replaces characters that cannot be drawn by escapes, in a figure or in one of its fields."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        parts = {field.name: _printable(getattr(value, field.name)) for field in fields}
        return dataclasses.replace(value, **parts)
    if isinstance(value, list | tuple):
        return type(value)(map(_printable, value))
    return value


@contextlib.contextmanager
def _plain_text() -> Iterator[None]:
    """Makes matplotlib draw texts literally: without math mode, and as text elements in SVG.

    Browsers then choose a font for any script. PNG files show a box for missing glyphs.
    """
    import matplotlib

    changed = {"text.parse_math": False, "svg.fonttype": "none"}
    with matplotlib.rc_context(changed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def curves(
    title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str = "step"
) -> str:
    """Draws line plots of name -> (steps, values), over steps or the quantity `x_label`."""
    title, x_label = _printable(title), _printable(x_label)
    with _plain_text():
        canvas, axes = _canvas(4.3, 2.8)
        for name, (steps, values) in series.items():
            marker = "." if len(values) < 30 else None
            axes.plot(steps, values, label=_printable(name), marker=marker)
        axes.set_xlabel(x_label)
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    return _svg(canvas, title)


def _confusion_matrix(figure: ConfusionMatrix):
    matrix, count = np.asarray(figure.matrix), len(figure.labels)
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2, 1.6 + 0.42 * count), 11)
    canvas, axes = _canvas(side + 0.6, side)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), figure.labels, rotation=60, ha="right")
    axes.set_yticks(range(count), figure.labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(figure.title)
    if count <= 25:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                color = "white" if fraction[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(value), ha="center", va="center", color=color, fontsize=7
                )
    return canvas


def _attended_text(figure: AttendedText) -> str:
    weights = np.asarray(figure.weights, float)
    strongest = max(float(weights.max(initial=0.0)), 1e-12)
    words = "".join(
        f'<span style="background: rgba(235, 110, 20, {weight / strongest:.2f})" '
        f'title="{weight:.3f}">{html.escape(token)}</span> '
        for token, weight in zip(figure.tokens, weights, strict=True)
    )
    return f"<p><b>{html.escape(figure.caption)}</b></p><p class='text' dir='auto'>{words}</p>"


def _attended_words(figure: AttendedText):
    """Draws the words in lines of a fixed width, on backgrounds by weight."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    weights = np.asarray(figure.weights, float)
    relative = weights / max(float(weights.max(initial=0.0)), 1e-12)
    column = 0
    for token, weight in zip(figure.tokens, relative, strict=True):
        if column and column + len(token) > _LINE:
            lines.append([])
            column = 0
        lines[-1].append((column, token, float(weight)))
        column += len(token) + 2
    canvas, axes = _canvas(0.085 * _LINE, 0.6 + 0.26 * len(lines))
    axes.set(xlim=(0, _LINE), ylim=(len(lines) - 0.5, -0.5))
    axes.axis("off")
    for row, words in enumerate(lines):
        for column, token, weight in words:
            box = {"facecolor": (0.92, 0.43, 0.08, weight), "edgecolor": "none", "pad": 1.5}
            axes.text(column, row, token, fontsize=9, family="monospace", va="center", bbox=box)
    canvas.suptitle(figure.caption, fontsize=9)
    return canvas


def _recommendations(figure: Recommendations) -> str:
    rows = []
    for rank, (title, reasons) in enumerate(zip(figure.titles, figure.reasons, strict=True), 1):
        because = "; ".join(f"{html.escape(name)} {share:.2f}" for name, share in reasons)
        shown = html.escape(title)
        shown = f"<b>{shown} ✓</b>" if title == figure.truth else shown
        rows.append(
            f"<tr><td>{rank}</td><td style='text-align: left'>{shown}</td>"
            f"<td style='text-align: left'>{because}</td></tr>"
        )
    truth = "" if figure.truth is None else f"; true next item: <b>{html.escape(figure.truth)}</b>"
    return (
        f"<p dir='auto'><b>{html.escape(figure.caption)}</b>. History, latest first: "
        f"{html.escape('; '.join(figure.history)) or 'nothing'}{truth}</p>"
        "<table><tr><th></th><th style='text-align: left'>recommended</th>"
        f"<th style='text-align: left'>attributed to, fraction</th></tr>{''.join(rows)}</table>"
    )


def _attended_image(figure: AttendedImage):
    canvas, (left, right) = _canvas(4.2, 2.2, ncols=2)
    left.imshow(figure.image, cmap="gray")
    right.imshow(figure.image, cmap="gray")
    height, width = np.shape(figure.image)[:2]
    right.imshow(
        figure.weights, cmap="inferno", alpha=0.65, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )
    for axes in (left, right):
        axes.set_axis_off()
    canvas.suptitle(figure.caption, fontsize=9)
    return canvas


def _segmented_image(figure: SegmentedImage):
    """Draws the image, the true labels if known, the prediction, and a color legend."""
    from matplotlib.patches import Patch

    shown = {"image": overlays.to_rgb(figure.image)}
    if figure.truth is not None:
        shown["true"] = overlays.overlay_classes(figure.image, figure.truth, len(figure.names))
    shown["predicted"] = overlays.overlay_classes(figure.image, figure.labels, len(figure.names))
    height, width = np.shape(figure.image)[:2]
    high = min(max(3.0 * height / width, 1.0), 6.0) + 0.9
    canvas, columns = _canvas(3.0 * len(shown), high, ncols=len(shown), squeeze=False)
    for axes, (title, image) in zip(columns[0], shown.items(), strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    occurring = [labels for labels in (figure.labels, figure.truth) if labels is not None]
    present = np.intersect1d(np.concatenate([np.ravel(x) for x in occurring]), range(1 << 16))
    palette = overlays.palette(len(figure.names))
    patches = [
        Patch(color=palette[number] / 255, label=figure.names[number])
        for number in present
        if number < len(figure.names)
    ]
    if patches:
        columns = int(min(len(patches), 2 * len(shown)))
        canvas.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=7)
    canvas.suptitle(figure.caption, fontsize=9)
    return canvas


def _detected_image(figure: DetectedImage):
    """Draws the image with dashed true boxes, then with predicted masks, boxes and scores."""
    height, width = np.shape(figure.image)[:2]
    high = min(max(3.9 * height / width, 1.0), 8.0) + 0.3
    canvas, (left, right) = _canvas(8.0, high, ncols=2)
    image = overlays.to_rgb(figure.image)
    left.imshow(image, interpolation="nearest")
    names = sorted(set(figure.labels))
    # With a single class, each object gets its own color to separate touching objects.
    chosen = [names.index(name) for name in figure.labels]
    if len(names) == 1:
        chosen = list(range(len(figure.labels)))
    palette = overlays.palette(max(chosen, default=0) + 1)
    drawn = [palette[number] for number in chosen]
    if figure.masks is not None:
        image = overlays.overlay_masks(image, figure.masks, drawn)
    right.imshow(image, interpolation="nearest")
    for number, (box, color) in enumerate(zip(figure.boxes, drawn, strict=True)):
        _box(right, box, color / 255, "solid")
        name = figure.labels[number] if len(names) > 1 else ""
        score = "" if figure.scores is None else f"{figure.scores[number]:.2f}"
        if text := f"{name} {score}".strip():
            spare = {"fontsize": 5, "color": "white", "va": "bottom"}
            under = {"facecolor": color / 255, "edgecolor": "none", "pad": 0.5, "alpha": 0.7}
            right.text(box[0] - 0.5, box[1] - 0.5, text, bbox=under, clip_on=True, **spare)
    if figure.truth_boxes is not None:
        for box in figure.truth_boxes:
            _box(left, box, "white", "dashed")
    for axes, title in ((left, "image"), (right, "predicted")):
        dashed = axes is left and figure.truth_boxes is not None
        axes.set_title("image, true boxes" if dashed else title, fontsize=9)
        axes.set_axis_off()
    canvas.suptitle(figure.caption, fontsize=9)
    return canvas


def _box(axes, box: np.ndarray, color, line: str) -> None:
    """Draws a box (x1, y1, x2, y2) whose coordinates are 0 at the left or top edge of pixel 0."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(side) for side in box)
    edge = {"fill": False, "edgecolor": color, "linestyle": line, "linewidth": 0.8}
    axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, **edge))


def _alignment(figure: Alignment):
    # A character of the caption is about 0.07 inches wide.
    each = 0.26 if figure.over is None else 0.06
    width = max(3.0, 1.4 + each * len(figure.inputs))
    rows = [
        row for line in figure.caption.split("\n") for row in textwrap.wrap(line, int(width / 0.07))
    ]
    height = max(1.6, 1.0 + 0.15 * len(rows) + 0.26 * len(figure.outputs))
    if figure.over is None:
        canvas, axes = _canvas(width, height)
    else:
        canvas, (above, axes) = _canvas(
            width, height + 0.9, nrows=2, height_ratios=(0.9, height - 0.6), sharex=True
        )
        extent = (-0.5, len(figure.inputs) - 0.5, len(figure.over) - 0.5, -0.5)
        above.imshow(figure.over, cmap="gray", aspect="auto", extent=extent)
        above.set_yticks([])
        above.tick_params(bottom=False)
    axes.imshow(figure.weights, cmap="magma", vmin=0, vmax=1, aspect="auto")
    rotated = (
        {"rotation": 60, "ha": "right"} if any(len(name) > 3 for name in figure.inputs) else {}
    )
    named = [index for index, name in enumerate(figure.inputs) if name]
    axes.set_xticks(named, [figure.inputs[index] for index in named], **rotated)
    axes.set_yticks(range(len(figure.outputs)), figure.outputs)
    axes.set_xlabel("input")
    axes.set_ylabel("output")
    canvas.suptitle("\n".join(rows), fontsize=9)
    return canvas


def _forecast(figure: Forecast):
    canvas, axes = _canvas(6.4, 2.8)
    before, after = 1 + np.arange(-len(figure.past), 0), 1 + np.arange(len(figure.forecast))
    axes.plot(before, figure.past, color="0.25", linewidth=1, label="past")
    if figure.truth is not None:
        axes.plot(after, figure.truth, color="0.25", linewidth=1, linestyle="dotted", label="true")
    axes.plot(after, figure.forecast, color="tab:blue", linewidth=1.2, label="forecast")
    for share, (low, high) in sorted(figure.intervals.items(), reverse=True):
        label = f"{share:.0%} interval"
        look = {"color": "tab:blue", "alpha": 0.45 - 0.35 * share, "linewidth": 0}
        axes.fill_between(after, low, high, label=label, **look)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set_xlabel(figure.x_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best")
    canvas.suptitle(figure.caption, fontsize=9)
    return canvas


def _canvas(width: float, height: float, **grid: Any):
    import matplotlib.figure

    canvas = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(**grid)


def _svg(canvas, alternative: str) -> str:
    buffer = io.BytesIO()
    with _plain_text():
        canvas.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/svg+xml;base64,{data}">'
