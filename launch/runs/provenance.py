"""Record of the data that a run was trained on, and comparison with the present data.

Before training, `data.json` is written to the run directory. It contains the task's fingerprint,
the hash of each part of the data and the number of examples of each split. `assets.json` contains
labels and tokenizer. A run is not resumed, evaluated or replayed if either file differs from the
present data. Run directories of earlier versions have no data.json: only their assets are compared,
and no data.json is added, since it would describe data that were never compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.engine.writers import read_json, write_json
from tasks.common.data import digests
from tasks.common.errors import UserError
from tasks.task import SPLITS, Task

DATA = "data.json"
ASSETS = "assets.json"
# Tolerances of assets, because sums of floats differ between processors in the last digits, and
# assets are rounded to 5 decimals.
_RELATIVE, _ABSOLUTE = 1e-5, 2e-5
# Assets that error messages name first. Other assets are derived from the data, and messages name
# them only if nothing else differs.
_NAMES = ("labels", "names", "tokenizer")
# Parts of the data that the assets contain too.
_IN_ASSETS = {"class names", "tokenizer", "channels"}


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a task's data, for comparison with the data of a run.

    Attributes:
      assets: labels and tokenizer, as JSON values.
      data: content of data.json.
    """

    assets: Mapping[str, Any]
    data: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task) -> Description:
        """Computes the description of the data of a task."""
        data = {
            "fingerprint": task.fingerprint,
            "parts": dict(task.fingerprints),
            "examples": {split: len(task.examples(split)) for split in SPLITS},
        }
        return cls(json.loads(json.dumps(task.assets())), data)

    def write(self, folder: Path) -> None:
        """Writes assets.json and data.json."""
        write_json(folder / ASSETS, self.assets)
        write_json(folder / DATA, self.data)

    def check(self, folder: Path, remedy: str) -> None:
        """Raises if the data differ from the data that the run was trained on.

        Args:
          folder: run directory.
          remedy: advice appended to the error message.

        Raises:
          UserError: labels, tokenizer or data differ, or a file of the run is missing or damaged.
        """
        found = _differing(saved_assets(folder), self.assets)
        if not (folder / DATA).exists():
            print(
                f"{folder}: has no {DATA} (written by an earlier version); only labels and "
                f"tokenizer are compared",
                file=sys.stderr,
            )
        else:
            saved = read_json(folder / DATA)
            parts = saved.get("parts") if isinstance(saved, dict) else None
            if not isinstance(parts, dict) or "fingerprint" not in saved:
                raise UserError(
                    f"{folder / DATA}: expected a JSON object with parts and fingerprint; restore "
                    "the file"
                )
            changed = digests.differing(parts, self.data["parts"])
            if not changed and saved["fingerprint"] != self.data["fingerprint"]:
                changed = ["data"]
            if changed:
                found = [name for name in found if name in _NAMES] + [
                    name for name in changed if not found or name not in _IN_ASSETS
                ]
        if found:
            raise UserError(
                f"--workdir={folder}: {', '.join(found)} differ from those that this run was "
                f"trained on; {remedy}"
            )


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in {**saved, **now} if not _equal(saved.get(key), now.get(key))]


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, float) or isinstance(right, float):
        numbers = all(isinstance(side, int | float) for side in (left, right))
        return numbers and math.isclose(left, right, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


def saved_assets(folder: Path) -> dict[str, Any]:
    """Reads assets.json of a run directory; see `Processor.assets`.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = folder / ASSETS
    if not path.exists():
        raise UserError(f"{path}: is missing; restore the file, or train in another --workdir")
    assets = read_json(path)
    if not isinstance(assets, dict):
        raise UserError(f"{path}: expected a JSON object, the assets of the run; restore the file")
    if "encoder" in assets:
        # Key used by earlier versions.
        assets["tokenizer"] = assets.pop("encoder")
    return assets
