"""Experiments as frozen dataclasses, built from config files and flags.

A config file's `get_config` returns `experiment(...)`, an `ml_collections.ConfigDict` that flags
override. `resolve` checks every key, type and value and returns an `Experiment`; other modules do
not use ConfigDicts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import hashlib
import importlib
import json
import math
import re
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from launch.engine import keys
from launch.engine.optimizers import OptimizerConfig
from launch.engine.sharding import MeshConfig
from tasks.common.configs import Config, NonNegativeInt, PositiveInt, one_of, within
from tasks.common.data.user_files import UNSET
from tasks.common.errors import UserError

# Fields of models that change how results are computed, but not the results.
_EXECUTION = ("rematerialize", "scan_layers", "loss_chunk_size")
# Fields of `TrainingConfig` that affect the results only if a loss or gradient is not finite.
_ON_FAULTS = ("on_nan", "max_consecutive_skips")


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Config):
    """Number of training steps, batch sizes, and intervals of evaluation and logging.

    Attributes:
      steps: number of optimizer steps.
      batch_size: examples per step, over all devices.
      evaluation_batch_size: examples per step of evaluation.
      evaluate_every: steps between evaluations on the validation split, each followed by a
        checkpoint.
      log_every: steps between log lines of training metrics; must divide evaluate_every.
      patience: evaluations without improvement before training stops; 0 disables it.
      refit: whether to train again on the union of training and validation examples, up to the best
        step of the first training. The first training is stored in the subdirectory `selection`.
      on_nan: reaction to a non-finite loss or gradient: `stop` ends the run with a message, `skip`
        leaves the train state as it was before the step, and counts the step as skipped.
      max_consecutive_skips: consecutive skipped steps after which the run ends with a message.
    """

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    evaluation_batch_size: PositiveInt = 128
    evaluate_every: PositiveInt = 200
    log_every: PositiveInt = 50
    patience: NonNegativeInt = 0
    refit: bool = False
    on_nan: one_of("stop", "skip") = "stop"
    max_consecutive_skips: PositiveInt = 20

    def __post_init__(self):
        super().__post_init__()
        last = min(self.evaluate_every, self.log_every)
        nearest = next(n for n in range(last, 0, -1) if self.evaluate_every % n == 0)
        self.expect(
            "log_every",
            nearest == self.log_every,
            f"a divisor of evaluate_every={self.evaluate_every} such as {nearest}",
        )


@dataclasses.dataclass(frozen=True)
class Experiment(Config):
    """All settings of one training run.

    Attributes:
      task: folder name under tasks/.
      name: name of these settings in results tables.
      seed: random seed of initialization, data order and dropout.
      data: the task's data config.
      model: one of the task's model configs, selected by its `name` field.
      optimizer: optimizer and schedule.
      training: number of steps, batch sizes and intervals.
      mesh: layout of the devices.
    """

    task: str
    name: str
    data: Any
    model: Any
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    seed: within("[0, 2147483648)", "in [0, 2**31)", int) = 0

    def __post_init__(self):
        super().__post_init__()
        valid = re.fullmatch(r"[A-Za-z0-9_.-]+", self.name) is not None
        self.expect("name", valid, "letters, digits, '_', '.' or '-'")
        # Names of run directories consist of this name, seed and hash; file systems allow 255
        # bytes.
        self.expect("name", len(self.name) <= 230, "at most 230 letters")
        last, steps = self.optimizer.last_step, self.training.steps
        if last is not None and steps > last:
            raise ValueError(
                f"training.steps: got {steps}, expected at most {last}, the steps of the warm-up "
                f"and the decay, after which the learning rate is 0; raise optimizer.decay_steps "
                f"or optimizer.final_fraction"
            )


def task_names() -> list[str]:
    """Returns the names of all tasks, which are the folders under tasks/."""
    root = Path(importlib.import_module("tasks").__path__[0])
    return sorted(path.parent.name for path in root.glob("*/task.py"))


def task_class(name: str) -> type:
    """Returns the class `TASK` of tasks/<name>/task.py.

    Raises:
      UserError: no task has this name.
    """
    if name not in task_names():
        raise UserError(
            f"config.task: no task is called {name!r}{did_you_mean(name, task_names())}; "
            f"there are {', '.join(task_names())}"
        )
    return importlib.import_module(f"tasks.{name}.task").TASK


def experiment(**fields: Any):
    """Returns the fields of an `Experiment` as an `ml_collections.ConfigDict`, for config files.

    A field whose value is None becomes a placeholder with the type of the field.
    """
    return _config_dict(Experiment(**fields))


def _config_dict(instance: Any):
    from ml_collections import config_dict

    result = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if is_dataclass(value):
            value = _config_dict(value)
        elif value is None:
            kinds = [
                kind for kind in keys.alternatives(hints[field.name]) if kind is not type(None)
            ]
            value = config_dict.placeholder(typing.get_origin(kinds[0]) or kinds[0])
        result[field.name] = value
    return result


def resolve(config: Mapping[str, Any]) -> Experiment:
    """Converts a nested mapping to an `Experiment`, checking every key, type and value.

    Args:
      config: ConfigDict of a config file with its overrides, or the dict of a run's config.json.

    Raises:
      UserError: a key is unknown (the message suggests the closest), a value is invalid, or the
        files of the data set "own" are not given.
    """
    values: dict[str, Any] = getattr(config, "to_dict", lambda: dict(config))()
    built = _build(Experiment, with_current_keys(values), "config", part_types(values))
    own = task_class(built.task).own_data
    if not isinstance(own, str) and getattr(built.data, own.path, None) == UNSET:
        raise own.missing()
    return built


def with_current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces former names of keys by the current ones in the nested mapping of an experiment."""
    return keys.replace_former(Experiment, values, "config", part_types(values))


