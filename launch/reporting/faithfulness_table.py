"""Tables of the faithfulness of attributions, from records of `launch.explain --evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.reporting.results import FAITHFULNESS
from launch.reporting.tables import markdown_table

KNOWN = "known_positions"
"""Kind of the record of `benchmarks.known_positions`."""

# Columns of a table: title, key of the record.
_COLUMNS: Sequence[tuple[str, str]] = (
    ("deletion", "deletion"),
    ("insertion", "insertion"),
    ("deletion gain over random", "deletion_gain_over_random"),
    ("insertion gain over random", "insertion_gain_over_random"),
    ("insertion gain over gradient", "insertion_gain_over_gradient"),
    ("rank correlation with random weights", "random_weights"),
    ("with another seed", "agreement"),
    ("seconds", "seconds"),
)


def header(record: Mapping[str, Any]) -> str:
    """Returns a sentence about the examples and the curves of a record."""
    return (
        f"{record['task']}, {record['data']}, {record['experiment']}: {record['examples']:,} "
        f"examples of the {record['split']} split. A deleted position is replaced by "
        f"{record['replacement']}. Curves: {record['quantity']}."
    )


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Returns the table of a record, titles first; columns without a value are left out."""
    methods = record["methods"]
    used = [
        (title, key) for title, key in _COLUMNS if any(key in values for values in methods.values())
    ]
    table = [["method", *(title for title, _ in used)]]
    for name, values in methods.items():
        table.append([name, *(_shown(key, values.get(key)) for _, key in used)])
    return table


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, Sequence):
        return f"{value:g}"
    middle, half = value
    sign = "+" if "gain" in key else ""
    return f"{middle:{sign}.3f} ± {half:.3f}"


def table(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a table in Markdown, after a sentence about its examples."""
    first, *rest = rows(record)
    return [header(record), "", *markdown_table(first, rest)]


def known_table(record: Mapping[str, Any]) -> list[str]:
    """Returns the table of known positions: fraction of right examples by case and method."""
    cases = record["cases"]
    methods = dict.fromkeys(name for case in cases.values() for name in case["methods"])
    shown = [
        [
            name,
            f"`{case['config']}`",
            f"{case['examples']} of {case['inputs']}",
            *(_fraction(case["methods"].get(method)) for method in methods),
        ]
        for name, case in cases.items()
    ]
    return markdown_table(["position", "model", "right outputs", *methods], shown)


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def insert(text: str, root: Path) -> str:
    """Inserts tables between <!-- faithfulness --> and <!-- /faithfulness -->, and known_positions.

    Args:
      text: text of a page.
      root: results directory with the records.

    Raises:
      ValueError: the text lacks these lines.
    """
    paths = sorted((root / FAITHFULNESS).glob("*.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    text = _between(text, FAITHFULNESS, _joined(table(record) for record in records))
    known = root / f"{KNOWN}.json"
    lines = known_table(json.loads(known.read_text(encoding="utf-8"))) if known.exists() else []
    return _between(text, KNOWN, lines)


def _joined(tables: Iterable[list[str]]) -> list[str]:
    found: list[str] = []
    for lines in tables:
        found += [*[""] * bool(found), *lines]
    return found


def _between(text: str, name: str, lines: Sequence[str]) -> str:
    before, first, rest = text.partition(f"<!-- {name} -->\n")
    _, last, after = rest.partition(f"<!-- /{name} -->\n")
    if not first or not last:
        raise ValueError(f"expected the lines <!-- {name} --> and <!-- /{name} -->")
    content = "\n".join(lines)
    return f"{before}{first}\n{content}\n\n{last}{after}"
