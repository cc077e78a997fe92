"""Records of test examples and their summaries for pages of explanations.

The summaries are the calibration of confidences and tables by class and by input length.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.engine.answers import cell
from launch.reporting.page import scrolling
from tasks.explanation import Explanation

COLUMNS = ("id", "kind", "input", "prediction", "target", "confidence", "score")
"""Keys of the columns of the list of examples."""

# Largest number of characters of an input in the list.
_CLIPPED = 160
# Largest number of classes of a table.
_CLASSES = 50
# Number of groups of inputs by length.
_LENGTHS = 5
# Side of the reliability diagram in units of its coordinates, and its margins.
_SIDE, _MARGIN = 300, 46


@dataclasses.dataclass(frozen=True)
class Group:
    """Summary of examples that have a common class, a similar length or a similar confidence.

    Attributes:
      name: name of the group.
      count: number of examples.
      accuracy: fraction of correct examples; NaN if unknown.
      confidence: mean confidence; NaN if unknown.
      score: mean score; NaN if unknown.
      confused: most frequent wrong prediction with its number of examples; "" if there is none.
    """

    name: str
    count: int
    accuracy: float
    confidence: float
    score: float
    confused: str = ""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summaries of test examples; empty where they cannot be computed.

    Attributes:
      bins: examples by confidence, in bins of equal width from 0 to 1, without empty bins.
      edges: lower and upper confidence of each of `bins`.
      calibration_error: expected calibration error; NaN if there are no confidences.
      classes: examples by target.
      lengths: examples by length of the input.
      unit: unit of the lengths.
    """

    bins: Sequence[Group] = ()
    edges: Sequence[tuple[float, float]] = ()
    calibration_error: float = math.nan
    classes: Sequence[Group] = ()
    lengths: Sequence[Group] = ()
    unit: str = ""


def correct(row: Mapping[str, Any]) -> bool | None:
    """Returns whether the prediction of a record equals its target; None if unknown.

    Args:
      row: record of `Task.predictions`. The value of the key "correct" is returned if it has one;
        None means that examples are neither correct nor wrong, such as translations. Otherwise
        texts, integers and booleans are compared.
    """
    if "correct" in row:
        return None if row["correct"] is None else bool(row["correct"])
    prediction, target = row.get("prediction"), row.get("target")
    if isinstance(prediction, str | int) and isinstance(target, str | int):
        return prediction == target
    return None


def summarize(rows: Sequence[Mapping[str, Any]], bins: int = 15) -> Summary:
    """Summarizes test examples.

    The expected calibration error (Guo et al. 2017, equation 3) of n examples in bins B_m is

        ECE = Σ_m |B_m| / n · |accuracy(B_m) - confidence(B_m)|

    Args:
      rows: records of `Task.predictions`; see `correct`. The key "length" is the length of the
        input. Without this key, the length is the number of words, if most inputs have more than
        one word.
      bins: number of bins of equal width. A bin contains its upper edge.
    """
    rated = [row for row in rows if _number(row.get("confidence")) and correct(row) is not None]
    filled: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rated:
        filled[min(max(math.ceil(row["confidence"] * bins) - 1, 0), bins - 1)].append(row)
    edges = [(n / bins, (n + 1) / bins) for n in sorted(filled)]
    groups = [
        _group(f"{low:.2f} to {high:.2f}", filled[n])
        for n, (low, high) in zip(sorted(filled), edges, strict=True)
    ]
    gaps = [group.count * abs(group.accuracy - group.confidence) for group in groups]
    error = sum(gaps) / len(rated) if rated else math.nan
    lengths, unit = _lengths(rows)
    return Summary(groups, edges, error, _classes(rows), lengths, unit)


