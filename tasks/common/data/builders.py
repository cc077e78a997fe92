"""Built-in data sets as TFDS builders, in the array_record format, without TensorFlow.

A `DatasetDefinition` describes the features, the source files and a generator of the splits; one
TFDS builder class serves all definitions. `load` returns a split with random access.
"""

from __future__ import annotations

import contextlib
import functools
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
import numpy as np

from tasks.common.checksums import file_sums, sealed, unsealed
from tasks.common.data.fetchers import short
from tasks.common.data.paths import Paths
from tasks.common.data.sources import Source, fetch
from tasks.common.data.splits import SPLITS
from tasks.common.errors import UserError

FILE_FORMAT = "array_record"
CHECKSUMS = "checksums.json"

Examples = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class DatasetDefinition:
    """A built-in data set.

    Attributes:
      name: lower-case name with underscores; also the name of the folder under data_dir.
      version: "major.minor.patch"; incremented whenever the examples change.
      features: function that returns the TFDS features of an example by name. It is a function,
        because importing TFDS is slow.
      sources: downloaded files that `generate` reads.
      generate: function that takes the path of each source by its name, and returns the examples of
        each split, in their final order.
      counts: expected number of examples by split; any other number is an error.
      description: content of the data set and definition of its splits.
      license: license of the data.
    """

    name: str
    version: str
    features: Callable[[], Mapping[str, Any]]
    sources: tuple[Source, ...]
    generate: Callable[[Mapping[str, Path]], Mapping[str, Examples]]
    counts: Mapping[str, int] = field(default_factory=dict)
    description: str = ""
    license: str = ""

    def __post_init__(self):
        _definitions[self.name] = self


_definitions: dict[str, DatasetDefinition] = {}


def definition_of(name: str) -> DatasetDefinition | None:
    """Returns the built-in data set with the given name; None if no imported module defines it."""
    return _definitions.get(name)


def features_of(**kinds: Any) -> Callable[[], Mapping[str, Any]]:
    """Returns a function for `DatasetDefinition.features`, given the types of the features.

    Args:
      **kinds: type of each feature by name: `str` for a text, `int` for an int32, a list of class
        names for a label, or (shape, dtype) for an array.
    """

    def feature(kind: Any) -> Any:
        from tensorflow_datasets import features

        if kind is str:
            return features.Text()
        if kind is int:
            return features.Scalar(dtype=np.int32)
        if isinstance(kind, list):
            return features.ClassLabel(names=kind)
        shape, dtype = kind
        return features.Tensor(shape=shape, dtype=dtype)

    return lambda: {name: feature(kind) for name, kind in kinds.items()}


def folder_of(definition: DatasetDefinition, paths: Paths) -> Path:
    """Returns the folder of a prepared data set."""
    return paths.data_dir / definition.name / definition.version


def is_prepared(definition: DatasetDefinition, paths: Paths) -> bool:
    """Returns True if data_dir contains the prepared data set, complete and undamaged.

    Raises:
      UserError: the data set is prepared in a format without random access.
    """
    folder = folder_of(definition, paths)
    return folder.is_dir() and find_damage(folder) is None


