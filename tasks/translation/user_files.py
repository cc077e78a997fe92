"""User files of sentence pairs: two text files aligned by line, or tables with two columns."""

from __future__ import annotations

from pathlib import Path

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.own import OwnData, files_of, is_pattern, split_files
from tasks.common.data.tables import EXTENSIONS, expect_columns, open_table
from tasks.common.data.text_files import read_text, split_lines
from tasks.common.data.user_files import SPLIT_NAMES, is_hidden, split_paths
from tasks.common.errors import UserError, warn_once

Files = tuple[Path, Path]
# A pair of aligned text files, or tables with a column for each language.
Parallel = Files | list[str]


def _inferred(path: str) -> dict[str, object]:
    """Returns the extensions of two text files as default languages; {} for other paths."""
    names = split_paths(path)
    suffixes = [Path(name).suffix.lstrip(".") for name in names]
    if len(names) != 2 or len(set(suffixes)) != 2 or any(_is_table(name) for name in names):
        return {}
    return {"source": suffixes[0], "target": suffixes[1]}


OWN_DATA = OwnData(
    "a folder with train.SOURCE and train.TARGET, two aligned files such as corpus.en,corpus.fr, "
    "or a table with a column for each language",
    {"text": "source", "label": "target", "group": "group_column"},
    inferred=_inferred,
)


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in EXTENSIONS


def find(path: str, source: str, target: str) -> dict[str, Parallel]:
    """Finds the files of each split.

    Args:
      path: a folder with STEM.SOURCE and STEM.TARGET, such as train.en and train.de; two files of
        the training split, separated by a comma; a table; or a glob pattern of tables. Three
        tables, folders or stems of files, separated by commas, are train, validation and test.
      source: extension of the files in the source language, or its column in tables.
      target: extension of the files in the target language, or its column in tables.

    Raises:
      UserError: there is no training split, a file has no counterpart in the other language, or two
        pairs of files denote the same split.
    """
    names = split_paths(path)
    if len(names) == 2 and all(names) and not any(map(_is_table, names)):
        return {"train": (Path(names[0]).expanduser(), Path(names[1]).expanduser())}
    given = split_files(path)
    if len(given) == 1 and Path(path).expanduser().is_dir():
        return _in_folder(path, source, target)
    found: dict[str, Parallel] = {}
    for split, name in given.items():
        if is_pattern(name) or _is_table(name):
            found[split] = files_of(name)
            continue
        folder = Path(name).expanduser()
        # In the folder of a split, the two files may have any common stem.
        stems = [folder]
        if folder.is_dir():
            stems = [folder / file.stem for file in sorted(folder.glob(f"*.{source}"))]
        pairs = [(Path(f"{stem}.{source}"), Path(f"{stem}.{target}")) for stem in stems]
        pairs = [pair for pair in pairs if all(file.is_file() for file in pair)]
        if len(pairs) != 1:
            raise UserError(
                f"--data: got {name!r}, expected a table, a folder with train.{source} and "
                f"train.{target}, two files such as {name}.{source},{name}.{target}, or one of "
                f"these for each split; --text and --label set the extensions"
            )
        found[split] = pairs[0]
    return found


def _in_folder(path: str, source: str, target: str) -> dict[str, Parallel]:
    folder, found = Path(path).expanduser(), {}
    for split, stems in SPLIT_NAMES.items():
        for stem in stems:
            pair = folder / f"{stem}.{source}", folder / f"{stem}.{target}"
            there = [file.is_file() for file in pair]
            if any(there) and not all(there):
                raise UserError(
                    f"{pair[there[0]]}: is missing, but {pair[not there[0]].name} exists; add "
                    "the file with the translations, or set --text and --label to the languages of "
                    "the files"
                )
            if all(there) and split in found:
                raise UserError(
                    f"{path}: {found[split][0].name!r} and {pair[0].name!r} both denote the "
                    f"{split} split; keep one of them"
                )
            if all(there):
                found[split] = pair
    if "train" not in found:
        files = [file for stem in SPLIT_NAMES["train"] for file in folder.glob(f"{stem}.*")]
        others = sorted({file.suffix.lstrip(".") for file in files})
        remedy = "add both files"
        if len(others) > 1:
            remedy = f"set --text and --label to two of the extensions {', '.join(others)}"
        raise UserError(f"{path}: has no train.{source} and train.{target}; {remedy}")
    _say_left_out(folder, {file for pair in found.values() for file in pair})
    return found


