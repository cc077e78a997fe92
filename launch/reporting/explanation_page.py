"""Pages of explanations, interactive and self-contained, and explanations as JSON.

A page contains JSON values and a script, `explanation_page.js`, which draws them. It refers to no
other file. Attention weights are quantized, see `launch.reporting.explanation_weights`.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention import inspect
from launch.engine.answers import cell
from launch.reporting import explanation_tables as tables
from launch.reporting import explanation_weights as weights
from launch.reporting import overlays
from launch.reporting import page as pages
from launch.reporting.explanation_tables import Summary
from launch.reporting.figures import printable
from tasks.explanation import (
    AttentionMap,
    Attribution,
    Axis,
    Curve,
    Explanation,
    Medium,
    Picture,
    Series,
    Sound,
)

WEIGHT_BYTES = 4_500_000
"""Default maximum size of the attention weights of a page with few explanations, in characters."""

# Default maximum size of the attention weights of one explanation, in characters, on a page with
# many explanations.
_EACH = 1_500_000
# Largest side of an image in pixels.
_LARGEST_SIDE = 768
# Kinds of axes whose positions are in the order of a sequence.
_ORDERED = ("token", "character", "frame", "lag", "time", "step", "column", "item")
# Largest number of queries from which head similarities are computed.
_COMPARED = 64
# Smallest numbers of heads, queries and keys after padding, see `_padded`.
_LEAST = (8, _COMPARED, 64)
# Styles and script of a page, embedded or in files.
_STYLES = re.compile(r'(?:<style>\n.*?</style>|<link rel="stylesheet"[^>]*>)</head>', re.DOTALL)
_SCRIPT = re.compile(r'<script id="page-script".*?</script>\n</main>', re.DOTALL)

_BODY = """
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
<noscript><p><b>This page needs JavaScript.</b></p></noscript>
<div id="list" hidden></div>
{% if summary %}<section id="summary"><h2>Summary of {{ count }} examples</h2>
{{ summary }}</section>{% endif %}
<div id="example" hidden></div>
<script type="application/json" id="page-data">{{ data }}</script>
{% for run in runs %}{% set outer = loop.index0 %}{% for each in run %}
<script type="application/json" id="run-{{ outer }}-{{ loop.index0 }}">{{ each }}</script>
{% endfor %}{% endfor %}
<script id="page-script">{{ script }}</script>
"""


def page(
    explanations: Sequence[Explanation],
    title: str,
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    against: Sequence[Explanation] = (),
    names: tuple[str, str] = ("first run", "second run"),
    notes: Sequence[str] = (),
    metric: str = "score",
    summary: Summary | None = None,
    weight_bytes: int | None = None,
) -> str:
    """Returns a self-contained HTML page with a list of examples and their explanations.

    Scripts on the page can read the quantized weights:
    `await explanation.weights(example, map, layer, head)`, with the id or the index of an example,
    returns an array with an entry for each query. With a fifth argument of 1, it reads the weights
    of the run `against`.

    Args:
      explanations: explanations; may be empty.
      title: title of the page.
      rows: records of `Task.predictions`, which the page lists in addition to the explained
        examples. Further keys are "kind", "correct" and "length", see
        `launch.reporting.explanation_tables`.
      against: explanations of the same examples by another run, which are shown side by side.
      names: names of the two runs.
      notes: sentences for the reader.
      metric: name of the score.
      summary: calibration and tables by class and length; None to compute them from `rows`.
      weight_bytes: approximate size of the attention weights of all explanations, in characters. By
        default 4.5 MB, or 1.5 MB for each explanation if that is more. If the weights do not fit,
        only the largest are kept, and the page states how much is missing.

    Raises:
      ValueError: the shape of an attention map, of an attribution or of areas does not fit its
        axes, or an axis is unknown.
    """
    from markupsafe import Markup

    shown = [*explanations, *against]
    if weight_bytes is None:
        weight_bytes = max(WEIGHT_BYTES, _EACH * len(shown))
    each = weight_bytes // max(len(shown), 1)
    runs = [[_embedded(_encoded(one, each)) for one in run] for run in (explanations, against)]
    data = {
        "rows": tables.listed(rows, explanations),
        "ids": [[one.id for one in run] for run in (explanations, against)],
        "names": list(names),
        "metric": metric,
    }
    found = tables.summarize(rows) if summary is None else summary
    count = len(rows) or sum(group.count for group in found.classes or found.lengths or found.bins)
    styles, script = _assets()
    return pages.render(
        _BODY,
        title,
        styles=styles,
        notes=notes,
        count=f"{count:,}",
        summary=Markup(tables.as_html(found, metric)),
        data=Markup(_embedded(printable(data))),
        runs=[[Markup(text) for text in run] for run in runs],
        script=Markup(script),
    )


def embedded(text: str) -> str:
    """Embeds the current styles and script in a page.

    Args:
      text: text of a page, whose styles and script may be in files.

    Raises:
      ValueError: the text is not a page of this module.
    """
    _, script = _assets()
    script = f'<script id="page-script">{script}</script>'
    return _with_assets(text, f"<style>\n{style_sheet()}</style>", script)


def linked(text: str, styles: str, script: str) -> str:
    """Replaces the styles and script of a page by references to files.

    Args:
      text: text of a page.
      styles: relative path of a file with `style_sheet`.
      script: relative path of explanation_page.js.

    Raises:
      ValueError: the text is not a page of this module.
    """
    link = f'<link rel="stylesheet" href="{styles}">'
    return _with_assets(text, link, f'<script id="page-script" src="{script}"></script>')


def style_sheet() -> str:
    """Returns the styles of pages of explanations."""
    return pages.CSS + _assets()[0]


def _with_assets(text: str, styles: str, script: str) -> str:
    for pattern, current in ((_STYLES, f"{styles}</head>"), (_SCRIPT, f"{script}\n</main>")):
        before, *rest = pattern.split(text, maxsplit=1)
        if not rest:
            raise ValueError("it is not a page of explanations; create it with launch.explain")
        text = before + current + rest[0]
    return text


def _assets() -> tuple[str, str]:
    """Returns the style sheet and the script of explanations; the common `page.CSS` is left out."""
    names = ("explanation_page.css", "explanation_page.js")
    styles, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)
    return styles, script


def as_json(explanations: Sequence[Explanation]) -> list[dict[str, Any]]:
    """Returns explanations as JSON values with exact numbers, for programs.

    The keys are the attributes of `tasks.explanation`. Arrays are nested lists, and numbers that
    are not finite are None. Images are data URIs of PNG files, and sounds of WAV files.

    Args:
      explanations: explanations.
    """
    return [_values(each) for each in explanations]


def bertviz(explanation: Explanation) -> dict[str, Any]:
    """Converts the attention weights of an explanation to the format that BertViz 1.4 reads.

    The result takes the place of `PYTHON_PARAMS` in `head_view.js` and `model_view.js`. Their other
    inputs are elements of the page with the ids "bertviz" and "vis", and "layer" and "filter" for
    the selection.

    Args:
      explanation: explanation; all of its maps must have the same numbers of layers and heads.

    Raises:
      ValueError: there is no map, or maps differ in numbers of layers or heads.
    """
    shapes = {each.weights.shape[:2] for each in explanation.maps}
    if len(shapes) != 1:
        raise ValueError(
            f"maps: got {len(shapes)} different shapes (layers, heads), expected the same for all; "
            "select maps with equal numbers of layers and heads"
        )
    ((layers, heads),) = shapes
    return {
        "attention": [
            {
                "name": each.title,
                "attn": np.nan_to_num(each.weights).tolist(),
                "left_text": _query_labels(explanation, each),
                "right_text": list(explanation.axes[each.keys].labels),
            }
            for each in explanation.maps
        ],
        "default_filter": "0",
        "root_div_id": "bertviz",
        "layer": None,
        "heads": None,
        "include_layers": list(range(layers)),
        "include_heads": list(range(heads)),
        "total_heads": heads,
        "display_mode": "light",
    }


def _query_labels(explanation: Explanation, attention: AttentionMap) -> list[str]:
    if attention.queries is None:
        return [explanation.prediction]
    return list(explanation.axes[attention.queries].labels)


# ---------------------------------------------------------------- values for the script


def _embedded(value: Any) -> str:
    """Serializes a value as JSON that can be embedded in an HTML script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _encoded(explanation: Explanation, size: int) -> dict[str, Any]:
    """Returns an explanation as JSON values for the script."""
    _check(explanation)
    kept = weights.choose(explanation.maps, size)
    facts = {
        field.name: getattr(explanation, field.name)
        for field in dataclasses.fields(Explanation)
        if field.name not in ("axes", "maps", "attributions", "curves", "medium")
    }
    return printable(
        {
            **facts,
            "notes": list(explanation.notes),
            "confidence": _number(explanation.confidence),
            "score": _number(explanation.score),
            "axes": {name: _axis(axis) for name, axis in explanation.axes.items()},
            "maps": [_map(explanation, each, kept) for each in explanation.maps],
            "attributions": [_attribution(each) for each in explanation.attributions],
            "curves": [_curve(each) for each in explanation.curves],
            "medium": _medium(explanation.medium),
        }
    )


