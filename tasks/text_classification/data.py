"""Labeled texts in three splits: built-in data sets, the TFDS catalog, user files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.common.configs import known_names
from tasks.common.data import builders, catalog, digests
from tasks.common.data.held_out import HeldOutConfig, expect_groups_apart
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary, alike, check_splits, count_classes
from tasks.common.data.user_files import TextFilesConfig, warn_shared
from tasks.common.datasets.labelled_texts import DEFINITIONS
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.text_classification.user_files import read_labelled


@dataclass(frozen=True)
class DataConfig(HeldOutConfig, TextFilesConfig):
    """Config of the texts and their tokenizer.

    Attributes:
      name: name of a built-in data set, or tfds:NAME for a data set of the TFDS catalog; see
        `TextFilesConfig`.
      train_file, validation_file, test_file: CSV, TSV or JSONL files; each is a file, a folder of
        files or a glob pattern. A missing split is a tenth of the training split (see `stratify`).
        Texts that differ only in case or punctuation are in the same split.
      text_column: column (CSV, TSV), key (JSONL) or feature (TFDS) that contains the text.
      label_column: column, key or feature that contains the class.
      text: config of the tokenizer.
      For the other attributes see `HeldOutConfig`.
    """

    name: known_names(*DEFINITIONS, "tfds:NAME") = "movie_reviews"
    text_column: str = "text"
    label_column: str = "label"
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self):
        super().__post_init__()
        known = [*DEFINITIONS, *[self.name] * self.name.startswith(catalog.PREFIX)]
        rest = ", and tfds:NAME of the TFDS catalog; train_file takes a file of yours"
        self.set_results_name(known, rest)
        for column in ("text_column", "label_column"):
            self.expect(column, bool(getattr(self, column)), "the name of a column")
        apart = self.group_column != self.text_column
        self.expect("group_column", apart, "a column other than text_column")
        self.expect(
            "group_column",
            not self.group_column or self.train_file is not None,
            "no column, because train_file is not set",
        )
        distinct = self.text_column != self.label_column
        self.expect("label_column", distinct, "a column other than text_column")


@dataclass(frozen=True)
class Split:
    """Texts of one split.

    Attributes:
      texts: texts as read.
      labels: int32 [n], indices of the classes.
      ids: origin of each text, such as file name and line.
    """

    texts: list[str]
    labels: np.ndarray
    ids: list[str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextData(digests.Fingerprinted):
    """A data set of labeled texts, with its splits and class names.

    Attributes:
      name: name of the data set in the config.
      splits: train, validation and test.
      label_names: class names by index.
    """

    name: str
    splits: Mapping[str, Split]
    label_names: list[str]

    def summary(self) -> dict[str, SplitSummary]:
        """Counts the texts of each split by class."""
        found = {}
        for name in SPLITS:
            classes = count_classes(self.splits[name].labels, self.label_names)
            found[name] = SplitSummary(len(self.splits[name]), classes, least_classes=2)
        return found

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        columns = digests.of_splits(self.splits, lambda x: {"texts": x.texts, "labels": x.labels})
        return {"class names": digests.of_rows(self.label_names), **columns}


def load(config: DataConfig, paths: Paths) -> TextData:
    """Reads a data set; a built-in data set is prepared first if necessary.

    Args:
      config: config of the data.
      paths: folders of data and caches.

    Raises:
      UserError: a file, source or catalog entry cannot be read, there is only one class, or a split
        has a class that the training split lacks.
    """
    if config.train_file is not None:
        return _user_data(config)
    if config.name.startswith(catalog.PREFIX):
        return _catalog(config, paths)
    return _builtin(config, paths)


def _builtin(config: DataConfig, paths: Paths) -> TextData:
    definition = DEFINITIONS[config.name]
    for column, expected in (("text_column", "text"), ("label_column", "label")):
        if getattr(config, column) != expected:
            raise UserError(
                f"config.data.{column}: got {getattr(config, column)!r}, expected {expected!r} "
                f"for {config.name}"
            )
    splits = {
        name: Split(
            [row["text"].decode() for row in rows],
            np.array([row["label"] for row in rows], np.int32),
            [row["id"].decode() for row in rows],
        )
        for name, rows in builders.read_splits(definition, paths)
    }
    names = definition.features()["label"].names
    return TextData(config.name, splits, list(names))


def _user_data(config: DataConfig) -> TextData:
    files = {
        "train": config.train_file,
        "validation": config.validation_file,
        "test": config.test_file,
    }
    columns = (config.text_column, config.label_column, config.group_column)
    read = {
        split: _Rows(*read_labelled(file, *columns))
        for split, file in files.items()
        if file is not None
    }
    named = {split: dict(zip(rows.texts, rows.ids, strict=True)) for split, rows in read.items()}
    warn_shared(config.train_file, named, "texts")
    if config.group_column:
        groups = {split: rows.groups for split, rows in read.items()}
        expect_groups_apart(config.train_file, groups)
    return _assemble(config, read, where=files)


def _catalog(config: DataConfig, paths: Paths) -> TextData:
    data = catalog.TfdsCatalog(config.name, paths)
    features = data.features
    for column in ("text_column", "label_column"):
        if getattr(config, column) not in features:
            raise UserError(
                f"config.data.{column}: got {getattr(config, column)!r}, expected a feature of "
                f"{config.name}: {', '.join(features)}"
            )
    read = {}
    if "test" in data.splits:
        wanted = {"train": "train", "validation": "validation", "test": "test"}
    else:  # competitions do not publish test labels, so their validation split is used for testing
        wanted = {"train": "train", "test": "validation"}
    names = getattr(features[config.label_column], "names", None)
    for split, given in wanted.items():
        if split != "train" and given not in data.splits:
            continue
        source = data.load(given)
        rows = source.__getitems__(range(len(source)))
        read[split] = _Rows(
            [_as_text(config, row[config.text_column]) for row in rows],
            [_as_label(config, given, row[config.label_column], names) for row in rows],
            [f"{given}:{index}" for index in range(len(rows))],
        )
    return _assemble(config, read, where=dict.fromkeys(SPLITS, config.name))


def _as_text(config: DataConfig, value: object) -> str:
    if not isinstance(value, bytes):
        raise UserError(
            f"config.data.text_column: {config.text_column!r} of {config.name} has "
            f"{type(value).__name__}, expected text; set it to a feature with text"
        )
    return value.decode("utf-8", "replace")


def _as_label(config: DataConfig, split: str, value: object, names: Sequence[str] | None) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.integer):
        raise UserError(
            f"config.data.label_column: {config.label_column!r} of {config.name} has {value!r}, "
            "expected a class; set it to a feature with texts or integers"
        )
    if names is None:
        return str(int(value))
    if value < 0:
        raise UserError(
            f"{config.name}: split {split!r} has no labels (its class is {value}); use a data set "
            "with labels in all its splits"
        )
    return names[value]


@dataclass(frozen=True)
class _Rows:
    texts: list[str]
    labels: list[str]
    ids: list[str]
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def only(self, chosen: Sequence[int]) -> _Rows:
        columns = (column for column in dataclasses.astuple(self) if column)
        return _Rows(*([column[i] for i in chosen] for column in columns))


def _assemble(
    config: DataConfig, read: dict[str, _Rows], where: Mapping[str, str | None]
) -> TextData:
    """Creates missing splits from the training split, and converts labels to class indices."""
    read = _with_all_splits(config, read, where["train"])
    names = sorted(set(read["train"].labels))
    number = {label: index for index, label in enumerate(names)}
    splits = {}
    for split in SPLITS:
        rows = read[split]
        for label, identity in zip(rows.labels, rows.ids, strict=True):
            if label not in number:
                raise UserError(
                    f"{where[split] or where['train']}: the {split} split has the class {label!r} "
                    f"({identity}), expected a class of the train split: "
                    f"{', '.join(names[:20])}{alike(label, names)}"
                )
        labels = np.array([number[label] for label in rows.labels], np.int32)
        splits[split] = Split(rows.texts, labels, rows.ids)
    data = TextData(config.name, splits, names)
    check_splits(str(where["train"]), data.summary())
    return data


def _with_all_splits(
    config: DataConfig, read: dict[str, _Rows], train_name: str
) -> dict[str, _Rows]:
    train = read["train"]
    remedy = "add examples, or give --data=TRAIN,VALIDATION,TEST"
    parts = config.hold_out(
        train.texts,
        list(read),
        train_name,
        remedy,
        labels=train.labels,
        groups=train.groups or None,
    )
    return read | {split: train.only(chosen) for split, chosen in parts.items()}