def find_damage(folder: Path) -> str | None:
    """Checks the files of a prepared folder.

    Returns:
      A description of the first damage found; None if the folder is undamaged.

    Raises:
      UserError: the folder is prepared in a format other than array_record.
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
            f"{folder} is prepared as {got}, which has no random access; remove that folder or "
            f"set another --data_dir, then prepare the data set as {FILE_FORMAT}"
        )
    for split in splits:
        lengths = [int(length) for length in split["shardLengths"]]
        for shard, length in enumerate(lengths):
            name = f"{info['name']}-{split['name']}.{FILE_FORMAT}-{shard:05d}-of-{len(lengths):05d}"
            try:
                reader = array_record_module.ArrayRecordReader(str(folder / name))
                records = reader.num_records()
                reader.close()
            except Exception as error:  # such as RuntimeError and ValueError
                return f"{name} cannot be read ({short(error)})"
            if records != length:
                return f"{name} has {records} examples, expected {length}"
    return _changed_file(folder)


def _changed_file(folder: Path) -> str | None:
    """Compares the files of a prepared folder with their stored checksums.

    Folders that were prepared by TFDS, or by an earlier version of this project, have no
    checksums.

    Returns:
      A description of the first damage found; None if there is no damage, or the folder has no
      checksums.
    """
    if not (folder / CHECKSUMS).exists():
        return None
    try:
        text = (folder / CHECKSUMS).read_text(encoding="utf-8")
        sums = unsealed(json.loads(text))
        stats = {name: (folder / name).stat() for name in sums}
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} or a file that it names is missing or damaged ({short(error)})"
    return _verified(
        folder, text, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats.values())
    )


@functools.lru_cache(maxsize=16)
def _verified(folder: Path, sums: str, stats: tuple[tuple[int, int], ...]) -> str | None:
    """Compares the checksums of files with those in `sums`, and describes the first difference.

    The result is cached. The cache key includes `stats`, the sizes and times of the files, so that
    files that have changed are compared again.
    """
    del stats
    for name, expected in json.loads(sums)["content"].items():
        if file_sums(folder / name) != expected:
            return f"{name} has changed since it was prepared"
    return None


def prepare(definition: DatasetDefinition, paths: Paths, *, quiet: bool = False) -> None:
    """Prepares a data set in data_dir, unless it is prepared already.

    An incomplete or damaged folder is prepared again. If several processes need the data set, one
    of them prepares it, while a lock makes the others wait.

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
                    f"expected {expected} according to the definition"
                )
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        found = sealed({name: file_sums(folder / name) for name in names})
        (folder / CHECKSUMS).write_text(json.dumps(found), encoding="utf-8")
        seconds = time.monotonic() - start
        _say(quiet, f" {sum(counts.values()):,} examples in {seconds:.1f} s\n")


def load(definition: DatasetDefinition, split: str, paths: Paths) -> Sequence[Mapping[str, Any]]:
    """Returns the examples of a split, after preparing the data set if necessary.

    The result s has random access by `len(s)`, `s[i]` and `s.__getitems__(indices)`. Text features
    are bytes.

    Raises:
      UserError: see `prepare`.
      KeyError: the data set does not have this split.
    """
    prepare(definition, paths)
    return open_folder(folder_of(definition, paths), split)


def read_splits(
    definition: DatasetDefinition, paths: Paths
) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Yields the name of each split, and a list of the examples that `load` returns for it."""
    for split in SPLITS:
        yield split, read_all(load(definition, split, paths))


def read_all(source: Any) -> list[Mapping[str, Any]]:
    """Returns a list of all examples of a split.

    Examples whose features are only texts and class labels are parsed here. This takes less than
    half the time of the parser of TFDS, which supports all types of features.

    Args:
      source: the result of `load`.
    """
    from tensorflow_datasets import features
    from tensorflow_datasets.proto import tf_example_pb2

    kinds = {features.Text: "bytes_list", features.ClassLabel: "int64_list"}
    fields = {name: kinds.get(type(kind)) for name, kind in source.dataset_info.features.items()}
    indices = range(len(source))
    if None in fields.values():
        return list(source.__getitems__(indices))
    read = []
    for record in source.data_source.__getitems__(indices):
        found = tf_example_pb2.Example.FromString(record).features.feature
        read.append({name: getattr(found[name], kind).value[0] for name, kind in fields.items()})
    return read


def open_folder(folder: Path, split: str) -> Sequence[Mapping[str, Any]]:
    """Returns a split of a prepared folder, without the definition of the data set.

    Raises:
      KeyError: the data set does not have this split.
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
            raise NotImplementedError("the generators were already returned by _split_generators")

    return Builder(data_dir=str(paths.data_dir), file_format=FILE_FORMAT)


def _download_and_prepare(builder: Any, paths: Paths) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints lines about unknown sizes
        builder.download_and_prepare(
            download_dir=str(paths.downloads),
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )


def _lock(folder: Path, paths: Paths) -> filelock.FileLock:
    """Returns a lock, which one process holds while it prepares the data set."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(
            f"cannot write to {paths.data_dir} ({short(error)}); set another directory with "
            f"--data_dir or ATTENTION_DATA_DIR"
        ) from error
    return filelock.FileLock(folder / ".lock")
