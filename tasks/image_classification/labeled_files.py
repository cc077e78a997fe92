"""Labeled image files of the user: class folders, tables of paths and classes, and patterns."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tasks.common.data.cells import label_value
from tasks.common.data.own import OwnData, files_of, is_pattern, split_files
from tasks.common.data.user_files import SPLIT_NAMES, split_names
from tasks.common.errors import UserError, warn_once
from tasks.common.images.files import SUFFIXES, image_folder, warn_left_out
from tasks.common.images.tables import ImageTableConfig, expect_no_group, image_rows, is_table

OWN_DATA = OwnData(
    "a folder with a folder of images for each class, a table of image paths and classes, or a "
    "pattern such as photos/*/*.jpg",
    {"image": "image_column", "label": "label_column", "group": "group_column"},
)


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files of a split.

    Attributes:
      where: folder or table of the split, for messages.
      paths: paths of the images.
      labels: class name of each image.
      origins: origin of each label, for messages: a class folder, or a table and its line.
      groups: group of each image; empty without groups.
    """

    where: str
    paths: list[Path] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    origins: list[str] = dataclasses.field(default_factory=list)
    groups: list[str] = dataclasses.field(default_factory=list)

    def only(self, kept: Sequence[int]) -> Files:
        """Returns the images with the indices `kept`."""
        columns = (self.paths, self.labels, self.origins, self.groups)
        return Files(self.where, *([x[i] for i in kept] if x else [] for x in columns))


def find(path: str, config: ImageTableConfig, skip_broken: bool) -> dict[str, Files]:
    """Finds the image files of each split, with their classes.

    Args:
      path: see `tasks.image_classification.data.DataConfig`.
      config: names of the columns of tables.
      skip_broken: whether tables may list files that do not exist.

    Raises:
      UserError: a folder or table cannot be used; the message names it.
    """
    given = split_files(path)
    if len(given) == 1 and not is_table(given["train"]) and not is_pattern(given["train"]):
        folders = split_folders(path)
        given = {split: str(folder) for split, folder in folders.items()}
    return {split: _find(name, config, skip_broken) for split, name in given.items()}


def _find(name: str, config: ImageTableConfig, skip_broken: bool) -> Files:
    if is_pattern(name):
        files = files_of(name)
        if not all(is_table(file) for file in files):
            return _by_parent(name, [Path(file) for file in files], config)
        found = Files(name)
        for file in files:
            _add_table(found, file, config, skip_broken)
        return found
    if is_table(name):
        found = Files(name)
        _add_table(found, name, config, skip_broken)
        return found
    expect_no_group(config, name)
    folder, found = Path(name).expanduser(), Files(name)
    for label, paths in image_folder(folder).items():
        found.paths.extend(paths)
        found.labels.extend([label] * len(paths))
        found.origins.extend([str(folder / label)] * len(paths))
    return found


def _by_parent(name: str, paths: Sequence[Path], config: ImageTableConfig) -> Files:
    """Returns the images that match a pattern, with the names of their folders as classes."""
    expect_no_group(config, name)
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(
            f"--data: got the pattern {name!r}, expected matching files that end in one of "
            f"{', '.join(SUFFIXES)}; correct the pattern"
        )
    if others := len(paths) - len(images):
        warn_once(f"{name}: {others} of {len(paths)} files are not images; they are left out")
    labels = [unicodedata.normalize("NFC", path.resolve().parent.name) for path in images]
    return Files(name, images, labels, [str(path.parent) for path in images])


def _add_table(found: Files, name: str, config: ImageTableConfig, skip_broken: bool) -> None:
    for row in image_rows(name, config):
        if not row.image.is_file() and not skip_broken:
            raise UserError(f"{row.where}: no such file: {row.image}")
        found.paths.append(row.image)
        found.labels.append(label_value(row.label, row.where, config.label_column))
        found.origins.append(row.where)
        if config.group_column:
            found.groups.append(row.group)


def split_folders(path: str) -> dict[str, Path]:
    """Returns the folder of each split. If there is no train/CLASS/, `path` itself is "train".

    Raises:
      UserError: the folder does not exist, or two folders denote the same split.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{path}: no such folder; set --data to a folder or a table of images")
    folders = [each for each in root.iterdir() if each.is_dir()]
    divided = [
        folder.name
        for folder in folders
        if folder.name.lower() in SPLIT_NAMES["train"]
        and any(each.is_dir() for each in folder.iterdir())
    ]
    if not divided:
        return {"train": root}
    names = split_names([folder.name for folder in folders], path)
    found = {split: root / name for split, name in names.items()}
    warn_left_out(root, found.values())
    return found
