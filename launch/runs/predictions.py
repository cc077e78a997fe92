"""The file predictions-<split>.csv of a run directory: one row for each example of a split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from launch.engine.answers import cell
from tasks.task import ExamplePrediction

COLUMNS = ("id", *ExamplePrediction._fields, "score")


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns the records of `Task.predictions` as CSV with a header.

    Texts are written as they are, numbers, lists and objects as JSON, and None as an empty cell.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([cell(row[column]) for column in COLUMNS] for row in rows)
    return buffer.getvalue()