def current_key(values: Mapping[str, Any], key: str) -> str:
    """Replaces former names in a dotted key by the current ones.

    Args:
      values: nested mapping of an experiment.
      key: dotted key without the prefix "config.".
    """
    return keys.current_name(Experiment, key, part_types(values))


def part_types(values: Mapping[str, Any]) -> dict[str, type]:
    """Returns the config classes of the groups `data` and `model`.

    They depend on the task and on the name of the model.

    Raises:
      UserError: a required key is missing, or the task or model is unknown.
    """
    for required in ("task", "data", "model"):
        if required not in values:
            raise UserError(f"config: {required!r} is missing")
    task = task_class(values["task"])
    for group in ("data", "model"):
        if not isinstance(values[group], Mapping):
            raise UserError(f"config.{group}: got {values[group]!r}, expected a group of keys")
    model_name = values["model"].get("name")
    if model_name not in task.model_configs:
        raise UserError(
            f"config.model.name: {values['task']} has no model {model_name!r}"
            f"{did_you_mean(str(model_name), task.model_configs)}; "
            f"there are {', '.join(task.model_configs)}"
        )
    return {"data": task.data_config, "model": task.model_configs[model_name]}


def _build(kind: type, values: Mapping[str, Any], path: str, parts: Mapping[str, type]) -> Any:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            raise UserError(f"{path}.{key}: no such key{did_you_mean(key, names)}")
    built = {}
    for key, value in values.items():
        hint = parts.get(key, hints[key])
        built[key] = _convert(hint, value, f"{path}.{key}")
    try:
        return kind(**built)
    except UserError as error:
        raise UserError(f"{path}.{error}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}.{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    for kind in keys.alternatives(hint):
        origin = typing.get_origin(kind) or kind
        if kind is type(None):
            if value is None:
                return None
        elif isinstance(kind, type) and is_dataclass(kind):
            if isinstance(value, kind):
                return value
            if isinstance(value, Mapping):
                return _build(kind, value, path, {})
        elif origin is tuple:
            if isinstance(value, list | tuple):
                inner = typing.get_args(kind)[:1] or (Any,)
                return tuple(_convert(inner[0], item, path) for item in value)
        elif origin is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return _finite(value, path)
        elif origin is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        elif origin is Any or isinstance(value, origin):
            return value
    raise UserError(f"{path}: expected {type_name(hint)}, got {value!r}")


def _finite(value: float, path: str) -> float:
    try:
        if math.isfinite(value):
            return float(value)
    except OverflowError:
        # The integer exceeds the range of floats.
        pass
    raise UserError(f"{path}: got {str(value)[:20]}, expected a finite number")


def type_name(hint: Any) -> str:
    """Returns the name of a type for messages, such as 'int or None'."""
    return " or ".join(
        "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
        for kind in keys.alternatives(hint)
    )


def did_you_mean(name: str, known) -> str:
    """Returns ' (did you mean ...?)' with the closest name in `known`, or '' if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def to_dict(config: Experiment) -> dict[str, Any]:
    """Returns the experiment as the nested dict that is stored in config.json."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to dotted keys."""
    return dict(_leaves(values, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(left: Experiment, right: Experiment) -> list[str]:
    """Returns the dotted keys of the fields in which two experiments differ."""
    left_flat, right_flat = flatten(to_dict(left)), flatten(to_dict(right))
    missing = object()
    return sorted(
        key
        for key in left_flat.keys() | right_flat.keys()
        if left_flat.get(key, missing) != right_flat.get(key, missing)
    )


def override(config: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Returns a checked copy of the experiment with the values of dotted keys replaced.

    Raises:
      UserError: a key is unknown, or a value has the wrong type or is invalid.
    """
    values = to_dict(config)
    changes = {current_key(values, key): value for key, value in changes.items()}
    return resolve(replaced(values, changes))


def replaced(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a nested mapping with the values of dotted keys replaced.

    Raises:
      UserError: a key is unknown; the message suggests the closest.
    """
    values = copy.deepcopy(dict(values))
    for key, value in changes.items():
        *parents, last = key.split(".")
        group = values
        for parent in parents:
            group = group.get(parent) if isinstance(group, dict) else None
        if not isinstance(group, dict) or last not in group:
            raise UserError(f"config.{key}: no such key{did_you_mean(key, flatten(values))}")
        group[last] = value
    if "model.name" in changes:
        _expect_keys_of_model(values)
    return values


def _expect_keys_of_model(values: Mapping[str, Any]) -> None:
    """Raises if `model` has keys that the model named by model.name lacks."""
    known = [field.name for field in dataclasses.fields(part_types(values)["model"])]
    unknown = [key for key in values["model"] if key not in known]
    if unknown:
        raise UserError(
            f"config.model.name: {values['model']['name']!r} has no key {unknown[0]!r}, which "
            f"the config file sets; select the model by the argument of the config file, see --help"
        )


def identity(config: Experiment) -> str:
    """Returns a hash of all settings that affect results.

    The mesh and the model's `_EXECUTION` fields are excluded because they affect only speed and
    memory. The `_ON_FAULTS` fields are excluded because they affect only runs that would otherwise
    stop. Hashes are stable across versions: renamed fields are hashed under their former names, and
    fields that were added later (metadata "later") to data, model and optimizer are excluded if
    they have their default value.
    """
    values = _with_former_keys(config, to_dict(config))
    del values["mesh"]
    for name in _EXECUTION:
        values["model"].pop(name, None)
    for name in _ON_FAULTS:
        del values["training"][name]
    for group in ("data", "model", "optimizer"):
        _delete_newer(getattr(config, group), values[group])
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _delete_newer(instance: Any, values: dict[str, Any]) -> None:
    """Deletes the values of fields with the metadata "later" that have their default value.

    Nested configs are included.
    """
    for field in dataclasses.fields(instance):
        inner, name = getattr(instance, field.name), field.metadata.get("formerly", field.name)
        if field.metadata.get("later") and inner == field.default:
            del values[name]
        elif is_dataclass(inner):
            _delete_newer(inner, values[name])


def _with_former_keys(instance: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(instance):
        inner, value = getattr(instance, field.name), values[field.name]
        name = field.metadata.get("formerly", field.name)
        found[name] = _with_former_keys(inner, value) if is_dataclass(inner) else value
    return found


def load_file(specification: str) -> Experiment:
    """Loads the experiment of 'path/to/config.py' or 'path/to/config.py:argument', ignoring flags.

    Raises:
      UserError: the file is missing or has no get_config, or the argument or a value is invalid.
    """
    return resolve(load_values(specification))


def load_values(specification: str) -> dict[str, Any]:
    """Returns the config of 'path/to/config.py:argument' as a nested dict.

    Raises:
      UserError: the file is missing, has no get_config, or get_config returns another type.
    """
    path, _, argument = specification.partition(":")
    module = load_module(path)
    if hasattr(module, "get_ablation") and not hasattr(module, "get_config"):
        raise UserError(
            f"--config={path}: is an ablation file, expected the config of one experiment; run it "
            f"with python -m launch.ablate"
        )
    if not hasattr(module, "get_config"):
        raise UserError(
            f"--config={path}: has no get_config function"
            f"{did_you_mean('get_config', vars(module))}; define get_config(argument=...), which "
            f"returns experiment(...)"
        )
    with located_error(path):
        config = module.get_config(argument) if argument else module.get_config()
    if not hasattr(config, "to_dict"):
        raise UserError(f"{path}: get_config returned {config!r}, expected experiment(...)")
    return with_current_keys(config.to_dict())


def load_module(path: str) -> types.ModuleType:
    """Executes a Python file as a module.

    Raises:
      UserError: the file does not exist.
    """
    import importlib.util

    if not path:
        raise UserError("--config is empty, expected a file such as configs/text_classification.py")
    if not Path(path).is_file() or not path.endswith(".py"):
        folder = Path(path).parent
        others = [str(other) for other in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        if Path(path).is_dir():
            raise UserError(f"--config={path}: is a directory, expected a Python file")
        if Path(path).exists():
            remedy = ""
            if Path(path).name == "config.json":
                remedy = f"; for this run directory write --workdir={folder}"
            raise UserError(
                f"--config={path}: expected a Python file, whose name ends in .py{remedy}"
            )
        raise UserError(f"--config={path}: no such config file; {_config_file(path, others)}")
    path = str(path)
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with located_error(path):
        specification.loader.exec_module(module)
    return module


def _config_file(path: str, others: list[str]) -> str:
    """Returns advice for an error message about a config file that does not exist."""
    first, _, rest = path.partition(",")
    if rest and Path(first).is_file():
        return f"write a colon before the argument: {first}:{rest}"
    for known in (f"{path}.py", f"configs/{path}", f"configs/{path}.py"):
        if Path(known).is_file():
            return f"write --config={known}"
    files = [*others, *(str(other) for other in sorted(Path("configs").glob("*.py")))]
    near = difflib.get_close_matches(path, files, n=1, cutoff=0.8)
    if near:
        return f"did you mean {near[0]!r}?"
    names = ", ".join(dict.fromkeys(files))
    return f"there are {names}" if names else "run the command in the folder that contains configs/"


@contextlib.contextmanager
def located_error(path: str) -> Iterator[None]:
    """Converts exceptions inside a config file to a `UserError` with the line number.

    Raises:
      UserError: executing the file raises an exception.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == path]  # fmt: skip
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        # The syntax error may be in a file that the config imports.
        file = (isinstance(error, SyntaxError) and error.filename) or path
        where = f"{file}, line {line}" if line else path
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{error}") from error
