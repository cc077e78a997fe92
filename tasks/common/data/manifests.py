"""Data sets of user files with transcripts, with their splits and tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from tasks.common.configs import LATER, Config, NonNegativeInt, at_least
from tasks.common.data.held_out import expect_groups_apart
from tasks.common.data.manifest_rows import COLUMNS, ManifestColumns, ManifestRow, find
from tasks.common.data.own import OwnData
from tasks.common.data.splits import SplitSummary, check_splits
from tasks.common.data.transcribed import TranscriptionExamples, encode_units
from tasks.common.data.user_files import (
    HELD_OUT,
    read_each,
    results_name,
    split_by_group,
    split_by_hash,
    warn_shared,
)
from tasks.common.errors import UserError, warn_once
from tasks.common.text.tokenizer import UNKNOWN, TextConfig, Tokenizer
from tasks.task import SPLITS

# Values of `split_by` that are not columns.
BY_TEXT, BY_FILE = "text", "file"


def own_transcribed(flag: str, group: str, kind: str) -> OwnData:
    """Returns the `OwnData` of a task whose user files have transcripts.

    Args:
      flag: flag that sets the column of paths, "audio" or "image".
      group: flag that sets the column of groups, "speaker" or "group".
      kind: plural noun for the files in messages.
    """
    return OwnData(
        f"a manifest of {kind} and texts (CSV, TSV or JSON lines), a folder of {kind} with a text "
        f"file beside each, or a glob pattern of such files",
        {flag: "path_column", "text": "text_column"} | dict.fromkeys((group, "group"), "split_by"),
    )


@dataclasses.dataclass(frozen=True)
class TranscribedConfig(Config):
    """Base class of the configs of files with transcripts.

    Class attributes:
      built_in: names of the built-in data sets.
      unit: plural noun for user files in messages, such as "recordings".

    Attributes:
      name: name of a built-in data set. If `path` is set, the name under which results are stored,
        by default own_<name of path>.
      path: user files, in one of three forms. A manifest is a table (CSV or TSV) with the columns
        `path_column` and `text_column`, or a file of JSON objects with these keys (.jsonl). A
        folder or glob pattern matches files that each have a text file of the same name. Manifests
        of train, validation and test are separated by commas. A missing split takes a tenth of
        the training split; see `split_by`.
      train_size, validation_size, test_size: number of examples in each split of a built-in data
        set that composes strings or lines at random. The test split also has test_size // 4
        examples for each additional test condition, such as longer strings.
      seed: random seed with which a built-in data set composes its examples.
      text: config of the tokenizer, which splits texts into the units that a model outputs: words,
        characters or byte pairs.
      split_by: property of user files that decides which files stay in the same split when a
        missing split is created: "text" (files with equal texts), "file" (equal files), or a column
        of the manifest, such as speaker (files with equal values). For a column, the largest group
        is in the training split. With "text", a few distinct texts are not enough to fill all
        splits.
      path_column: column of a manifest with the paths of files, relative to the manifest.
      text_column: column of a manifest with the texts of the files.
      skip_broken: whether to skip user files that cannot be used, with a warning.
    """

    built_in: ClassVar[Sequence[str]]
    unit: ClassVar[str]

    name: str = ""
    path: str | None = None
    train_size: at_least(4) = 8000
    validation_size: at_least(4) = 300
    test_size: at_least(4) = 600
    seed: NonNegativeInt = 0
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    split_by: str = dataclasses.field(default=BY_TEXT, metadata=LATER)
    path_column: str = dataclasses.field(default=COLUMNS[0], metadata=LATER)
    text_column: str = dataclasses.field(default=COLUMNS[1], metadata=LATER)
    skip_broken: bool = False

    def __post_init__(self):
        super().__post_init__()
        rest = f"; for your own {self.unit}, set config.data.path"
        object.__setattr__(self, "name", results_name(self.name, self.built_in, self.path, rest))
        named = bool(self.split_by.strip())
        self.expect("split_by", named, "text, file or the name of a column")
        for column in ("path_column", "text_column"):
            self.expect(column, bool(getattr(self, column).strip()), "the name of a column")
        apart = self.path_column != self.text_column
        self.expect("text_column", apart, "a column other than path_column")
        by_text = self.path is not None or self.split_by == BY_TEXT
        self.expect("split_by", by_text, f"{BY_TEXT!r}, because path is not set")

    def user_examples(
        self, read: Callable[[Path], np.ndarray], field: str
    ) -> tuple[dict[str, TranscriptionExamples], Tokenizer]:
        """Calls the function `user_examples` with the values of this config.

        Args:
          read: function that reads a file, and raises UserError if it cannot be used.
          field: name of the array in an example.

        Returns:
          The examples by split, and the tokenizer fitted on the training texts.
        """
        columns = ManifestColumns(self.path_column, self.text_column, *self._flags())
        given = (self.path, read, self.text, field, self.skip_broken, self.split_by, self.unit)
        return user_examples(*given, columns)

    def _flags(self) -> tuple[str, str]:
        """Returns the flags that set the columns of paths and of groups, for messages."""
        return ("audio", "speaker") if self.unit == "recordings" else ("image", "group")


def user_examples(
    path: str,
    read: Callable[[Path], np.ndarray],
    text: TextConfig,
    field: str,
    skip_broken: bool,
    split_by: str = BY_TEXT,
    unit: str = "files",
    columns: ManifestColumns | None = None,
) -> tuple[dict[str, TranscriptionExamples], Tokenizer]:
    """Reads user files with transcripts in three splits, and fits a tokenizer on training texts.

    Args:
      path: path as for `find`. Each missing split takes a tenth of the training split.
      read: function that reads a file, and raises UserError if it cannot be used.
      text: config of the tokenizer.
      field: name of the array in an example.
      skip_broken: whether to skip files that cannot be used, with a message.
      split_by: property that decides which files stay in the same split: "text" (files with equal
        texts), "file" (equal files), or a column of the manifest (files with equal values).
      unit: plural noun for the examples in messages.
      columns: columns of the manifests; None for the columns "path" and "text".

    Returns:
      The examples by split, and the tokenizer.

    Raises:
      UserError: a file or text cannot be used; the message names file and line.
    """
    group = None if split_by in (BY_TEXT, BY_FILE) else split_by
    lines = find(path, dataclasses.replace(columns or ManifestColumns(), group=group))
    _name_repeated(path, lines)
    if len(lines) < len(SPLITS):
        rest = _held_out(path, lines, split_by)
        lines |= {split: [lines["train"][i] for i in rows] for split, rows in rest.items()}
    elif group is None and split_by != BY_TEXT:
        raise UserError(
            f"config.data.split_by: got {split_by!r}, but {path} has all splits; remove the setting"
        )
    if group is not None:
        groups = {split: [line.group for line in given] for split, given in lines.items()}
        expect_groups_apart(path, groups)

    def named(line: ManifestRow) -> np.ndarray:
        try:
            return read(line.file)
        except UserError as error:
            raise UserError(f"{line.where}: {error}") from None

    kept, arrays = {}, {}
    for split in SPLITS:
        arrays[split], numbers = read_each(lines[split], named, skip_broken=skip_broken)
        kept[split] = [lines[split][number] for number in numbers]
        if not numbers:
            raise UserError(
                f"{path}: none of the files of the {split} split can be used; repair or add files"
            )
    texts = {split: [line.text for line in given] for split, given in kept.items()}
    check_splits(path, summarize(texts, unit))
    tokenizer = Tokenizer.fit(texts["train"], text)
    for split in HELD_OUT:
        _expect_known(kept[split], tokenizer, texts["train"])
    splits = {}
    for split in SPLITS:
        _expect_whole(kept[split], tokenizer)
        splits[split] = TranscriptionExamples.of_arrays(
            field, arrays[split], tokenizer, texts[split]
        )
    return splits, tokenizer


def summarize(texts: Mapping[str, Sequence[str]], unit: str) -> dict[str, SplitSummary]:
    """Counts the examples of each split. Examples without a text are counted as ignored.

    Args:
      texts: texts of each split.
      unit: plural noun for the examples, such as "recordings".
    """
    found = {}
    for split, given in texts.items():
        count = sum(map(bool, given))
        found[split] = SplitSummary(
            len(given),
            {"with a text": count} if count < len(given) else None,
            unit=unit,
            ignored=len(given) - count,
            ignored_as="without a text",
        )
    return found


def _held_out(
    path: str, lines: Mapping[str, Sequence[ManifestRow]], split_by: str
) -> Mapping[str, list[int]]:
    train, given = lines["train"], list(lines)
    manifests = "give --data=TRAIN,VALIDATION,TEST"
    other = "set config.data.split_by to file, or --speaker or --group to a column of the manifest"
    if split_by == BY_TEXT:
        remedy = f"{manifests}, or {other}"
        return split_by_hash([line.text for line in train], given, path, remedy)
    if split_by == BY_FILE:
        contents = [_content_hash(line) for line in train]
        return split_by_hash(contents, given, path, manifests, "files")
    groups = [line.group for line in train]
    return split_by_group(groups, given, path, f"config.data.split_by={split_by}", manifests)


def _content_hash(line: ManifestRow) -> str:
    try:
        return hashlib.sha256(line.file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{line.where}: {line.file}: cannot be read ({error.strerror})") from None


def _name_repeated(path: str, lines: Mapping[str, Sequence[ManifestRow]]) -> None:
    """Warns about files that are listed twice, in the same or in different manifests."""
    for given in lines.values():
        first: dict[Path, ManifestRow] = {}
        twice = [
            (line, first[line.file])
            for line in given
            if first.setdefault(line.file, line) is not line
        ]
        if twice:
            line, before = twice[0]
            differ = sum(line.text != other.text for line, other in twice)
            texts = f", {differ} of them with different texts" * bool(differ)
            warn_once(
                f"{line.where}: {line.file.name} is also listed at {before.where}; "
                f"{len(twice)} files are listed twice{texts}"
            )
    named = {
        split: {str(line.file): f"{line.file.name} ({line.where})" for line in given}
        for split, given in lines.items()
    }
    warn_shared(path, named)


def _expect_whole(lines: Sequence[ManifestRow], tokenizer: Tokenizer) -> None:
    """Raises a UserError if the tokenizer would truncate a text."""
    limit = tokenizer.config.max_length
    longer = tokenizer.with_max_length(limit + 1)
    for line, units in zip(lines, longer.encode_batch([x.text for x in lines]), strict=True):
        if len(units) > limit:
            raise UserError(
                f"{line.where}: got a text of more than {limit} units; raise "
                f"config.data.text.max_length"
            )


def _expect_known(lines: Sequence[ManifestRow], tokenizer: Tokenizer, train: Sequence[str]) -> None:
    """Raises a UserError if a text has units that do not occur in the training texts.

    No model could output these units.
    """
    for line, units in zip(lines, encode_units(tokenizer, [x.text for x in lines]), strict=True):
        if UNKNOWN in units:
            known = {letter for text in train for letter in text.lower()}
            unknown = sorted({x for x in line.text.lower() if x not in known and not x.isspace()})
            what = f"characters {''.join(unknown)!r}" if unknown else "words"
            raise UserError(
                f"{line.where}: has {what} that the training texts lack; add files with them to "
                f"the training split, or set --config.data.text.tokenizer=bpe"
            )


def read_lines(
    path: str, lines: Sequence[ManifestRow], read: Callable[[Path], np.ndarray]
) -> list[np.ndarray]:
    """Reads all files of a manifest, and returns an array for each.

    Args:
      path: manifest or folder, for the message.
      lines: rows of the manifest.
      read: function that reads a file, and raises UserError if it cannot be used.

    Raises:
      UserError: files cannot be used; the message names the first one and their number.
    """
    arrays, broken = [], []
    for line in lines:
        try:
            arrays.append(read(line.file))
        except UserError as error:
            broken.append(f"{line.where}: {error}")
    if broken:
        raise UserError(
            f"{path}: {len(broken)} of {len(lines)} files cannot be used, such as {broken[0]}"
        )
    return arrays


def warn_unknown(path: str, lines: Sequence[ManifestRow], tokenizer: Tokenizer) -> None:
    """Warns about texts with units that the tokenizer does not know.

    Args:
      path: manifest or folder, for the message.
      lines: rows of the manifest.
      tokenizer: tokenizer of a trained run.
    """
    units = encode_units(tokenizer, [line.text for line in lines])
    unknown = [line for line, ids in zip(lines, units, strict=True) if UNKNOWN in ids]
    if unknown:
        warn_once(
            f"{path}: {len(unknown)} of {len(lines)} texts have words or characters that the run "
            f"does not know, such as {unknown[0].text!r} ({unknown[0].where}); they count as errors"
        )
