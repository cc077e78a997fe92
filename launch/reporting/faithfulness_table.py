"""Tables of the faithfulness of attributions, from records of `launch.explain --evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
        f"{record['replacement']}. Curves show the {record['quantity']}."
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
    lines = [header(record), "", _line(first), "|---" * len(first) + "|"]
    return [*lines, *map(_line, rest)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
