"""Reading of labeled texts from user files: CSV, TSV or JSON lines."""

from __future__ import annotations

from pathlib import Path

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.own import OwnData, files_of
from tasks.common.data.tables import expect_columns, open_table

OWN_DATA = OwnData(
    "a table of texts and classes (CSV, TSV or JSON lines), a folder of tables or a pattern",
    {"text": "text_column", "label": "label_column", "group": "group_column"},
    path="train_file",
    held_out=("validation_file", "test_file"),
)


def read_labelled(
    name: str, text_column: str, label_column: str, group_column: str = "", trained: bool = False
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Reads labeled texts, and optionally their groups, from files.

    Args:
      name: path of the file; or a folder or glob pattern of files, see
        `tasks.common.data.own.files_of`.
      text_column, label_column: names of two columns, or keys of JSON objects.
      group_column: name of a third column; empty for no groups.
      trained: whether the columns are those of a trained run. Flags cannot change such columns, so
        the message for a missing column asks to rename a column of the file.

    Returns:
      Texts; labels; ids, which are file name and line of each text; and groups, an empty list
      without `group_column`.

    Raises:
      UserError: a file cannot be read, is malformed or lacks a column, or a row lacks text, label
        or group; the message names the line.
    """
    columns = [text_column, label_column, *[group_column] * bool(group_column)]
    texts, labels, ids, groups = [], [], [], []
    keys = {text_column: "text", label_column: "label", group_column: "group"}
    for file in files_of(name):
        table = open_table(file, columns)
        if trained:
            expect_columns(table, columns)
        for line, (text, label, *group) in table.select(columns, keys=keys):
            where = f"{file}: line {line}"
            texts.append(text_value(text, where, text_column, may_be_empty=False))
            labels.append(label_value(label, where, label_column))
            groups += [label_value(each, where, group_column) for each in group]
            ids.append(f"{Path(file).name}:{line}")
    return texts, labels, ids, groups
