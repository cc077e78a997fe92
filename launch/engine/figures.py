"""Draws the plain figures of `tasks.figures` and training curves as HTML that needs no file."""

from __future__ import annotations

import base64
import html
import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.figures import Alignment, AttendedImage, AttendedText, ConfusionMatrix, Curves, Figure


def draw(figure: Figure) -> str:
    """HTML of one figure.

    Raises:
      TypeError: an unknown kind of figure.
    """
    if isinstance(figure, AttendedText):
        return _attended_text(figure)
    if isinstance(figure, ConfusionMatrix):
        return _confusion_matrix(figure)
    if isinstance(figure, AttendedImage):
        return _attended_image(figure)
    if isinstance(figure, Alignment):
        return _alignment(figure)
    if isinstance(figure, Curves):
        return curves(figure.title, figure.series, figure.x_label)
    raise TypeError(f"no drawing for {type(figure).__name__}")


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str = "step",
) -> str:
    """Lines over steps, or over what else is named: name -> (steps, values)."""
    canvas, axes = _canvas(4.3, 2.8)
    for name, (steps, values) in series.items():
        axes.plot(steps, values, label=name, marker="." if len(values) < 30 else None)
    axes.set_xlabel(x_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return _picture(canvas, title)


def _confusion_matrix(figure: ConfusionMatrix) -> str:
    matrix, count = np.asarray(figure.matrix), len(figure.labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2, 1.6 + 0.42 * count), 11)
    canvas, axes = _canvas(side + 0.6, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), figure.labels, rotation=60, ha="right")
    axes.set_yticks(range(count), figure.labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(figure.title)
    if count <= 25:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(value), ha="center", va="center", color=colour, fontsize=7
                )
    return _picture(canvas, figure.title)


def _attended_text(figure: AttendedText) -> str:
    weights = np.asarray(figure.weights, float)
    strongest = max(float(weights.max(initial=0.0)), 1e-12)
    words = "".join(
        f'<span style="background: rgba(235, 110, 20, {weight / strongest:.2f})" '
        f'title="{weight:.3f}">{html.escape(token)}</span> '
        for token, weight in zip(figure.tokens, weights, strict=True)
    )
    return f"<p><b>{html.escape(figure.caption)}</b></p><p class='text' dir='auto'>{words}</p>"


def _attended_image(figure: AttendedImage) -> str:
    import matplotlib.figure

    canvas = matplotlib.figure.Figure(figsize=(4.2, 2.2), layout="constrained")
    left, right = canvas.subplots(1, 2)
    left.imshow(figure.image, cmap="gray")
    right.imshow(figure.image, cmap="gray")
    height, width = np.shape(figure.image)[:2]
    right.imshow(
        figure.weights, cmap="inferno", alpha=0.65, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
    )
    for axes in (left, right):
        axes.set_axis_off()
    canvas.suptitle(figure.caption, fontsize=9)
    return _picture(canvas, figure.caption)


def _alignment(figure: Alignment) -> str:
    # Letters of the caption take 0.07 inches of width.
    width = max(3.0, 1.4 + 0.26 * len(figure.inputs))
    rows = [
        row for line in figure.caption.split("\n") for row in textwrap.wrap(line, int(width / 0.07))
    ]
    canvas, axes = _canvas(width, max(1.6, 1.0 + 0.15 * len(rows) + 0.26 * len(figure.outputs)))
    axes.imshow(figure.weights, cmap="magma", vmin=0, vmax=1, aspect="auto")
    # A dollar sign is a dollar sign.
    plain = {"parse_math": False}
    turned = {"rotation": 60, "ha": "right"} if any(len(name) > 3 for name in figure.inputs) else {}
    axes.set_xticks(range(len(figure.inputs)), figure.inputs, **plain, **turned)
    axes.set_yticks(range(len(figure.outputs)), figure.outputs, **plain)
    axes.set_xlabel("input")
    axes.set_ylabel("output")
    canvas.suptitle("\n".join(rows), fontsize=9, **plain)
    return _picture(canvas, figure.caption)


def _canvas(width: float, height: float):
    import matplotlib.figure

    canvas = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots()


def _picture(canvas, alternative: str) -> str:
    import matplotlib

    buffer = io.BytesIO()
    # Text stays text, so that the reader's browser has glyphs for any script.
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/svg+xml;base64,{data}">'
