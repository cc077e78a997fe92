"""Rendering of the figures of `tasks.figures` and of training curves as HTML and PNG."""

from __future__ import annotations

import base64
import dataclasses
import difflib
import html
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launch.reporting import drawings
from launch.reporting.drawings import Entry, Panel
from launch.reporting.page import scrolling, with_modes
from tasks.figures import (
    AttendedText,
    DetectedImage,
    Figure,
    Recommendations,
    Transcript,
)

# Characters that can be neither drawn nor written in XML: control characters and unpaired
# surrogates, which occur in file names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
# Pixels per inch in HTML, and the maximum side in pixels to which small images are enlarged.
_PIXELS = 96
_SMALL = 168
# Largest number of characters of texts that are shown side by side.
_SHORT = 40
# Number of tokens whose weights are listed below a text.
_LISTED = 8


def draw(figure: Figure) -> str:
    """Renders one figure as HTML, with a text alternative of each drawing.

    Raises:
      TypeError: the class of the figure is unknown.
    """
    figure = printable(figure)
    if isinstance(figure, AttendedText):
        return _captioned(figure.caption, _attended_text(figure))
    if isinstance(figure, Recommendations):
        return _captioned(figure.caption, _recommendations(figure))
    if isinstance(figure, Transcript):
        texts = (figure.hypothesis, figure.reference or "", figure.source)
        wide = max(map(len, texts)) > _SHORT
        if figure.image is not None:
            wide |= drawings.panels(figure)[0].width > drawings.WIDTH
        return _captioned(figure.caption, _transcript(figure), "" if wide else "narrow")
    with drawings.style():
        drawn = drawings.panels(figure)
        body = _panels(drawn, titled=len(drawn) > 1)
        body += _legend(drawings.legend(figure))
    kind = ""
    if len(drawn) == 1 and drawn[0].width <= drawings.WIDTH + 0.5:
        pixels = drawn[0].pixels
        kind = "tile" if pixels is not None and max(pixels.shape) <= _SMALL else "narrow"
    if isinstance(figure, DetectedImage):
        body += _objects(figure)
    return _captioned(drawings.caption(figure), body, kind)


def png(figure: Figure) -> bytes:
    """Renders one figure as the content of a PNG file.

    Raises:
      TypeError: the figure consists of text.
    """
    figure, buffer = printable(figure), io.BytesIO()
    with drawings.style():
        if isinstance(figure, DetectedImage):
            drawn = drawings.unnumbered(figure)
        else:
            drawn = drawings.panels(figure)
        columns = min(len(drawn), 3)
        rows = [drawn[first : first + columns] for first in range(0, len(drawn), columns)]
        width = max(sum(panel.width for panel in row) for row in rows)
        heights = [max(panel.height for panel in row) + 0.25 * (columns > 1) for row in rows]
        # A character of the caption is about 0.07 inches wide.
        lines = [
            piece
            for line in drawings.caption(figure).split("\n")
            for piece in textwrap.wrap(line, int(width / 0.07))
        ]
        entries = drawings.legend(figure)
        extra = 0.16 * len(lines) + 0.25 * bool(entries)
        canvas = drawings.canvas(width, sum(heights) + extra)
        canvas.suptitle("\n".join(lines), fontsize=9)
        parts = canvas.subfigures(len(rows), columns, height_ratios=heights, squeeze=False)
        for row, places in zip(rows, parts, strict=True):
            for panel, place in zip(row, places, strict=False):
                panel.draw(place)
                if len(drawn) > 1:
                    place.suptitle(panel.title, fontsize=9)
        if entries:
            handles = [_handle(entry) for entry in entries]
            columns = min(len(entries), max(int(width / 1.2), 1))
            canvas.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
        canvas.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def files(drawn: Sequence[Figure]) -> Iterator[tuple[str, bytes | None, str]]:
    """Yields a file name without suffix, the content of a PNG file, and a text for each figure.

    The text is the caption. For a figure that consists of text, the content of the PNG file is
    None, and the text is the complete figure.
    """
    for number, figure in enumerate(drawn, 1):
        caption = drawings.caption(figure)
        name = re.sub(r"[^\w.-]+", "_", caption).strip("_")[:60]
        try:
            yield f"{number:02d}-{name}", png(figure), caption
        except TypeError:
            yield f"{number:02d}-{name}", None, text(figure)


