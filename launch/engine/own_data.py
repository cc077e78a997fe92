"""User data of an experiment: converts --data and the flags of columns to config values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from launch.engine import config as configs
from tasks.common.data.own import COLUMNS
from tasks.common.errors import UserError

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def with_own_data(
    values: Mapping[str, Any], data: Data | None, columns: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the nested mapping of an experiment, changed to use the user data in `data`.

    See `changes` for the arguments and errors.
    """
    return configs.replaced(values, changes(values, data, columns))


def changes(
    values: Mapping[str, Any], data: Data | None, columns: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Converts --data and the flags of columns to config values; returns these by dotted key.

    Args:
      values: nested mapping of an experiment.
      data: file, folder or glob pattern, or several of them for the splits; None to keep the data
        of `values`.
      columns: names of columns by flag, such as {"text": "review"}.

    Raises:
      UserError: the task takes no user data or no such column, or the paths cannot be assigned to
        splits.
    """
    columns = dict(columns or {})
    for name in columns:
        if name not in COLUMNS:
            raise UserError(
                f"columns: got {name!r}{configs.did_you_mean(name, COLUMNS)}, expected one of "
                f"{', '.join(COLUMNS)}"
            )
    if data is None and not columns:
        return {}
    task, own = values["task"], configs.task_class(values["task"]).own_data
    flag = "data" if data is not None else next(iter(columns))
    if isinstance(own, str):
        raise UserError(f"--{flag}: {task} takes no data of yours, because {own}; remove the flag")
    text: str | None = None
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
    elif data is not None:
        text = ",".join(os.fspath(path) for path in data)
    found = own.changes(task, text, columns)
    return {f"data.{key}": value for key, value in found.items()}


def check_columns(values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Raises if columns are given for a built-in data set.

    Args:
      values: nested mapping of an experiment with all its changes.
      columns: names of columns by flag.

    Raises:
      UserError: columns are given without user data.
    """
    own = configs.task_class(values["task"]).own_data
    if not columns or isinstance(own, str):
        return
    data = values["data"]
    if data.get(own.path) is None and ":" not in str(data.get("name")):
        flag = next(iter(columns))
        raise UserError(
            f"--{flag}: names a column of your data, but the config has the data set "
            f"{data.get('name')}; add --data=PATH, or remove the flag"
        )