def _check(explanation: Explanation) -> None:
    """Raises ValueError if axes are unknown or sizes differ."""

    def size(name: str, where: str) -> int:
        if name not in explanation.axes:
            raise ValueError(f"{where}: got {name!r}, expected one of {[*explanation.axes]}")
        return len(explanation.axes[name].labels)

    for name, axis in explanation.axes.items():
        expected = (len(axis.labels), 4)
        if axis.areas is not None and np.shape(axis.areas) != expected:
            got = np.shape(axis.areas)
            raise ValueError(f"areas of axis {name!r}: got shape {got}, expected {expected}")
    for each in explanation.maps:
        where = f"map {each.title!r}"
        T = 1 if each.queries is None else size(each.queries, where)
        got = np.shape(each.weights)
        if len(got) != 4 or got[2:] != (T, size(each.keys, where)) or not np.prod(got[:2]):
            expected = f"[L, N, {T}, {size(each.keys, where)}]"
            raise ValueError(f"weights of {where}: got shape {got}, expected {expected}")
        for name, values in each.statistics.items():
            if np.shape(values) != got[:2]:
                shape = np.shape(values)
                raise ValueError(f"{name!r} of {where}: got shape {shape}, expected {got[:2]}")
    for each in explanation.attributions:
        where = f"attribution {each.method!r}"
        expected = (size(each.axis, where),)
        if np.shape(each.values) != expected:
            got = np.shape(each.values)
            raise ValueError(f"values of {where}: got shape {got}, expected {expected}")


