"""Tables of the faithfulness of attributions, from records of `launch.explain --evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.writers import read_json
from launch.reporting import insertion
from launch.reporting.formatting import markdown_table
from launch.reporting.results import FAITHFULNESS

KNOWN = "known_positions"
"""Kind and file name, without extension, of the record of `benchmarks.known_positions`."""

# Columns of a table: the title, and the key of the value in a record.
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
    """Returns the rows of a record's table; the first row has the titles.

    Columns without a value are left out.
    """
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
    """Returns the lines of the table of `benchmarks.known_positions`, in Markdown.

    In each case, one known position of the input determines the output. The table has the fraction
    of examples in which a method finds this position, by case and method.
    """
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
    """Inserts the tables of faithfulness and of known positions between their marker lines.

    The lines are <!-- faithfulness --> and <!-- /faithfulness -->, and <!-- known_positions --> and
    <!-- /known_positions -->.

    Args:
      text: text of a page.
      root: results directory with the records.

    Raises:
      ValueError: the text lacks these lines.
      UserError: the record of known positions is missing or damaged.
    """
    records = map(read_json, sorted((root / FAITHFULNESS).glob("*.json")))
    found = "\n\n".join("\n".join(table(record)) for record in records)
    text = insertion.insert(text, FAITHFULNESS, found)
    known = read_json(root / f"{KNOWN}.json")
    return insertion.insert(text, KNOWN, "\n".join(known_table(known)))
