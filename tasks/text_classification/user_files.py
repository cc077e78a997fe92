"""Reading of labeled texts from user files: CSV, TSV or JSON lines."""

from __future__ import annotations

from pathlib import Path

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.tables import expect_columns, open_table


def read_labelled(
    name: str, text_column: str, label_column: str, trained: bool = False
) -> tuple[list[str], list[str], list[str]]:
    """Reads texts, labels and ids (file name and line) of a file.

    Args:
      name: path of the file.
      text_column, label_column: names of two columns, or keys of JSON objects.
      trained: whether the columns are those of a trained run, which no config key can change.

    Raises:
      UserError: the file cannot be read, is malformed or lacks a column, or a row lacks text or
        label; the message names the line.
    """
    columns = (text_column, label_column)
    texts, labels, ids = [], [], []
    keys = {text_column: "config.data.text_column", label_column: "config.data.label_column"}
    table = open_table(name, columns)
    if trained:
        expect_columns(table, columns)
    for line, (text, label) in table.select(columns, keys=keys):
        where = f"{name}: line {line}"
        texts.append(text_value(text, where, text_column))
        labels.append(label_value(label, where, label_column))
        ids.append(f"{Path(name).name}:{line}")
    return texts, labels, ids
