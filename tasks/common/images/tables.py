"""Tables of image paths, with a class or mask and optionally a group for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.configs import LATER
from tasks.common.data.cells import label_value, text_value
from tasks.common.data.held_out import HeldOutConfig
from tasks.common.data.tables import EXTENSIONS, open_table
from tasks.common.data.user_files import find_file
from tasks.common.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTableConfig(HeldOutConfig):
    """Config of the columns of user tables that list images.

    Attributes:
      image_column: column with the paths of images, relative to the table.
      label_column: column with the class of each image, or the path of its mask.
      For the other attributes see `HeldOutConfig`.
    """

    image_column: str = dataclasses.field(default="path", metadata=LATER)
    label_column: str = dataclasses.field(default="label", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        for column in ("image_column", "label_column"):
            self.expect(column, bool(getattr(self, column).strip()), "the name of a column")
        distinct = self.image_column != self.label_column
        self.expect("label_column", distinct, "a column other than image_column")
        apart = self.group_column != self.image_column
        self.expect("group_column", apart, "a column other than image_column")


class ImageRow(NamedTuple):
    """A row of a table of images.

    Attributes:
      where: file and line of the row, for messages.
      image: path of the image.
      label: content of the cell with the label.
      group: group of the row; "" without groups.
    """

    where: str
    image: Path
    label: Any
    group: str


def is_table(name: str) -> bool:
    """Returns True for a path with the extension of a table, unless it is a folder."""
    return Path(name).suffix.lower() in EXTENSIONS and not Path(name).expanduser().is_dir()


def image_rows(name: str, config: ImageTableConfig) -> Iterator[ImageRow]:
    """Yields the rows of a table.

    Raises:
      UserError: the table cannot be read or lacks a column, or a row lacks an image or a group.
    """
    keys = {config.image_column: "image", config.label_column: "label"}
    if config.group_column:
        keys.setdefault(config.group_column, "group")
    for line, row in open_table(name, list(keys)).select(list(keys), keys=keys):
        where, cells = f"{name}: line {line}", dict(zip(keys, row, strict=True))
        group = ""
        if config.group_column:
            group = label_value(cells[config.group_column], where, config.group_column)
        image = image_file(name, cells[config.image_column], where, config.image_column)
        yield ImageRow(where, image, cells[config.label_column], group)


def image_file(table: str, cell: Any, where: str, column: str) -> Path:
    """Returns the path of the file that a cell of a table names.

    Args:
      table: path of the table, to whose folder the name is relative.
      cell: content of the cell.
      where: file and line of the cell, for messages.
      column: column of the cell, for messages.

    Raises:
      UserError: the cell is empty or not a text.
    """
    text = text_value(cell, where, column).strip()
    if not text:
        raise UserError(f"{where}: {column!r} is empty, expected the path of an image")
    return find_file(Path(table).expanduser().parent, text)


def expect_no_group(config: HeldOutConfig, name: str) -> None:
    """Checks that no column of groups is set, for images that are not listed in a table.

    Args:
      config: config of the data.
      name: file or folder of the images, for the message.

    Raises:
      UserError: `config` has a `group_column`.
    """
    if config.group_column:
        raise UserError(
            f"--group: got {config.group_column!r}, but {name} has no columns; give a table of "
            f"image paths, labels and groups"
        )