def listed(rows: Sequence[Mapping[str, Any]], explained: Sequence[Explanation]) -> dict[str, Any]:
    """Returns the list of examples as JSON values by column.

    Args:
      rows: records of `Task.predictions`.
      explained: explanations. Explained examples that are not among the rows come first.

    Returns:
      A list of values for each name in `COLUMNS`. The list "explained" has the index of each
      example's explanation, or -1 if it has none.
    """
    known = {each.id: index for index, each in reversed([*enumerate(explained)])}
    ids = {str(row.get("id", "")) for row in rows}
    found = [
        (_row({key: getattr(each, key) for key in COLUMNS}), index)
        for index, each in enumerate(explained)
        if each.id not in ids or known[each.id] != index
    ]
    for row in rows:
        index = known.get(str(row.get("id", "")), -1)
        kind = row.get("kind") or (explained[index].kind if index >= 0 else "")
        found.append((_row({**row, "kind": kind}), index))
    columns = {key: [row[key] for row, _ in found] for key in COLUMNS}
    return {**columns, "explained": [index for _, index in found]}


def as_html(summary: Summary, metric: str = "score") -> str:
    """Returns the summaries as HTML; empty ones are left out.

    Args:
      summary: summaries.
      metric: name of the score.
    """
    parts = []
    if summary.bins:
        count = sum(group.count for group in summary.bins)
        table = _table("confidence", summary.bins, metric)
        parts.append(
            "<section><h3>Calibration</h3>"
            f"<p>Expected calibration error <b>{summary.calibration_error:.4f}</b> over "
            f"{count:,} examples: the mean difference between confidence and accuracy. Bars on the "
            "diagonal are perfectly calibrated; lower bars mean overconfidence. Marks show the "
            "mean confidence, and paler bars have fewer examples.</p>"
            f"<div class='pair'>{_diagram(summary)}{table}</div></section>"
        )
    for name, title, groups in (
        ("class", "By class", summary.classes),
        (f"length in {summary.unit}", "By length of the input", summary.lengths),
    ):
        if groups:
            parts.append(f"<section><h3>{title}</h3>{_table(name, groups, metric)}</section>")
    return "\n".join(parts)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: cell(row.get(key)) for key in ("id", "kind", "input", "prediction", "target")}
    if not texts["kind"] and (right := correct(row)) is not None:
        texts["kind"] = "correct" if right else "wrong"
    for key in ("input", "prediction", "target"):
        if len(texts[key]) > _CLIPPED:
            texts[key] = texts[key][: _CLIPPED - 1] + "…"
    numbers = {key: row.get(key) for key in ("confidence", "score")}
    rounded = {key: float(f"{x:.5g}") if _number(x) else None for key, x in numbers.items()}
    return {**texts, **rounded}


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    def mean(values: Sequence[Any]) -> float:
        known = [float(value) for value in values if value is not None and _number(value)]
        return sum(known) / len(known) if known else math.nan

    judged = [correct(row) for row in rows]
    wrong = Counter(
        cell(row.get("prediction"))
        for row, right in zip(rows, judged, strict=True)
        if right is False
    )
    confused = "".join(f"{label} ({count:,})" for label, count in wrong.most_common(1))
    return Group(
        name,
        len(rows),
        mean([None if right is None else float(right) for right in judged]),
        mean([row.get("confidence") for row in rows]),
        mean([row.get("score") for row in rows]),
        confused,
    )


