"""Matplotlib drawings of the figures of `tasks.figures`: panels, legends and text alternatives.

A figure consists of panels, which wrap on narrow screens and stand side by side in PNG files.
Colors are those of `launch.reporting.page`, so that drawings follow the color scheme of a page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.reporting import overlays
from launch.reporting.page import FAINT, INK, LINES
from tasks.figures import (
    Alignment,
    AttendedImage,
    AttendedText,
    ConfusionMatrix,
    Curves,
    DetectedImage,
    Figure,
    FigureGroup,
    Forecast,
    Intervals,
    SegmentedImage,
    Transcript,
)

# Width of a panel in inches. An inch has 96 pixels, so that a panel fits a screen of 390 pixels.
WIDTH = 3.6
# Maximum number of characters in a line of words in a PNG file.
_LINE = 90
# With more detected objects than this, a drawing shows their numbers instead of their names.
NAMED = 12
# A confusion matrix with more classes than this does not show its counts.
_COUNTED = 25


@dataclasses.dataclass(frozen=True)
class Panel:
    """One drawing of a figure.

    Attributes:
      alternative: text that replaces the drawing for screen readers.
      width, height: size in inches.
      draw: function that draws into an empty matplotlib figure or subfigure.
      title: description of the panel if the figure has several panels.
      pixels: image, uint8 [Y, X, 3], if the panel consists only of an image.
    """

    alternative: str
    width: float
    height: float
    draw: Callable[[Any], None]
    title: str = ""
    pixels: np.ndarray | None = None


class Entry(NamedTuple):
    """A legend entry with a style, "line", "dotted", "band" or "area", and a matplotlib color."""

    label: str
    style: str
    color: str
    alpha: float = 1.0


def panels(figure: Figure) -> list[Panel]:
    """Returns the panels of a figure.

    Raises:
      TypeError: the figure consists of text.
    """
    if type(figure) not in _PANELS:
        raise TypeError(f"no drawing for {type(figure).__name__}")
    return _PANELS[type(figure)](figure)


def legend(figure: Figure) -> list[Entry]:
    """Returns the entries of the legend that is shared by all panels of a figure."""
    if isinstance(figure, Forecast):
        return _forecast_legend(figure)
    if isinstance(figure, FigureGroup):
        found = [legend(each) for each in figure.figures]
        return found[0] if found and all(each == found[0] for each in found) else []
    if isinstance(figure, SegmentedImage):
        return _classes_that_occur(figure)
    return []


def caption(figure: Figure) -> str:
    """Returns the caption or title of a figure."""
    return (
        figure.title if isinstance(figure, ConfusionMatrix | Curves | Intervals) else figure.caption
    )


def canvas(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Makes matplotlib use the colors of pages, and draw texts literally.

    Dollar signs do not start math mode. SVG drawings contain text elements, so that browsers find
    fonts for all writing systems. PNG files show a box for each missing glyph.
    """
    import matplotlib

    changed = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        # With a fixed salt, identifiers in SVG depend only on the content.
        "svg.hashsalt": "figure",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.facecolor": "none",
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.prop_cycle": matplotlib.cycler(color=LINES),
        "grid.color": FAINT,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(changed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


# ---------------------------------------------------------------- curves and matrices


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str = "step",
    mark: tuple[str, float] | None = None,
) -> Panel:
    """Returns a panel of line plots.

    Args:
      title: quantity of the vertical axis.
      series: (x, y) of each line by name.
      x_label: quantity of the horizontal axis.
      mark: name and horizontal position of a vertical line.
    """
    lines = {name: (list(x), [float(value) for value in y]) for name, (x, y) in series.items()}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name, marker="." if len(y) < 30 else None)
        if all(float(value).is_integer() for x, _ in lines.values() for value in x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        if mark is not None:
            axes.axvline(mark[1], color=INK, linewidth=0.8, linestyle="dashed", label=mark[0])
        axes.set_xlabel(x_label)
        alone = len(lines) == 1 and mark is None
        axes.set_ylabel(next(iter(lines)) if alone else title)
        axes.grid(alpha=0.6)
        if not alone:
            _legend_below(figure, axes)

    found = []
    for name, (x, y) in lines.items():
        if y:
            least, most = min(zip(y, x, strict=True)), max(zip(y, x, strict=True))
            found.append(
                f"{name} from {y[0]:.4g} at {x[0]:g} to {y[-1]:.4g} at {x[-1]:g}, minimum "
                f"{least[0]:.4g} at {least[1]:g}, maximum {most[0]:.4g} at {most[1]:g}"
            )
    rows = -(-(len(lines) + (mark is not None)) // 3)
    text = f"Line plot of {title} over {x_label}: {'; '.join(found) or 'no values'}"
    return Panel(text, WIDTH, 2.4 + 0.2 * rows, draw)


def _legend_below(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(handles), 3 if max(map(len, labels)) < 16 else 2)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _curves(figure: Curves) -> list[Panel]:
    return [curves(figure.title, figure.series, figure.x_label)]


def _intervals(figure: Intervals) -> list[Panel]:
    return [_interval_panel(figure, label) for label in figure.panels]


def _interval_panel(figure: Intervals, label: str) -> Panel:
    names, series = figure.names, figure.panels[label]
    rows = np.arange(len(names), dtype=float)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        if label in figure.zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        # The series of a row are shifted vertically, so that they do not overlap.
        shifts = 0.2 * (np.arange(len(series)) - (len(series) - 1) / 2)
        for shift, (name, (values, halves)) in zip(shifts, series.items(), strict=True):
            look = {"fmt": "o", "markersize": 4, "capsize": 3, "label": name}
            axes.errorbar(values, rows + shift, xerr=halves, **look)
        shown = [name if len(name) <= 24 else f"{name[:12]}...{name[-9:]}" for name in names]
        axes.set_yticks(rows, shown, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.6)
        if len(series) > 1:
            _legend_below(canvas, axes)

    found = []
    for index, row in enumerate(names):
        known = {name: (x[index], y[index]) for name, (x, y) in series.items()}
        found += [
            f"{row} {name} {value:.4g} plus or minus {half:.2g}"
            for name, (value, half) in known.items()
            if np.isfinite(value)
        ]
    text = f"{label}: {'; '.join(found[:40])}"
    height = 0.75 + 0.26 * len(names) + 0.25 * (len(series) > 1)
    return Panel(text, WIDTH, max(height, 1.6), draw)


def _confusion_matrix(figure: ConfusionMatrix) -> list[Panel]:
    matrix, count = np.asarray(figure.matrix), len(figure.labels)
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    longest = max(map(len, figure.labels), default=0)
    cells = min(max(1.9, 0.36 * count), 11)
    side = cells + min(0.075 * longest, 2.2) + 0.45

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        # Cells without counts are transparent.
        axes.imshow(_shaded(LINES[0], fraction))
        axes.set_xticks(range(count), figure.labels, rotation=60 if longest > 2 else 0, ha="right")
        axes.set_yticks(range(count), figure.labels)
        axes.spines[["right", "top"]].set_visible(True)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if count <= _COUNTED:
            digits = len(str(matrix.max(initial=0)))
            size = min(10.0, 90 * cells / max(count, 1) / max(digits, 2))
            for (row, column), value in np.ndenumerate(matrix):
                if value:
                    color = "white" if fraction[row, column] > 0.8 else INK
                    place = {"ha": "center", "va": "center", "fontsize": size}
                    axes.text(column, row, str(value), color=color, **place)

    right = [f"{name} {fraction[i, i]:.0%}" for i, name in enumerate(figure.labels)][:_COUNTED]
    wrong = [(int(n), i, j) for (i, j), n in np.ndenumerate(matrix) if i != j and n]
    errors = [
        f"{figure.labels[i]} as {figure.labels[j]} {n}" for n, i, j in sorted(wrong)[::-1][:8]
    ]
    text = (
        f"Confusion matrix of {count} classes. Correct of each true class: {', '.join(right)}. "
        f"Most frequent errors: {', '.join(errors) or 'none'}."
    )
    return [Panel(text, side, side, draw)]


def _shaded(color: str, fraction: np.ndarray) -> np.ndarray:
    """Returns a color, as RGBA values [..., 4], whose opacity is given by fractions [...]."""
    from matplotlib.colors import to_rgb

    rgb = np.broadcast_to(to_rgb(color), (*fraction.shape, 3))
    return np.concatenate([rgb, fraction[..., None]], axis=-1)


def _alignment(figure: Alignment) -> list[Panel]:
    weights = np.asarray(figure.weights)
    each = 0.2 if figure.over is None else 0.06
    longest = max(map(len, figure.inputs), default=0)
    width = max(WIDTH, 1.4 + each * len(figure.inputs))
    height = max(1.7, 0.7 + min(0.05 * longest, 0.8) + 0.2 * len(figure.outputs))
    height += 0.9 * (figure.over is not None)
    most = float(weights.max(initial=0.0))
    # Weights over many inputs are small, so that a scale from 0 to 1 would show no differences.
    top = 1.0 if most > 0.5 else max(most, 1e-12)

    def draw(canvas: Any) -> None:
        if figure.over is None:
            axes = canvas.subplots()
        else:
            above, axes = canvas.subplots(nrows=2, height_ratios=(0.9, height - 1.5), sharex=True)
            extent = (-0.5, len(figure.inputs) - 0.5, len(figure.over) - 0.5, -0.5)
            above.imshow(figure.over, cmap="gray", aspect="auto", extent=extent)
            above.set_yticks([])
            above.tick_params(bottom=False)
        image = axes.imshow(weights, cmap="magma", vmin=0, vmax=top, aspect="auto")
        rotated = {"rotation": 60, "ha": "right"} if longest > 3 else {}
        named = [index for index, name in enumerate(figure.inputs) if name]
        axes.set_xticks(named, [figure.inputs[index] for index in named], fontsize=8, **rotated)
        axes.set_yticks(range(len(figure.outputs)), figure.outputs, fontsize=8)
        axes.set_xlabel("input")
        axes.set_ylabel("output")
        bar = canvas.colorbar(image, ax=axes, fraction=0.1 / width, aspect=10, pad=0.02)
        bar.set_ticks([0, top], labels=["0", f"{top:.2g}"], fontsize=7)
        bar.outline.set_visible(False)

    found = []
    for name, row in list(zip(figure.outputs, weights, strict=False))[:40]:
        if len(row):
            best = int(np.argmax(row))
            label = figure.inputs[best] or f"position {best + 1}"
            found.append(f"{name}: {label} {row[best]:.2f}")
    text = f"Attention weights of {len(figure.outputs)} outputs over {len(figure.inputs)} inputs"
    return [Panel(f"{text}. Largest of each output: {'; '.join(found)}", width, height, draw)]


def _attended_words(figure: AttendedText) -> list[Panel]:
    """Draws words in lines of a fixed width; the background of a word shows its weight."""
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

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        axes.set(xlim=(0, _LINE), ylim=(len(lines) - 0.5, -0.5))
        axes.axis("off")
        for row, words in enumerate(lines):
            for column, token, weight in words:
                box = {"facecolor": (0.96, 0.62, 0.33, weight), "edgecolor": "none", "pad": 1.5}
                axes.text(column, row, token, fontsize=9, family="monospace", va="center", bbox=box)

    text = " ".join(figure.tokens)
    return [Panel(text, 0.085 * _LINE, 0.6 + 0.26 * len(lines), draw)]


# ---------------------------------------------------------------- images


def _image(pixels: np.ndarray, alternative: str, title: str = "") -> Panel:
    pixels = overlays.to_rgb(pixels)

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        axes.imshow(pixels, interpolation="nearest")
        axes.set_axis_off()

    Y, X = pixels.shape[:2]
    return Panel(alternative, WIDTH, min(max(WIDTH * Y / X, 0.4), 6.0), draw, title, pixels)


def _attended_image(figure: AttendedImage) -> list[Panel]:
    own = _image(figure.image, f"Image: {figure.caption}", "image")
    if figure.weights is None:
        return [dataclasses.replace(own, title="")]
    weights = np.asarray(figure.weights, float)
    y, x = np.unravel_index(int(np.argmax(weights)), weights.shape)
    text = (
        f"Attention weights over the image, a map of {weights.shape[0]} rows and "
        f"{weights.shape[1]} columns; the largest is in row {y + 1}, column {x + 1}"
    )
    return [own, _image(overlays.overlay_weights(figure.image, weights), text, "attention")]


def _segmented_image(figure: SegmentedImage) -> list[Panel]:
    classes, plain = len(figure.names), overlays.background(figure.names)
    found = [_image(figure.image, f"Image: {figure.caption}", "image")]
    for title, labels in (("true classes", figure.truth), ("predicted classes", figure.labels)):
        if labels is not None:
            drawn = overlays.overlay_classes(figure.image, labels, classes, plain=plain)
            counts = np.bincount(labels[labels < classes].astype(int).ravel(), minlength=classes)
            shares = counts / max(labels.size, 1)
            shown = [f"{figure.names[k]} {shares[k]:.0%}" for k in np.argsort(-counts) if counts[k]]
            found.append(_image(drawn, f"{title} by pixels: {', '.join(shown[:20])}", title))
    return found


def _classes_that_occur(figure: SegmentedImage) -> list[Entry]:
    from matplotlib.colors import to_hex

    maps = [labels for labels in (figure.labels, figure.truth) if labels is not None]
    present = np.unique(np.concatenate([np.ravel(x) for x in maps])).tolist()
    shades, plain = overlays.palette(len(figure.names)), overlays.background(figure.names)
    found = []
    for number in present:
        if number in plain:
            found.append(Entry(f"{figure.names[number]} (not colored)", "area", FAINT, 0.0))
        elif 0 <= number < len(figure.names):
            found.append(Entry(figure.names[number], "area", to_hex(shades[number] / 255)))
    if any(not 0 <= number < len(figure.names) for number in present):
        found.append(Entry("no class (dark)", "area", "#000000"))
    return found


def detected_colors(figure: DetectedImage) -> np.ndarray:
    """Returns the color of each object, uint8 [n, 3].

    If there are several classes, objects of the same class share a color. If there is one class,
    each object has its own color, to separate touching objects.
    """
    names = sorted(set(figure.labels))
    chosen = [names.index(name) for name in figure.labels]
    if len(names) == 1:
        chosen = list(range(len(figure.labels)))
    return overlays.palette(max(chosen, default=0) + 1)[chosen]


def _detected_image(figure: DetectedImage, numbered: bool = True) -> list[Panel]:
    """Draws the image with dashed true boxes, then with predicted masks, boxes and labels."""
    Y, X = np.shape(figure.image)[:2]
    size = (WIDTH, min(max(WIDTH * Y / X, 0.8), 7.0))
    shades = detected_colors(figure)
    image = overlays.to_rgb(figure.image)

    def draw_truth(canvas: Any) -> None:
        axes = _image_axes(canvas, image)
        for box in () if figure.truth_boxes is None else figure.truth_boxes:
            _box(axes, box, "black", "solid", 1.8)
            _box(axes, box, "white", "dashed", 1.0)

    def draw_found(canvas: Any) -> None:
        below = image
        if figure.masks is not None:
            below = overlays.overlay_masks(image, figure.masks, list(shades))
        axes = _image_axes(canvas, below)
        for number, (box, shade) in enumerate(zip(figure.boxes, shades, strict=True)):
            _box(axes, box, shade / 255, "solid", 1.4)
            text = label(figure, number)
            if numbered and len(figure.boxes) > NAMED:
                text = str(number + 1)
            if text:
                _box_label(axes, box, text, shade / 255, Y)

    known = figure.truth_boxes is not None
    found = [label(figure, number) or name for number, name in enumerate(figure.labels)]
    shown = ", ".join(found[:30]) + (", ..." if len(found) > 30 else "")
    true = f"Image with {len(figure.truth_boxes)} true boxes" if known else "Image"
    return [
        Panel(true, *size, draw_truth, "image, true boxes" if known else "image"),
        Panel(f"{len(found)} detected objects: {shown or 'none'}", *size, draw_found, "predicted"),
    ]


def label(figure: DetectedImage, number: int) -> str:
    """Returns the label of a detected object: its score, after its class if the classes differ."""
    name = figure.labels[number] if len(set(figure.labels)) > 1 else ""
    score = "" if figure.scores is None else f"{figure.scores[number]:.2f}"
    return f"{name} {score}".strip()


def _image_axes(canvas: Any, image: np.ndarray) -> Any:
    axes = canvas.subplots()
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    return axes


def _box(axes: Any, box: np.ndarray, color: Any, line: str, width: float) -> None:
    """Draws a box (x1, y1, x2, y2). Coordinate 0 is the left or top edge of pixel 0."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(side) for side in box)
    edge = {"fill": False, "edgecolor": color, "linestyle": line, "linewidth": width}
    axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, **edge))


def _box_label(axes: Any, box: np.ndarray, text: str, color: np.ndarray, Y: int) -> None:
    """Writes a label above a box, or below its top edge if there is no space above."""
    luminance = float(np.dot(color, (0.2126, 0.7152, 0.0722)))
    below = {"facecolor": (*color, 1.0), "edgecolor": "none", "pad": 0.8}
    above = box[1] > 0.08 * Y
    axes.text(
        max(float(box[0]) - 0.5, -0.5),
        float(box[1]) - 0.5,
        text,
        bbox=below,
        fontsize=7.5,
        color="black" if luminance > 0.36 else "white",
        va="bottom" if above else "top",
        clip_on=True,
    )


# ---------------------------------------------------------------- series and transcripts


def _forecast(figure: Forecast) -> list[Panel]:
    past, ahead = len(figure.past), len(figure.forecast)
    x: Any = 1 + np.arange(-past, ahead)
    if figure.times is not None:
        x = np.asarray(figure.times)

    def draw(canvas: Any) -> None:
        from matplotlib import dates

        axes = canvas.subplots()
        before, after = x[:past], x[past:]
        look = {entry.label: entry for entry in _forecast_legend(figure)}
        axes.plot(before, figure.past, color=INK, linewidth=1)
        if figure.truth is not None:
            axes.plot(after, figure.truth, color=INK, linewidth=1, linestyle="dotted")
        for share, (low, high) in sorted(figure.intervals.items(), reverse=True):
            entry = look[_interval(share)]
            axes.fill_between(after, low, high, color=entry.color, alpha=entry.alpha, linewidth=0)
        axes.plot(after, figure.forecast, color=LINES[0], linewidth=1.4)
        if past and ahead:
            axes.axvline(before[-1] + (after[0] - before[-1]) / 2, color=FAINT, linewidth=0.8)
        if figure.times is None:
            axes.set_xlabel(figure.x_label)
        else:
            locator = dates.AutoDateLocator(minticks=3, maxticks=6)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        axes.grid(alpha=0.6)

    span = ""
    if figure.times is not None and past + ahead:
        span = f" from {str(x[0])[:16]} to {str(x[-1])[:16]}"
    finite = np.asarray(figure.forecast, float)[np.isfinite(figure.forecast)]
    text = f"Forecast of {figure.caption}{span}: {ahead} steps"
    if len(finite):
        text += f", values {finite.min():.4g} to {finite.max():.4g}"
    if figure.truth is not None and np.isfinite(figure.truth).any():
        error = np.nanmean(np.abs(np.asarray(figure.forecast) - figure.truth))
        text += f", mean absolute error {error:.4g}"
    return [Panel(text, WIDTH, 2.2, draw, figure.caption)]


def _interval(share: float) -> str:
    return f"{share:.0%} interval"


def _forecast_legend(figure: Forecast) -> list[Entry]:
    found = [Entry("past", "line", INK)]
    if figure.truth is not None:
        found.append(Entry("true", "dotted", INK))
    found.append(Entry("forecast", "line", LINES[0]))
    return found + [
        Entry(_interval(share), "band", LINES[0], round(0.5 - 0.4 * share, 2))
        for share in sorted(figure.intervals)
    ]


def _group(figure: FigureGroup) -> list[Panel]:
    found = []
    for each in figure.figures:
        found += [
            dataclasses.replace(panel, title=panel.title or caption(each)) for panel in panels(each)
        ]
    return found


def _transcript(figure: Transcript) -> list[Panel]:
    if figure.image is None:
        raise TypeError("no drawing for a Transcript without image")
    image = np.asarray(figure.image)
    if image.dtype != np.uint8:
        low, high = float(np.min(image)), float(np.max(image))
        image = (image - low) / max(high - low, 1e-12)
    X = image.shape[1]

    def draw(canvas: Any) -> None:
        axes = canvas.subplots()
        axes.imshow(image, cmap="gray", aspect="auto", interpolation="nearest")
        axes.set_axis_off()

    text = f"Input of the transcript: {figure.hypothesis}"
    return [Panel(text, min(max(WIDTH, 0.012 * X), 10.0), 1.1, draw)]


_PANELS: Mapping[type, Callable[[Any], list[Panel]]] = {
    Alignment: _alignment,
    AttendedImage: _attended_image,
    AttendedText: _attended_words,
    ConfusionMatrix: _confusion_matrix,
    Curves: _curves,
    DetectedImage: _detected_image,
    FigureGroup: _group,
    Forecast: _forecast,
    Intervals: _intervals,
    SegmentedImage: _segmented_image,
    Transcript: _transcript,
}

unnumbered = functools.partial(_detected_image, numbered=False)
"""Returns the panels of a `DetectedImage` with labels instead of numbers at the objects.

Numbers refer to a list of objects, which pages have and PNG files do not.
"""
