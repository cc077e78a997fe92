"""Reading of unlabeled texts from user files: running text, a text per line, or tables."""

from __future__ import annotations

from pathlib import Path

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.own import OwnData, files_of
from tasks.common.data.tables import EXTENSIONS, open_table
from tasks.common.data.text_files import read_text, split_lines
from tasks.common.data.user_files import split_paths
from tasks.common.errors import warn_once

_TEXTS = (".txt", ".text", ".md")


def _inferred(path: str) -> dict[str, object]:
    """Returns the default of `text_column` if the files are tables, else no defaults."""
    first = split_paths(path)[0]
    folder = Path(first).expanduser()
    if folder.is_dir():
        suffixes = [file.suffix.lower() for file in folder.iterdir()]
        is_table = not any(x in _TEXTS for x in suffixes) and any(x in EXTENSIONS for x in suffixes)
    else:
        is_table = Path(first).suffix.lower() in EXTENSIONS
    return {"text_column": "text"} if is_table else {}


OWN_DATA = OwnData(
    "a text file, a table with a column of texts (CSV, TSV or JSON lines), a folder of them or a "
    "pattern",
    {"text": "text_column", "group": "group_column"},
    path="train_file",
    held_out=("validation_file", "test_file"),
    inferred=_inferred,
)


def texts_of(name: str) -> list[str]:
    """Returns the text files of a path, see `tasks.common.data.own.files_of`."""
    return files_of(name, _TEXTS)


def read_lines(name: str) -> tuple[list[str], dict[str, str]]:
    """Reads the lines of text files. Blank lines are skipped with a warning.

    Args:
      name: path, see `texts_of`.

    Returns:
      The lines; and for each line its origin, such as "line 3", with the name of the file if there
      are several files.

    Raises:
      UserError: a file cannot be read.
    """
    found, named, files = [], {}, texts_of(name)
    for file in files:
        lines = split_lines(read_text(file).replace("\r\n", "\n"))
        where = f"{Path(file).name} " if len(files) > 1 else ""
        kept = [(line, f"{where}line {n}") for n, line in enumerate(lines, 1) if line.strip()]
        found += [line for line, _ in kept]
        named |= dict(kept)
        if blank := len(lines) - len(kept):
            warn_once(f"{file}: {blank} of {len(lines)} lines are blank; they are skipped")
    return found, named


def read_rows(
    name: str, text_column: str, group_column: str = ""
) -> tuple[list[str], dict[str, str], list[str]]:
    """Reads texts and their groups from tables. Rows without text are skipped with a warning.

    Args:
      name: path, see `tasks.common.data.own.files_of`.
      text_column: column of the texts.
      group_column: column of the groups; empty for none.

    Returns:
      The texts; for each text its origin, "FILE:LINE"; and the groups, an empty list without
      `group_column`.

    Raises:
      UserError: a table cannot be read or lacks a column, or a row lacks a group.
    """
    columns = [text_column, *[group_column] * bool(group_column)]
    keys = {text_column: "text", group_column: "group"}
    texts, named, groups = [], {}, []
    for file in files_of(name):
        blank = 0
        for line, (value, *group) in open_table(file, columns).select(columns, keys=keys):
            where = f"{file}: line {line}"
            text = text_value(value, where, text_column)
            if not text.strip():
                blank += 1
                continue
            texts.append(text)
            named[text] = f"{Path(file).name}:{line}"
            groups += [label_value(each, where, group_column) for each in group]
        if blank:
            warn_once(f"{file}: {blank} rows have an empty text; they are skipped")
    return texts, named, groups