def _classes(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if isinstance(row.get("target"), str | int):
            members[cell(row["target"])].append(row)
    count = sum(map(len, members.values()))
    # Targets that rarely repeat, such as translations, are not classes.
    if not 2 <= len(members) <= min(_CLASSES, count // 2):
        return []
    return [_group(name, members[name]) for name in sorted(members)]


def _lengths(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Group], str]:
    unit, pairs = "positions", [(row["length"], row) for row in rows if _number(row.get("length"))]
    if not pairs:
        unit = "words"
        texts = [row for row in rows if isinstance(row.get("input"), str)]
        pairs = [(len(row["input"].split()), row) for row in texts]
        if sum(length > 1 for length, _ in pairs) * 2 <= len(pairs):
            return [], ""
    lengths = np.array([length for length, _ in pairs])
    # Upper lengths of groups with about equal numbers of examples.
    ends = np.unique(
        np.quantile(lengths, np.arange(1, _LENGTHS + 1) / _LENGTHS, method="inverted_cdf")
    )
    if len(ends) < 2:
        return [], ""
    members = np.searchsorted(ends, lengths)
    groups = []
    for number in range(len(ends)):
        inside = [row for (_, row), group in zip(pairs, members, strict=True) if group == number]
        low, high = lengths[members == number].min(), ends[number]
        groups.append(_group(f"{low:g}" if low == high else f"{low:g} to {high:g}", inside))
    return groups, unit


def _table(name: str, groups: Sequence[Group], metric: str) -> str:
    columns = {
        "examples": [f"{group.count:,}" for group in groups],
        "accuracy": [_shown(group.accuracy) for group in groups],
        "mean confidence": [_shown(group.confidence) for group in groups],
        # Removed below if the score is the accuracy.
        f"mean {metric}": [_shown(group.score) for group in groups],
        "most frequent error": [html.escape(group.confused) for group in groups],
    }
    if columns[f"mean {metric}"] == columns["accuracy"]:
        del columns[f"mean {metric}"]
    columns = {key: cells for key, cells in columns.items() if any(cells)}
    head = "".join(f"<th scope='col'>{html.escape(key)}</th>" for key in columns)
    lines = "".join(
        f"<tr><th scope='row' dir='auto'>{html.escape(group.name)}</th>"
        + "".join(f"<td dir='auto'>{cells[n]}</td>" for cells in columns.values())
        + "</tr>"
        for n, group in enumerate(groups)
    )
    first = f"<th scope='col'>{html.escape(name)}</th>"
    table = f"<table><thead><tr>{first}{head}</tr></thead><tbody>{lines}</tbody></table>"
    return scrolling(table, f"Examples by {name}")


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _diagram(summary: Summary) -> str:
    """Returns the reliability diagram as SVG."""
    side, margin = _SIDE, _MARGIN

    def x(value: float) -> float:
        return margin + side * value

    def y(value: float) -> float:
        return 8 + side * (1 - value)

    most = max(group.count for group in summary.bins)
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f"<path class='grid' d='M{x(0):.1f} {y(tick):.1f}H{x(1):.1f}'/>")
        parts.append(f"<text x='{x(0) - 6:.1f}' y='{y(tick) + 4:.1f}' class='end'>{tick:g}</text>")
        parts.append(f"<text x='{x(tick):.1f}' y='{y(0) + 18:.1f}' class='mid'>{tick:g}</text>")
    for group, (low, high) in zip(summary.bins, summary.edges, strict=True):
        # Bins of few examples are paler, but remain visible.
        opacity = 0.35 + 0.65 * group.count / most
        parts.append(
            f"<rect class='bar' x='{x(low) + 1:.1f}' width='{side * (high - low) - 2:.1f}' "
            f"y='{y(group.accuracy):.1f}' height='{side * group.accuracy:.1f}' "
            f"opacity='{opacity:.2f}'><title>{group.name}: accuracy {group.accuracy:.3f}, "
            f"confidence {group.confidence:.3f}, {group.count:,} examples</title></rect>"
        )
        middle, width = x((low + high) / 2), side * (high - low) / 2 - 1
        parts.append(
            f"<path class='mark' d='M{middle - width:.1f} {y(group.confidence):.1f}"
            f"H{middle + width:.1f}'/>"
        )
    parts.append(f"<path class='ideal' d='M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}'/>")
    parts.append(f"<text x='{x(0.5):.1f}' y='{y(0) + 36:.1f}' class='mid'>confidence</text>")
    parts.append(
        f"<text class='mid' transform='translate(12 {y(0.5):.1f}) rotate(-90)'>accuracy</text>"
    )
    listed = "; ".join(
        f"{group.name}: {group.accuracy:.2f} of {group.count:,}" for group in summary.bins
    )
    return (
        f"<svg class='chart reliability' viewBox='0 0 {side + margin + 10} {side + 50}' role='img' "
        f"aria-label='Reliability diagram, accuracy by confidence. {html.escape(listed)}'>"
        f"{''.join(parts)}</svg>"
    )
