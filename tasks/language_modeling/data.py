"""Corpora: built-in texts, training texts of labeled data sets, and user files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.common.configs import LATER, at_least, known_names
from tasks.common.data import builders, digests
from tasks.common.data.deduplication import near_duplicates
from tasks.common.data.held_out import HeldOutConfig, expect_groups_apart
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS
from tasks.common.data.text_files import read_text, split_lines
from tasks.common.data.user_files import TextFilesConfig, warn_shared
from tasks.common.datasets.labelled_texts import DEFINITIONS, shared_with
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.language_modeling.corpora import CORPORA
from tasks.language_modeling.user_files import read_lines, read_rows, texts_of


def _characters() -> TextConfig:
    return TextConfig(tokenizer="character", lower_case=False, min_count=1)


@dataclass(frozen=True)
class DataConfig(HeldOutConfig, TextFilesConfig):
    """Config of the texts and their conversion to token sequences.

    Attributes:
      name: "tiny_shakespeare" or "janeausten", which are running texts, or a built-in labeled data
        set of separate texts; see `TextFilesConfig`.
      train_file, validation_file, test_file: a file, a folder or a glob pattern of text files in
        UTF-8, or of tables if `text_column` is set. A missing split is a tenth of the training
        text. If the training text is running text, missing validation and test splits are its last
        tenths, in this order. Separate texts are split by hash.
      lines: whether each line of the user files is a separate text.
      text_column: column of the texts in user files that are tables, whose rows are separate texts;
        empty for plain text.
      length: number of tokens of an example, including reserved tokens. Longer texts continue in
        the next example.
      text: config of the tokenizer; its max_length has no effect.
      For the other attributes see `HeldOutConfig`; texts have no classes.
    """

    name: known_names(*CORPORA, *DEFINITIONS) = "tiny_shakespeare"
    lines: bool = False
    length: at_least(4) = 64
    text: TextConfig = field(default_factory=_characters)
    text_column: str = field(default="", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        self.set_results_name((*CORPORA, *DEFINITIONS), "; train_file takes user files")
        separable = self.train_file is not None or not self.lines
        self.expect("train_file", separable, "a file, because lines is True")
        tables = self.train_file is not None or not self.text_column
        self.expect("train_file", tables, "a table, because text_column is set")
        self.expect(
            "lines", not (self.lines and self.text_column), "False, because text_column is set"
        )
        grouped = bool(self.text_column) or not self.group_column
        self.expect("group_column", grouped, "no column, because text_column is not set")
        self.expect("stratify", not self.stratify, "False, because texts have no classes")
        names = ("ngrams", "character_ngrams", "unique", "max_length")
        self.text.expect_defaults(names, "because language models need all tokens in order")


@dataclass(frozen=True)
class Corpus(digests.Fingerprinted):
    """Texts in three splits.

    Attributes:
      name: name of the data set in the config.
      splits: texts of train, validation and test.
      running: whether a split is one running text instead of separate texts.
    """

    name: str
    splits: Mapping[str, list[str]]
    running: bool

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        found = digests.of_splits(self.splits, lambda texts: {"texts": texts})
        return {**found, "kind of text": digests.of_rows([self.running])}


def load(config: DataConfig, paths: Paths) -> Corpus:
    """Reads the texts of a config; built-in data are prepared first if necessary.

    A training text of a labeled data set is removed if it is a near duplicate of a held-out text.
    Held-out texts are the validation and test texts of this data set, and of other data sets with
    the same origin. A classifier that is fine-tuned on any of these data sets is then tested on
    unseen texts.

    Raises:
      UserError: a file or source cannot be read.
    """
    if config.train_file is not None:
        return _user_data(config)
    if config.name in CORPORA:
        return Corpus(config.name, _texts(CORPORA[config.name], paths), running=True)
    splits = _texts(DEFINITIONS[config.name], paths)
    for other in sorted({config.name, *shared_with(config.name)}):
        held_out = splits if other == config.name else _texts(DEFINITIONS[other], paths)
        seen = near_duplicates(held_out["validation"] + held_out["test"], splits["train"])
        splits["train"] = [text for text, s in zip(splits["train"], seen, strict=True) if not s]
    return Corpus(config.name, splits, running=False)


def _texts(definition: builders.DatasetDefinition, paths: Paths) -> dict[str, list[str]]:
    return {
        name: [row["text"].decode() for row in rows]
        for name, rows in builders.read_splits(definition, paths)
    }


def read_labeled(file: str, running: bool, text_column: str = "") -> list[str]:
    """Reads the texts of a file for an evaluation: one running text, or one text per line.

    Args:
      file: text file; a table if `text_column` is given.
      running: whether the texts of the run are running text.
      text_column: name of the column with the texts, from the config of the run; "" for plain text.

    Raises:
      UserError: the file cannot be read, or has no text.
    """
    if text_column:
        return read_rows(file, text_column)[0]
    text = read_text(file).replace("\r\n", "\n")
    texts = [text] if running else [line for line in split_lines(text) if line.strip()]
    if not text.strip():
        raise UserError(f"{file}: the file has no text")
    return texts


def _user_data(config: DataConfig) -> Corpus:
    remedy = "give --data=TRAIN,VALIDATION,TEST"
    read: dict[str, list[str]] = {}
    named: dict[str, dict[str, str]] = {}
    groups: dict[str, list[str]] = {}
    for split in SPLITS:
        if (name := getattr(config, f"{split}_file")) is None:
            continue
        if config.text_column:
            read[split], named[split], groups[split] = read_rows(
                name, config.text_column, config.group_column
            )
        elif config.lines:
            read[split], named[split] = read_lines(name)
        else:
            texts = [read_text(file).replace("\r\n", "\n") for file in texts_of(name)]
            read[split] = ["\n".join(texts)]
    if config.lines or config.text_column:
        kind = "texts" if config.text_column else "lines"
        warn_shared(config.train_file, named, kind)
        grouped = bool(config.group_column)
        if grouped:
            expect_groups_apart(config.train_file, groups)
        train = read["train"]
        of_rows = groups["train"] if grouped else None
        parts = config.hold_out(train, list(read), config.train_file, remedy, kind, groups=of_rows)
        read |= {split: [train[i] for i in chosen] for split, chosen in parts.items()}
        return Corpus(config.name, read, running=False)
    read |= _from_the_end(read["train"], [split for split in SPLITS if split not in read])
    for split in SPLITS:
        if not any(read[split]):
            raise UserError(
                f"{config.train_file}: the text is too short to split, its {split} split would "
                f"be empty; {remedy}"
            )
    return Corpus(config.name, read, running=True)


def _from_the_end(train: list[str], missing: list[str]) -> dict[str, list[str]]:
    """Splits off the last tenths of a text, one for each missing split."""
    (text,) = train
    tenth = len(text) // 10
    starts = [len(text) - tenth * (len(missing) - index) for index in range(len(missing))]
    ends = [*starts[1:], len(text)]
    tails = zip(missing, starts, ends, strict=True)
    parts = {split: [text[start:end]] for split, start, end in tails}
    return {"train": [text[: starts[0]] if starts else text], **parts}
