"""Data sets of the TFDS catalog, named `tfds:NAME`, `tfds:NAME/CONFIG` or `tfds:NAME:VERSION`.

A data set must already be prepared in data_dir as array_record, the only format that TFDS reads
without TensorFlow. It is not prepared automatically, because without a network connection TFDS
takes minutes to fail.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.common.data import builders
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError

PREFIX = "tfds:"

_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.\-+]+))?(?::(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsCatalog:
    """A prepared data set of the TFDS catalog, whose splits have random access.

    Args:
      name: `tfds:NAME`, optionally with /CONFIG and :VERSION.
      paths: directories; the data set is searched in data_dir.

    Raises:
      UserError: the name is unknown; or the data set is damaged, is prepared in a format without
        random access, or is not prepared. In the last case, the message contains the command to
        prepare it.
    """

    def __init__(self, name: str, paths: Paths):
        import tensorflow_datasets as tfds

        self.name = name
        self.folder = find(name, paths)
        if (damage := builders.find_damage(self.folder)) is not None:
            raise UserError(
                f"{name}: {self.folder} is damaged: {damage}; remove that folder and prepare "
                f"the data set again: {command(name, paths)}"
            )
        self._builder = tfds.builder_from_directory(str(self.folder))

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS features of an example by name."""
        return self._builder.info.features

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples by split."""
        return {name: split.num_examples for name, split in self._builder.info.splits.items()}

    def load(self, split: str) -> Sequence[Mapping[str, Any]]:
        """Returns the examples of a split, with random access.

        Raises:
          UserError: the split does not exist; the message lists the existing splits.
        """
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return self._builder.as_data_source(split=split)


def is_prepared(name: str, paths: Paths) -> bool:
    """Returns True if data_dir contains the data set, undamaged and with random access."""
    try:
        return builders.find_damage(find(name, paths)) is None
    except UserError:
        return False


def command(name: str, paths: Paths) -> str:
    """Returns a shell command that prepares a data set of the catalog."""
    bare = name.removeprefix(PREFIX)
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{bare}', data_dir='{paths.data_dir}', "
        f"file_format='{builders.FILE_FORMAT}').download_and_prepare()\""
    )


def find(name: str, paths: Paths) -> Path:
    """Returns the folder of a prepared data set.

    If the name has no version, the newest prepared version is chosen.

    Raises:
      UserError: the name is malformed, unknown or ambiguous, or the data set is not prepared.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if not match:
        raise UserError(
            f"name: got {name!r}, expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION"
        )
    root = paths.data_dir / match["name"]
    if not root.is_dir():
        _known(name, match["name"])
        raise _not_prepared(name, paths)
    if match["config"] is None and not _versions(root):
        configs = sorted(folder.name for folder in root.iterdir() if _versions(folder))
        if len(configs) > 1:
            raise UserError(
                f"{name} has several configs in {root}; name one of them, such as "
                f"{PREFIX}{match['name']}/{configs[0]} (configs: {', '.join(configs)})"
            )
        if configs:
            root = root / configs[0]
    elif match["config"] is not None:
        root = root / match["config"]
    versions = _versions(root)
    if match["version"] is not None:
        versions = [version for version in versions if version == match["version"]]
    if not versions:
        raise _not_prepared(name, paths)
    return root / versions[-1]


def _versions(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = [f.name for f in folder.iterdir() if f.is_dir() and _VERSION.fullmatch(f.name)]
    return sorted(names, key=lambda version: [int(part) for part in version.split(".")])


def _known(given: str, name: str) -> None:
    """Raises a UserError if the catalog of the installed TFDS version lacks a name."""
    import tensorflow_datasets as tfds

    names = tfds.list_builders(with_community_datasets=False)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise UserError(f"unknown data set of the TFDS catalog: {given!r}{hint}")


def _not_prepared(name: str, paths: Paths) -> UserError:
    return UserError(
        f"{name} is not prepared as {builders.FILE_FORMAT} in {paths.data_dir}; prepare it once: "
        f"{command(name, paths)}"
    )