def read_labeled(path: str, source: str, target: str) -> tuple[list[str], list[str], list[str]]:
    """Reads the sentence pairs of one split for an evaluation; see `read_pairs`.

    Args:
      path: two files separated by a comma, a folder with test.SOURCE and test.TARGET, or a table
        with the columns SOURCE and TARGET.
      source, target: languages of the run.

    Raises:
      UserError: as for `read_pairs`, or a column or file is missing.
    """
    names = split_paths(path)
    if len(names) == 2 and all(names):
        return read_pairs((Path(names[0]).expanduser(), Path(names[1]).expanduser()))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return read_pairs((folder / f"test.{source}", folder / f"test.{target}"))
    if len(names) > 1 or folder.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{path}: got one file, expected two files separated by a comma, a folder with "
            f"test.{source} and test.{target}, or a table with the columns {source} and {target}"
        )
    table = open_table(path, (source, target))
    expect_columns(table, (source, target))
    sources, targets, ids = [], [], []
    for line, cells in table.select((source, target)):
        where = f"{path}: line {line}"
        pair = [
            " ".join(text_value(cell, where, column).split())
            for cell, column in zip(cells, (source, target), strict=True)
        ]
        for cell, column in zip(pair, (source, target), strict=True):
            if not cell:
                raise UserError(f"{where}: {column!r} is empty")
        sources.append(pair[0])
        targets.append(pair[1])
        ids.append(f"{folder.name}:{line}")
    return sources, targets, ids


def _say_left_out(folder: Path, used: set[Path]) -> None:
    others = sorted(file.name for file in set(folder.iterdir()) - used)
    others = [name for name in others if not is_hidden(name)]
    if others:
        warn_once(
            f"{folder}: {len(others)} entries are left out, such as {others[0]}; files of a split "
            "are named train, validation or test, with the language as extension"
        )


def read_parallel(
    files: Parallel, source: str, target: str, group: str = ""
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Reads the sentence pairs of two aligned text files, or of tables.

    Args:
      files: files of one split, as `find` returns them.
      source, target: columns of tables.
      group: column of tables with the group of each pair; "" for none.

    Returns:
      Sources; targets; ids of the pairs, which are file name and line; and groups of the pairs, an
      empty list without `group`.

    Raises:
      UserError: a file cannot be read, or no pair is left.
    """
    if isinstance(files, tuple):
        if group:
            raise UserError(
                f"--group: got {group!r}, but {files[0]} has no columns; give a table with columns "
                f"of both languages and of the groups"
            )
        return *read_pairs(files), []
    keys = {source: "text", target: "label"} | ({group: "group"} if group else {})
    sources, targets, ids, groups = [], [], [], []
    for file in files:
        empty: list[int] = []
        count = 0
        for line, row in open_table(file, list(keys)).select(list(keys), keys=keys):
            where, count = f"{file}: line {line}", count + 1
            cells = dict(zip(keys, row, strict=True))
            texts = [" ".join(text_value(cells[x], where, x).split()) for x in (source, target)]
            if not all(texts):
                empty.append(line)
                continue
            sources.append(texts[0])
            targets.append(texts[1])
            ids.append(f"{Path(file).name}:{line}")
            if group:
                groups.append(label_value(cells[group], where, group))
        if empty:
            warn_once(
                f"{file}: {len(empty)} of {count} pairs with an empty side are left out, the first "
                f"is line {empty[0]}"
            )
    if not sources:
        raise UserError(f"{files[0]}: got no sentence pair, expected a row with both languages")
    return sources, targets, ids, groups


def read_pairs(files: Files) -> tuple[list[str], list[str], list[str]]:
    """Reads the sentence pairs of two aligned text files.

    Lines are stripped. Pairs with an empty source or target are omitted; a warning gives their
    number.

    Returns:
      Sources, targets, and ids of the pairs, which are file name and line.

    Raises:
      UserError: a file is missing or not UTF-8, the numbers of lines differ, or no pair is left.
    """
    source, target = (_lines(file) for file in files)
    if len(source) != len(target):
        raise UserError(
            f"{files[1]}: got {len(target)} lines, expected {len(source)} as in {files[0]}; put "
            "the translation of each line on the same line"
        )
    kept = [i for i in range(len(source)) if source[i] and target[i]]
    if not kept:
        raise UserError(
            f"{files[0]}: got no sentence pair, expected at least one line with text in both files"
        )
    if dropped := len(source) - len(kept):
        first = next(i for i in range(len(source)) if not (source[i] and target[i]))
        warn_once(
            f"{files[0]}: {dropped} of {len(source)} pairs with an empty side are left out, the "
            f"first is line {first + 1}"
        )
    ids = [f"{files[0].name}:{i + 1}" for i in kept]
    return [source[i] for i in kept], [target[i] for i in kept], ids


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in split_lines(read_text(file))]