def text(figure: Figure) -> str:
    """Returns the content of a figure that consists of text, as plain lines."""
    figure = printable(figure)
    lines = [figure.caption]
    if isinstance(figure, Transcript):
        facts = {"source": figure.source or None, "reference": figure.reference}
        lines += [f"{key}: {value}" for key, value in facts.items() if value is not None]
        lines.append(f"output: {figure.hypothesis}")
    if isinstance(figure, Recommendations):
        lines.append(f"history, latest first: {'; '.join(figure.history)}")
        if figure.truth is not None:
            lines.append(f"true next item: {figure.truth}")
        lines += [f"{rank}. {title}" for rank, title in enumerate(figure.titles, 1)]
    return "\n".join(lines)


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str = "step",
    mark: tuple[str, float] | None = None,
) -> str:
    """Draws line plots as an HTML panel; see `launch.reporting.drawings.curves`."""
    series = {printable(name): values for name, values in series.items()}
    with drawings.style():
        return _panel(drawings.curves(printable(title), series, printable(x_label), mark), False)


def printable(value: Any) -> Any:
    """Escapes the characters that cannot be drawn, in a figure or in one of its fields."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        parts = {field.name: printable(getattr(value, field.name)) for field in fields}
        return dataclasses.replace(value, **parts)
    if isinstance(value, list | tuple):
        return type(value)(map(printable, value))
    if isinstance(value, Mapping):
        return {printable(key): printable(each) for key, each in value.items()}
    return value


# ---------------------------------------------------------------- drawings


def _captioned(caption: str, body: str, kind: str = "") -> str:
    opening = f'<figure class="{kind}">' if kind else "<figure>"
    return f"{opening}<figcaption dir='auto'>{html.escape(caption)}</figcaption>{body}</figure>\n"


def _panels(drawn: Sequence[Panel], titled: bool) -> str:
    return f'<div class="panels">{"".join(_panel(panel, titled) for panel in drawn)}</div>'


def _panel(panel: Panel, titled: bool) -> str:
    title = f"<p>{html.escape(panel.title)}</p>" if titled and panel.title else ""
    image = _pixels(panel) if panel.pixels is not None else _svg(panel)
    if panel.width > drawings.WIDTH + 0.5:
        image = scrolling(image, panel.alternative[:80])
    return f'<div class="panel">{title}{image}</div>'


def _svg(panel: Panel) -> str:
    canvas, buffer = drawings.canvas(panel.width, panel.height), io.StringIO()
    panel.draw(canvas)
    # The date and random identifiers would make reports of equal runs differ.
    canvas.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    data = base64.b64encode(with_modes(buffer.getvalue()).encode()).decode()
    return (
        f'<img alt="{html.escape(panel.alternative)}" width="{round(_PIXELS * panel.width)}" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def _pixels(panel: Panel) -> str:
    from PIL import Image

    assert panel.pixels is not None
    Y, X = panel.pixels.shape[:2]
    larger = max(1, _SMALL // max(X, Y))
    width = min(larger * X, round(_PIXELS * panel.width))
    buffer = io.BytesIO()
    Image.fromarray(panel.pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="pixels"' if larger > 1 else ""
    return (
        f'<img{kind} alt="{html.escape(panel.alternative)}" width="{width}" '
        f'src="data:image/png;base64,{data}">'
    )


def _legend(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    shown = []
    for entry in entries:
        color = with_modes(f"<svg>{entry.color}").rpartition(">")[2]
        look = f"background: {color}; opacity: {entry.alpha:g}"
        if entry.style in ("line", "dotted"):
            kind = "solid" if entry.style == "line" else "dotted"
            look = f"height: 0; width: 1.4em; border-top: 2px {kind} {color}; vertical-align: .25em"
        shown.append(
            f'<li><span class="swatch" style="{look}"></span>{html.escape(entry.label)}</li>'
        )
    return f'<ul class="legend">{"".join(shown)}</ul>'


def _handle(entry: Entry) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if entry.style in ("line", "dotted"):
        kind = "solid" if entry.style == "line" else "dotted"
        return Line2D([], [], color=entry.color, linestyle=kind, label=entry.label)
    return Patch(color=entry.color, alpha=entry.alpha, label=entry.label)


# ---------------------------------------------------------------- texts


def _attended_text(figure: AttendedText) -> str:
    weights = np.asarray(figure.weights, float)
    strongest = max(float(weights.max(initial=0.0)), 1e-12)
    words = "".join(
        f'<span style="--weight: {weight / strongest:.2f}" title="{weight:.3f}">'
        f"{html.escape(token)}</span> "
        for token, weight in zip(figure.tokens, weights, strict=True)
    )
    largest = [n for n in np.argsort(-weights, kind="stable")[:_LISTED] if weights[n] > 0]
    names = {n: figure.tokens[n] for n in largest}
    # Tokens without letters or digits are quoted; a comma between numbers would look like a
    # separator.
    names = {n: name if re.search(r"\w", name) else f'"{name}"' for n, name in names.items()}
    listed = ", ".join(f"{html.escape(name)} {weights[n]:.3f}" for n, name in names.items())
    if listed:
        listed = f"<p class='note' dir='auto'>Largest weights: {listed}</p>"
    return f"<p class='text' dir='auto'>{words}</p>{listed}"


def _objects(figure: DetectedImage) -> str:
    """Lists the detected objects in the order of their numbers in the drawing."""
    if not len(figure.boxes):
        return ""
    from matplotlib.colors import to_hex

    rows = []
    shades = drawings.detected_colors(figure)
    for number, (box, shade) in enumerate(zip(figure.boxes, shades, strict=True)):
        corners = ", ".join(f"{corner:.0f}" for corner in box)
        score = "" if figure.scores is None else f"{figure.scores[number]:.2f}"
        swatch = f'<span class="swatch" style="background: {to_hex(shade / 255)}"></span>'
        name = html.escape(figure.labels[number])
        rows.append(
            f"<tr><td>{number + 1}</td><td class='left'>{swatch}{name}</td><td>{score}</td>"
            f"<td>{corners}</td></tr>"
        )
    table = (
        "<table><tr><th scope='col'>number</th><th scope='col' class='left'>class</th>"
        "<th scope='col'>score</th><th scope='col'>left, top, right, bottom</th></tr>"
        f"{''.join(rows)}</table>"
    )
    count = f"{len(rows)} detected object{'s' * (len(rows) > 1)}"
    return f"<details><summary>{count}</summary>{scrolling(table, count)}</details>"


def _recommendations(figure: Recommendations) -> str:
    explained = any(figure.reasons)
    rows = []
    for rank, (title, reasons) in enumerate(zip(figure.titles, figure.reasons, strict=True), 1):
        because = "; ".join(f"{html.escape(name)} {share:.2f}" for name, share in reasons)
        shown = html.escape(title)
        shown = f"<b>{shown} ✓ true</b>" if title == figure.truth else shown
        cells = f"<td>{rank}</td><td class='left' dir='auto'>{shown}</td>"
        rows.append(f"<tr>{cells}" + f"<td class='left'>{because}</td>" * explained + "</tr>")
    head = "<th scope='col'>rank</th><th scope='col' class='left'>recommended</th>"
    head += "<th scope='col' class='left'>attributed to, fraction</th>" * explained
    facts = {"history, latest first": "; ".join(figure.history) or "nothing"}
    if figure.truth is not None:
        rank = figure.titles.index(figure.truth) + 1 if figure.truth in figure.titles else None
        where = f"rank {rank}" if rank else f"not among the first {len(figure.titles)}"
        facts["true next item"] = f"{figure.truth} ({where})"
    table = scrolling(f"<table><tr>{head}</tr>{''.join(rows)}</table>", figure.caption)
    return _facts({key: html.escape(value) for key, value in facts.items()}) + table


def _transcript(figure: Transcript) -> str:
    drawn = ""
    if figure.image is not None:
        with drawings.style():
            drawn = _panels(drawings.panels(figure), titled=False)
    facts = {"source": html.escape(figure.source)} if figure.source else {}
    if figure.reference is None:
        return drawn + _facts({**facts, "output": html.escape(figure.hypothesis)})
    reference, hypothesis = _differences(figure)
    return drawn + _facts({**facts, "reference": reference, "output": hypothesis})


def _facts(facts: Mapping[str, str]) -> str:
    """Returns a list of names with their values, as HTML."""
    rows = "".join(f"<dt>{name}</dt><dd dir='auto'>{value}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _differences(figure: Transcript) -> tuple[str, str]:
    """Returns reference and hypothesis as HTML, in which deleted and inserted parts are marked."""
    texts = figure.reference or "", figure.hypothesis
    first, second = (text.split() if figure.words else list(text) for text in texts)
    space = " " if figure.words else ""
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, *bounds in matcher.get_opcodes():
        for side, units, (start, stop), tag in (
            (sides[0], first, bounds[:2], "del"),
            (sides[1], second, bounds[2:], "ins"),
        ):
            text = html.escape(space.join(units[start:stop]))
            if text:
                side.append(text if kind == "equal" else f"<{tag}>{text}</{tag}>")
    return space.join(sides[0]) or "(empty)", space.join(sides[1]) or "(empty)"
