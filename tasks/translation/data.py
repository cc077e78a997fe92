"""Sentence pairs in three splits: built-in data sets, or user files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.common.configs import known_names
from tasks.common.data import builders, digests
from tasks.common.data.held_out import HeldOutConfig, expect_groups_apart
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary, check_splits
from tasks.common.data.user_files import results_name, split_paths, warn_shared
from tasks.common.text.config import LOSSY
from tasks.common.text.tokenizer import PAD, TextConfig, Tokenizer
from tasks.translation.datasets import DATA_SETS
from tasks.translation.user_files import find, read_parallel


def _subwords() -> TextConfig:
    return TextConfig(tokenizer="bpe", vocabulary_size=10_000, max_length=64)


@dataclass(frozen=True)
class DataConfig(HeldOutConfig):
    """Config of the data set, the languages and the tokenizer.

    Attributes:
      name: name of a built-in data set. If `path` is set, the name under which results are
        stored; by default own_<path>.
      source: language of the source, as a two-letter code or, for user files, the extension of the
        files or the column of tables.
      target: language of the target.
      path: user files, in one of three forms: a folder with train.SOURCE and train.TARGET, and
        optionally the same for validation (or valid, val, dev) and test; two files, separated by a
        comma; tables with the columns SOURCE and TARGET. A missing split is a tenth of the training
        split, selected by the hash of the source sentence.
      text: config of the tokenizer, which is fitted on both languages. `max_length` applies to
        source and target separately: longer pairs are omitted from the training split, and
        truncated in the other splits. With `lower_case`, outputs and references are in lower case.
      For the other attributes see `HeldOutConfig`; `group_column` is a column of tables, and
      sentence pairs have no classes.
    """

    name: known_names(*DATA_SETS) = "multi30k"
    source: str = "en"
    target: str = "de"
    path: str | None = None
    text: TextConfig = field(default_factory=_subwords)

    def __post_init__(self):
        super().__post_init__()
        for name in ("source", "target"):
            self.expect(name, bool(getattr(self, name)), "a language")
        self.expect("target", self.source != self.target, "another language than source")
        self.text.expect_defaults(LOSSY, "because output tokens are decoded to texts")
        first = None if self.path is None else split_paths(self.path)[0]
        name = results_name(self.name, DATA_SETS, first, "; path takes your own files")
        object.__setattr__(self, "name", name)
        if self.path is not None:
            return
        languages = DATA_SETS[self.name].languages
        for name in ("source", "target"):
            known = getattr(self, name) in languages
            self.expect(name, known, f"one of {', '.join(languages)} for {self.name}")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs of one split.

    Attributes:
      sources: source sentences.
      targets: target sentences, the translations of `sources`.
      ids: origin of each pair, such as file name and line.
    """

    sources: list[str]
    targets: list[str]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.sources)

    @functools.cache  # noqa: B019 - the pairs live as long as the run
    def encoded(self, tokenizer: Tokenizer) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the token ids of sources and of targets."""
        return tokenizer.encode_batch(self.sources), tokenizer.encode_batch(self.targets)

    def joined(self) -> list[str]:
        """Returns the source and the target of each pair, joined to one text."""
        return [f"{x}\n{y}" for x, y in zip(self.sources, self.targets, strict=True)]

    def only(self, chosen: Sequence[int]) -> Pairs:
        """Returns the pairs with the indices `chosen`."""
        columns = (getattr(self, column.name) for column in dataclasses.fields(self))
        return Pairs(*([column[i] for i in chosen] for column in columns))


@dataclass(frozen=True)
class TranslationData(digests.Fingerprinted):
    """A data set of sentence pairs.

    Attributes:
      name: name of the data set.
      splits: sentence pairs by split.
    """

    name: str
    splits: Mapping[str, Pairs]

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        return digests.of_splits(
            self.splits, lambda pairs: {"sources": pairs.sources, "targets": pairs.targets}
        )


def load(config: DataConfig, paths: Paths) -> TranslationData:
    """Reads a data set; a built-in data set is prepared first if necessary.

    Raises:
      UserError: a file or source cannot be used.
    """
    if config.path is not None:
        languages = config.source, config.target
        files = find(config.path, *languages)
        read, groups = {}, {}
        for split, pair in files.items():
            *columns, groups[split] = read_parallel(pair, *languages, config.group_column)
            read[split] = Pairs(*columns)
        if config.group_column:
            expect_groups_apart(config.path, groups)
        named = {
            split: dict(zip(pairs.joined(), pairs.ids, strict=True))
            for split, pairs in read.items()
        }
        warn_shared(config.path, named, "pairs")
        name = str(files["train"][0])
        splits = _with_all_splits(config, read, groups["train"], name)
        check_splits(name, {split: SplitSummary(len(pairs)) for split, pairs in splits.items()})
        return TranslationData(config.name, splits)
    definition = DATA_SETS[config.name].definition
    splits = {}
    for name, rows in builders.read_splits(definition, paths):
        columns = (
            [row[key].decode() for row in rows] for key in (config.source, config.target, "id")
        )
        splits[name] = Pairs(*columns)
    return TranslationData(config.name, splits)


def _with_all_splits(
    config: DataConfig, read: dict[str, Pairs], groups: Sequence[str], name: str
) -> dict[str, Pairs]:
    """Creates missing splits from training pairs; pairs of equal sources are in the same split."""
    train = read["train"]
    remedy = "give --data=TRAIN,VALIDATION,TEST"
    parts = config.hold_out(
        train.sources, list(read), name, remedy, "sources", groups=groups or None
    )
    return read | {split: train.only(chosen) for split, chosen in parts.items()}


class PairExamples:
    """Pairs of token ids, each with an end token, for `tasks.common.data.pipeline`.

    Attributes:
      padded: padding value of each field.
      lengths: lengths by field, end tokens included.
    """

    def __init__(
        self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray] | None, end: int
    ):
        """Initializes the examples.

        Args:
          sources: token ids of each source, without an end token.
          targets: token ids of each target, without an end token; None for no targets.
          end: id of the end token.
        """
        self._fields = {"source": sources} | ({} if targets is None else {"target": targets})
        self.padded = dict.fromkeys(self._fields, PAD)
        self.lengths = {
            name: np.array([len(ids) + 1 for ids in rows], np.int32)
            for name, rows in self._fields.items()
        }
        self._end = np.int32(end)

    def __len__(self) -> int:
        return len(self._fields["source"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.append(rows[index], self._end) for name, rows in self._fields.items()}
