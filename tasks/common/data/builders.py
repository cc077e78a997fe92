"""Built-in data sets as TFDS builders, in the array_record format, without TensorFlow.

A `DatasetDefinition` has the features, the sources and a generator of the splits; one builder class
serves all of them. `load` returns a split with random access.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from tasks.common.data.fetchers import short
from tasks.common.data.paths import Paths
from tasks.common.data.sources import Source, fetch
from tasks.common.data.splits import SPLITS
from tasks.common.errors import UserError

FILE_FORMAT = "array_record"

Examples = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class DatasetDefinition:
    """A built-in data set.

    Attributes:
      name: in lower case with underscores; also the folder under data_dir.
      version: "major.minor.patch"; raised whenever the examples change.
      features: returns the TFDS features of an example by name; a function because importing TFDS
        is slow.
      sources: the files that the generator reads.
      generate: generate(files) -> {split: examples in their final order}; `files` are the paths
        of the sources by name.
      counts: expected number of examples by split; a deviation stops the preparation.
      description: content of the data set and rule of its splits.
      license: of the data.
    """

    name: str
    version: str
    features: Callable[[], Mapping[str, Any]]
    sources: tuple[Source, ...]
    generate: Callable[[Mapping[str, Path]], Mapping[str, Examples]]
    counts: Mapping[str, int] = field(default_factory=dict)
    description: str = ""
    license: str = ""


def folder_of(definition: DatasetDefinition, paths: Paths) -> Path:
    """Returns the folder of the prepared data set."""
    return paths.data_dir / definition.name / definition.version


def is_prepared(definition: DatasetDefinition, paths: Paths) -> bool:
    """Returns whether data_dir has the prepared data set, complete and undamaged.

    Raises:
      UserError: it is prepared in a format without random access.
    """
    folder = folder_of(definition, paths)
    return folder.is_dir() and find_damage(folder) is None


def find_damage(folder: Path) -> str | None:
    """Returns a description of the damage of a prepared folder, or None.

    Raises:
      UserError: the folder is prepared in another format than array_record.
    """
    from array_record.python import array_record_module

    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        splits = info["splits"]
        (folder / "features.json").read_bytes()
    except (OSError, ValueError, KeyError):
        return "dataset_info.json or features.json is missing or damaged"
    if (got := info.get("fileFormat", "tfrecord")) != FILE_FORMAT:
        raise UserError(
            f"{folder} is prepared as {got}, which has no random access; remove that folder, or "
            f"set another --data_dir, and prepare it as {FILE_FORMAT}"
        )
    for split in splits:
        lengths = [int(length) for length in split["shardLengths"]]
        for shard, length in enumerate(lengths):
            name = f"{info['name']}-{split['name']}.{FILE_FORMAT}-{shard:05d}-of-{len(lengths):05d}"
            try:
                reader = array_record_module.ArrayRecordReader(str(folder / name))
                records = reader.num_records()
                reader.close()
            except Exception as error:  # the reader raises RuntimeError, ValueError and others
                return f"{name} cannot be read ({short(error)})"
            if records != length:
                return f"{name} has {records} of {length} examples"
    return None


def prepare(definition: DatasetDefinition, paths: Paths, *, quiet: bool = False) -> None:
    """Prepares a data set in data_dir unless it is prepared already.

    An incomplete folder is prepared again. A lock excludes other processes.

    Raises:
      UserError: a source cannot be obtained, data_dir cannot be written, or the data set is
        prepared in another format.
    """
    if is_prepared(definition, paths):
        return
    files = {source.name: fetch(source, paths) for source in definition.sources}
    with _lock(paths.data_dir / definition.name, paths):
        if is_prepared(definition, paths):
            return
        folder = folder_of(definition, paths)
        for rest in folder.parent.glob(f"{definition.version}.incomplete*"):
            shutil.rmtree(rest, ignore_errors=True)
        if folder.exists():
            _say(quiet, f"{definition.name}: {find_damage(folder)}; preparing it again\n")
            shutil.rmtree(folder)
        _say(quiet, f"preparing {definition.name} {definition.version} ...")
        start = time.monotonic()
        builder = _builder(definition, paths, files)
        _download_and_prepare(builder, paths)
        counts = {name: split.num_examples for name, split in builder.info.splits.items()}
        for split, expected in definition.counts.items():
            if counts.get(split) != expected:
                shutil.rmtree(folder)
                raise RuntimeError(
                    f"{definition.name}: split {split!r} has {counts.get(split)} examples, "
                    f"the definition says {expected}"
                )
        seconds = time.monotonic() - start
        _say(quiet, f" {sum(counts.values()):,} examples in {seconds:.1f} s\n")


def load(definition: DatasetDefinition, split: str, paths: Paths) -> Sequence[Mapping[str, Any]]:
    """Returns a split with random access: `len(s)`, `s[i]`, `s.__getitems__(indices)`.

    Text features are bytes. The data set is prepared first if necessary.

    Raises:
      UserError: see `prepare`.
      KeyError: the data set has no such split.
    """
    prepare(definition, paths)
    return open_folder(folder_of(definition, paths), split)


def read_splits(
    definition: DatasetDefinition, paths: Paths
) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Yields train, validation and test with all of their examples; see `load`."""
    for split in SPLITS:
        source = load(definition, split, paths)
        yield split, source.__getitems__(range(len(source)))


def open_folder(folder: Path, split: str) -> Sequence[Mapping[str, Any]]:
    """Returns a split of a prepared folder, described by the folder's own metadata.

    Raises:
      KeyError: the data set has no such split.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    if split not in builder.info.splits:
        raise KeyError(split)
    return builder.as_data_source(split=split)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, end="", file=sys.stderr, flush=True)


def _builder(definition: DatasetDefinition, paths: Paths, files: Mapping[str, Path]) -> Any:
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = definition.name
        VERSION = tfds.core.Version(definition.version)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=definition.description or definition.name,
                features=tfds.features.FeaturesDict(dict(definition.features())),
                license=definition.license or None,
                disable_shuffling=True,  # the order of the generator is part of the definition
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {
                split: enumerate(examples) for split, examples in definition.generate(files).items()
            }

        def _generate_examples(self) -> None:
            raise NotImplementedError("_split_generators returns the generators")

    return Builder(data_dir=str(paths.data_dir), file_format=FILE_FORMAT)


def _download_and_prepare(builder: Any, paths: Paths) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints lines about unknown sizes
        builder.download_and_prepare(
            download_dir=str(paths.downloads),
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )


def _lock(folder: Path, paths: Paths) -> filelock.FileLock:
    """Returns a lock with which one process prepares a data set while others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(
            f"cannot write to {paths.data_dir} ({short(error)}); set another folder by "
            "--data_dir or ATTENTION_DATA_DIR"
        ) from error
    return filelock.FileLock(folder / ".lock")
