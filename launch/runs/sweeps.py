"""Sweeps: one experiment for each combination of values of its keys."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

from launch.engine import config as configs
from launch.engine import spaces
from launch.engine.config import Experiment
from launch.engine.spaces import Value

# Maximum length of an experiment name: file names are limited to 255 bytes, including seed and
# hash.
_LONGEST_NAME = 160


def resolve_sweep(base: Experiment, settings: Sequence[str]) -> dict[str, Experiment]:
    """Returns an experiment for each combination of values in `key=a,b,c` settings, by name.

    Without settings the result contains only the base experiment.

    Args:
      base: experiment of the config file.
      settings: values of --set, see `launch.engine.spaces`.

    Raises:
      UserError: a setting is not key=values, or a value is invalid.
    """
    given = spaces.parse_spaces(configs.to_dict(base), settings)
    axes = [[(space.key, value) for value in space.grid()] for space in given]
    found: dict[str, Experiment] = {}
    for combination in itertools.product(*axes):
        name, experiment = with_values(base, dict(combination))
        found[name] = experiment
    return found


def with_values(base: Experiment, values: Mapping[str, Value]) -> tuple[str, Experiment]:
    """Returns the name and the experiment of one combination of values by dotted key.

    Raises:
      UserError: a value is invalid.
    """
    name = ",".join(f"{key.split('.')[-1]}={value.text}" for key, value in values.items())
    changes = {key: value.value for key, value in values.items()}
    if values:
        changes["name"] = _short(re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-"))
    return name or base.name, configs.override(base, changes)


def _short(name: str) -> str:
    """Shortens a name to the limit of file systems, with a hash in place of the removed end."""
    if len(name) <= _LONGEST_NAME:
        return name
    code = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{code}"