def _axis(axis: Axis) -> dict[str, Any]:
    grid = _grid(axis)
    areas = None if axis.areas is None or grid else np.round(axis.areas, 5).tolist()
    return {"kind": axis.kind, "labels": list(axis.labels), "areas": areas, "grid": grid}


def _grid(axis: Axis) -> tuple[int, int] | None:
    """Returns the numbers of rows and columns of the grid whose cells are the areas of an axis.

    The result is None if the areas are not the cells of a grid over the medium, row by row.
    """
    if axis.areas is None or not len(axis.areas):
        return None
    columns = round(1 / max(float(axis.areas[0][2] - axis.areas[0][0]), 1e-6))
    if not columns or len(axis.areas) % columns:
        return None
    rows = len(axis.areas) // columns
    y, x = (index.ravel() for index in np.indices((rows, columns)))
    cells = np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=-1)
    return (rows, columns) if np.allclose(cells, axis.areas, atol=1e-4) else None


def _map(explanation: Explanation, attention: AttentionMap, kept: weights.Kept) -> dict[str, Any]:
    encoded = weights.encode(attention, kept)
    return {
        "title": attention.title,
        "queries": attention.queries,
        "keys": attention.keys,
        "shape": list(attention.weights.shape),
        **encoded,
        "small": weights.small_maps(attention, _grid(explanation.axes[attention.keys])),
        **_statistics(explanation, attention),
    }


def _statistics(explanation: Explanation, attention: AttentionMap) -> dict[str, Any]:
    """Computes statistics of the N heads in each of L layers, and similarities between heads.

    Returns:
      "statistics", lists [L][N] by name, and "similarity", a list [L][N][N], or None if it is not
      computed.
    """
    given = {name: _list(values) for name, values in attention.statistics.items()}
    L, N, T, S = attention.weights.shape
    if not T * S or np.fmin.reduce(attention.weights, axis=None, initial=0) < 0:
        return {"statistics": given, "similarity": None}
    entropy, distance, similarity = _jitted()
    found: dict[str, list[Any]] = {"entropy": [], "mean distance": []}
    distances = _distances(explanation.axes[attention.keys])
    if attention.queries != attention.keys or T == 1:
        distances = None
    # Similarities are computed from evenly spaced queries only, because the time grows with the
    # square of the number of heads.
    rows = np.unique(np.linspace(0, T - 1, min(T, _COMPARED)).round().astype(int))
    similar = []
    for layer in range(L):
        heads = weights.finite(attention.weights[layer])
        padded = _padded(heads)
        found["entropy"].append(_list(entropy(padded)[0, :N]))
        if distances is not None:
            d = np.zeros(padded.shape[-2:], np.float32)
            d[:T, :S] = distances
            found["mean distance"].append(_list(distance(padded, distances=d)[0, :N]))
        if N > 1:
            similar.append(_list(similarity(_padded(heads[:, rows]))[0, :N, :N]))
    computed = {name: values for name, values in found.items() if values}
    return {"statistics": {**computed, **given}, "similarity": similar or None}


