"""Ablations: a base experiment, named deltas and seeds.

`configs/ablations/<name>.py` defines `get_ablation()`, which returns an `Ablation`, or
`get_ablations()`, which returns several by name. Before any training, the config of every delta is
compared with the config of the base: exactly the declared fields must differ.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine import config as configs
from launch.engine import own_data, spaces
from launch.engine import values as typed
from launch.engine.config import Experiment
from tasks.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Delta:
    """One named change to the base.

    Attributes:
      declares: dotted keys of the fields that the delta changes, such as 'model.pooling'.
      overrides: values by dotted key, applied to the base.
      config: config file, optionally with ':argument', that replaces the base before `overrides`.
    """

    declares: Sequence[str]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: str | None = None

    def __post_init__(self):
        _check(self, declares=Sequence, overrides=Mapping, config=str | None)
        if isinstance(self.declares, str):
            raise ValueError(f"declares: got {self.declares!r}, expected a list of keys")


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A base experiment and its deltas.

    Attributes:
      base: config file, optionally with ':argument'.
      deltas: deltas by name.
      overrides: values by dotted key, for the base and every delta.
      base_name: name of the base in the table.
      seeds: number of seeds, counted from 0.
      match: whether the parameter counts are matched, as by --match=parameters.
    """

    base: str
    deltas: Mapping[str, Delta]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base_name: str = "base"
    seeds: int = 3
    match: bool = False

    def __post_init__(self):
        _check(self, base=str, deltas=Mapping, overrides=Mapping, base_name=str)
        _check(self, seeds=int, match=bool)
        for name, delta in self.deltas.items():
            if not isinstance(name, str) or not isinstance(delta, Delta):
                raise ValueError(f"deltas: got {name!r}: {delta!r}, expected a name and a Delta")
        if self.seeds < 1:
            raise ValueError(f"seeds: got {self.seeds}, expected at least 1")


def deltas_of(key: str, values: Mapping[str, Any]) -> dict[str, Delta]:
    """Returns a delta for each value of a key, by the name of the value."""
    return {name: Delta([key], {key: value}) for name, value in values.items()}


def _check(part: Ablation | Delta, **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = getattr(part, name)
        if not isinstance(value, kind):
            expected = getattr(kind, "__name__", str(kind)).lower()
            raise ValueError(f"{name}: got {value!r}, expected {expected}")


def load_ablation(path: str) -> Ablation:
    """Loads the ablation of a file.

    Raises:
      UserError: as for `load_ablations`, or the file has several ablations.
    """
    found = load_ablations(path)
    if len(found) > 1:
        raise UserError(f"{path}: has {len(found)} ablations ({', '.join(found)}), expected one")
    return next(iter(found.values()))


def load_ablations(path: str) -> dict[str, Ablation]:
    """Loads the ablations of a file by name; a single ablation has the name of the file.

    Raises:
      UserError: the file does not exist, raises an exception, or has neither a `get_ablation` that
        returns an `Ablation` nor a `get_ablations` that returns several by name.
    """
    file = path.partition(":")[0]
    module = configs.load_module(path if Path(path).exists() else file)
    several, single = (getattr(module, f"get_ablation{end}", None) for end in ("s", ""))
    if hasattr(module, "get_config") and not (several or single):
        raise UserError(
            f"--config={path}: is the config of one experiment, expected an ablation file such as "
            f"configs/ablations/text_pooling.py; run it with launch.train or launch.sweep"
        )
    if file != path:
        raise UserError(f"--config={path}: an ablation file takes no argument; write {file}")
    found: Any = {}
    with configs.located_error(path):
        if several:
            found = several()
        elif single:
            found = {Path(path).stem: single()}
    if not (
        isinstance(found, Mapping)
        and found
        and all(isinstance(each, Ablation) for each in found.values())
        # The names become names of directories.
        and (not several or all(re.fullmatch(r"\w+", str(name)) for name in found))
    ):
        raise UserError(
            f"{path}: has no get_ablation function that returns an Ablation, and no get_ablations "
            "function that returns several by name"
        )
    return dict(found)


def with_own_data(
    ablation: Ablation, data: own_data.Data | None, columns: Mapping[str, str]
) -> Ablation:
    """Gives user data to the base and all deltas of an ablation.

    Args:
      ablation: an ablation.
      data, columns: as for `launch.engine.own_data.changes`.

    Raises:
      UserError: as for `launch.engine.own_data.changes`, or columns are given without data.
    """
    base = configs.override(configs.load_file(ablation.base), ablation.overrides)
    changes = own_data.changes(configs.to_dict(base), data, columns)
    found = dataclasses.replace(ablation, overrides={**ablation.overrides, **changes})
    if columns:
        own_data.check_columns(configs.to_dict(configs.override(base, changes)), columns)
    return found


def with_overrides(ablation: Ablation, settings: Sequence[str]) -> Ablation:
    """Adds `key=value` settings to the base and all deltas of an ablation.

    Raises:
      UserError: a setting is not key=value, or its value is invalid.
    """
    base = configs.to_dict(configs.override(configs.load_file(ablation.base), ablation.overrides))
    overrides = dict(ablation.overrides)
    for key, text in spaces.keys_and_texts(base, settings):
        overrides[key] = typed.parse(base, key, text)
    return dataclasses.replace(ablation, overrides=overrides)


def resolve_ablation(ablation: Ablation) -> dict[str, Experiment]:
    """Returns the experiments of an ablation by name, the base first.

    Raises:
      UserError: a delta changes an undeclared field or does not change a declared one, or a config
        is invalid.
    """
    base = configs.override(
        configs.load_file(ablation.base), {**ablation.overrides, "name": ablation.base_name}
    )
    found = {ablation.base_name: base}
    for name, delta in ablation.deltas.items():
        if name in found:
            raise UserError(f"delta {name!r} has the name of the base; rename it")
        start = configs.load_file(delta.config) if delta.config else base
        start = configs.override(start, {**delta.overrides, "name": ablation.base_name})
        changed = configs.differences(base, start)
        declares = [configs.current_key(configs.to_dict(start), key) for key in delta.declares]
        for key in changed:
            if key not in declares:
                raise UserError(
                    f"delta {name!r} also changes {key}, which it does not declare; add it to "
                    f"`declares`, or remove the change"
                )
        for key in declares:
            if key not in changed:
                raise UserError(
                    f"delta {name!r} declares {key} but does not change it "
                    f"{configs.did_you_mean(key, changed).strip()}".rstrip()
                )
        found[name] = configs.override(start, {"name": name})
    return found
