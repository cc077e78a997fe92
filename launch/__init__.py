"""Commands of the project, and their Python API.

    import launch

    run = launch.train("text_classification:sst2", "runs/sst2")
    run.predict(["a gripping, funny film"])

docs/PYTHON.md describes the API. The commands are run as `python -m launch.<command>`; `--help`
lists the flags.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Imports for editors and type checkers; a test compares them with _EXPORTS.
    from launch.api import Compared as Compared
    from launch.api import compare as compare
    from launch.api import config as config
    from launch.api import load as load
    from launch.api import train as train
    from launch.engine.config import Experiment as Experiment
    from launch.runs.explained import Explanations as Explanations
    from launch.runs.explained import show as show
    from launch.runs.loaded import AttentionWeights as AttentionWeights
    from launch.runs.loaded import Metrics as Metrics
    from launch.runs.loaded import Run as Run
    from tasks.common.errors import UserError as UserError

# name -> module, imported on first use, so that `import launch` does not import JAX.
_EXPORTS = {
    "AttentionWeights": "launch.runs.loaded",
    "Compared": "launch.api",
    "Experiment": "launch.engine.config",
    "Explanations": "launch.runs.explained",
    "Metrics": "launch.runs.loaded",
    "Run": "launch.runs.loaded",
    "UserError": "tasks.common.errors",
    "compare": "launch.api",
    "config": "launch.api",
    "load": "launch.api",
    "show": "launch.runs.explained",
    "train": "launch.api",
}

__all__ = [*_EXPORTS]  # pyright: ignore


class _Package(types.ModuleType):
    """The package `launch`, in which the functions of the API take precedence over submodules.

    When a submodule is imported, Python assigns it to an attribute of the package, under the name
    of the submodule. The submodule launch/train.py would thus replace the function `launch.train`.
    This class ignores such assignments, so `launch.train` and `from launch import train` are always
    the function. `importlib.import_module("launch.train")` returns the submodule, and
    `python -m launch.train` runs it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _EXPORTS or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'launch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