def _distances(axis: Axis) -> np.ndarray | None:
    """Returns the distances [n, n] between the n positions of an axis; None if they have no order.

    The distance of two cells of an image is that of their centers, in units of cells.
    """
    grid = _grid(axis)
    if grid is not None and grid[0] > 1:
        centers = np.indices(grid).reshape(2, -1)
    elif axis.kind in _ORDERED or grid is not None:
        centers = np.arange(len(axis.labels))[None]
    else:
        return None
    return np.sqrt(((centers[:, :, None] - centers[:, None]) ** 2).sum(axis=0))


@functools.cache
def _jitted() -> tuple[Any, Any, Any]:
    """Returns jitted functions for the entropy, distance and similarity of heads."""
    import jax

    functions = inspect.head_entropy, inspect.head_distance, inspect.head_similarity
    entropy, distance, similarity = map(jax.jit, functions)
    return entropy, distance, similarity


def _padded(heads: np.ndarray) -> np.ndarray:
    """Pads weights with zeros, so that inputs of similar lengths share a compiled program.

    Padded heads, queries and keys do not change the statistics of the others.

    Args:
      heads: weights [N, T, S] of N heads, with T queries and S keys.

    Returns:
      Weights [1, N', T', S'] whose sizes N', T' and S' are powers of two.
    """
    sizes = zip(heads.shape, _LEAST, strict=True)
    spare = [(0, (1 << (max(size, least) - 1).bit_length()) - size) for size, least in sizes]
    return np.pad(heads, spare)[None]


def _attribution(attribution: Attribution) -> dict[str, Any]:
    return {
        "method": attribution.method,
        "values": _list(attribution.values, 6),
        "axis": attribution.axis,
        "numbers": {name: _number(value) for name, value in attribution.numbers.items()},
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "method": curve.method,
        "kind": curve.kind,
        "fractions": _list(curve.fractions, 6),
        "scores": _list(curve.scores, 6),
    }


def _medium(medium: Medium | None) -> dict[str, Any] | None:
    if isinstance(medium, Picture):
        return {"type": "image", **_picture(medium)}
    if isinstance(medium, Sound):
        return {
            "type": "sound",
            "sound": _wav(medium),
            "seconds": len(medium.samples) / medium.rate,
            **_picture(medium.spectrogram),
        }
    if isinstance(medium, Series):
        return {
            "type": "series",
            "past": _list(medium.past, 7),
            "forecast": _list(medium.forecast, 7),
            "truth": None if medium.truth is None else _list(medium.truth, 7),
            "times": [cell(time) for time in medium.times],
            "name": medium.name,
        }
    return None


def _picture(picture: Picture) -> dict[str, Any]:
    image = overlays.to_rgb(picture.image)
    masks = []
    shades = overlays.palette(len(picture.masks) + len(picture.boxes))
    for (label, mask), shade in zip(picture.masks, shades, strict=False):
        layer = np.zeros((*mask.shape, 4), np.uint8)
        layer[np.asarray(mask, bool)] = (*shade, 120)
        masks.append({"label": label, "image": _png(layer), "color": _hex(shade)})
    boxes = [
        {"label": label, "box": np.asarray(box, float).round(5).tolist()}
        for label, box in picture.boxes
    ]
    return {
        "image": _png(image),
        "height": image.shape[0],
        "width": image.shape[1],
        "boxes": boxes,
        "masks": masks,
    }


def _hex(shade: np.ndarray) -> str:
    return "#" + bytes(shade.tolist()).hex()


def _png(pixels: np.ndarray) -> str:
    """Returns the data URI of an image, reduced so that no side exceeds 768 pixels."""
    from PIL import Image

    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _wav(sound: Sound) -> str:
    import soundfile

    buffer = io.BytesIO()
    samples = np.clip(np.asarray(sound.samples, np.float32), -1, 1)
    soundfile.write(buffer, samples, sound.rate, format="WAV", subtype="PCM_16")
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _list(values: Any, digits: int = 5) -> list[Any]:
    """Returns an array as nested lists of rounded numbers; non-finite numbers become None."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    rounded = [_number(float(f"{value:.{digits}g}")) for value in array.ravel()]
    return np.array(rounded, object).reshape(array.shape).tolist()


# ---------------------------------------------------------------- values for programs


def _values(value: Any) -> Any:
    """Returns an explanation, or a part of one, as JSON values."""
    if isinstance(value, Picture):
        fields = {**_fields(value), "image": _png(overlays.to_rgb(value.image))}
        return fields
    if isinstance(value, Sound):
        return {**_fields(value), "samples": _wav(value)}
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {key: _values(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            exact = np.array(value, object)
            exact[~np.isfinite(value)] = None
            return exact.tolist()
        return value.tolist()
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return [_values(each) for each in value]
    return value


def _fields(value: Any) -> dict[str, Any]:
    skipped = {Picture: ("image",), Sound: ("samples",)}.get(type(value), ())
    return {
        field.name: _values(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name not in skipped
    }
