"""What another run has learned, for a task that starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Pretrained:
    """A finished run.

    Attributes:
      folder: of the run, for messages.
      task: its name.
      data, model: its configs.
      assets: see `Task.assets`.
      params: parameters of its best step, nested dicts of NumPy arrays; keys of lists are strings.
    """

    folder: Path
    task: str
    data: Any
    model: Any
    assets: Mapping[str, Any]
    params: Mapping[str, Any]
