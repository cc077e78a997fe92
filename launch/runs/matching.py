"""Matching of parameter counts: one dimension of each compared model is adjusted."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from launch.engine import config as configs
from launch.engine import state as states
from launch.engine.config import Experiment
from launch.runs.directory import prepared_task
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import Task

# Dimensions that change the number of parameters and little else, in order of preference. Of the
# dimensions that a model has, the first one that can give the parameter count is adjusted.
WIDTHS = (
    "feedforward_size",
    "hidden_size",
    "state_size",
    "pyramid_channels",
    "channels",
    "embedding_size",
    "model_size",
)
# Largest accepted relative difference of the parameter counts, and the difference that ends the
# search.
TOLERANCE, CLOSE = 0.02, 0.005
# Largest size that the search tries, and its largest number of steps.
_LARGEST, _MOST_COUNTS = 1 << 20, 60


@dataclasses.dataclass(frozen=True)
class Match:
    """An experiment whose parameter count was matched.

    Attributes:
      experiment: the experiment, named NAME_matched if its dimension was changed.
      key: dotted key of the dimension; "" for the experiment that the others are matched to.
      value: value of the dimension.
      parameters: number of parameters.
    """

    experiment: Experiment
    key: str
    value: Any
    parameters: int


def match_parameters(
    experiments: Mapping[str, Experiment],
    paths: Paths,
    keys: Sequence[str] = (),
    say: Callable[[str], Any] = print,
) -> dict[str, Match]:
    """Adjusts one dimension of each experiment to match the parameter count of the first one.

    The data are read to get the sizes of vocabularies; nothing is trained. The experiments keep all
    other values.

    Args:
      experiments: experiments by name.
      paths: directories of data sets and caches.
      keys: dotted keys that may be adjusted, in order of preference, by default those of `WIDTHS`.
        One of them is adjusted in each experiment.
      say: called with a line about each experiment.

    Returns:
      Matches by name.

    Raises:
      UserError: a model has no such dimension, the experiments differ in it, or no value of it
        gives the parameter count within `TOLERANCE`.
    """
    _check_keys(experiments, keys)
    target, found = 0, {}
    for name, experiment in experiments.items():
        task = prepared_task(experiment, paths)
        if not found:
            target = count_parameters(task, experiment.model, experiment.seed)
            found[name] = Match(experiment, "", None, target)
            say(f"{name}: {target:,} parameters, which the others are matched to")
            continue
        found[name] = _matched(name, experiment, experiments, task, keys, target)
        one = found[name]
        off = one.parameters / target - 1
        say(f"{name}: {one.key}={one.value} gives {one.parameters:,} parameters ({off:+.2%})")
    return found


def notes(matches: Mapping[str, Match]) -> list[str]:
    """Returns a line that states the adjusted dimensions and the parameter counts, as a list."""
    first, *others = matches
    target = matches[first].parameters
    parts = [
        f"{name} {matches[name].key}={matches[name].value} ({matches[name].parameters:,} "
        f"parameters, {matches[name].parameters / target - 1:+.2%})"
        for name in others
    ]
    if not parts:
        return []
    return [f"matched to the {target:,} parameters of {first}: {'; '.join(parts)}"]


def _check_keys(experiments: Mapping[str, Experiment], keys: Sequence[str]) -> None:
    for key in keys:
        if not any(_has(experiment, key) for experiment in experiments.values()):
            first = next(iter(experiments.values()))
            known = configs.flatten(configs.to_dict(first))
            raise UserError(
                f"--match_key={key}: no compared model has this key"
                f"{configs.did_you_mean(key, known)}; name one of config.model, such as "
                f"model.feedforward_size"
            )


def _has(experiment: Experiment, key: str) -> bool:
    group, _, name = key.removeprefix("config.").rpartition(".")
    return group == "model" and hasattr(experiment.model, name)


def _matched(
    name: str,
    experiment: Experiment,
    experiments: Mapping[str, Experiment],
    task: Task,
    keys: Sequence[str],
    target: int,
) -> Match:
    own = count_parameters(task, experiment.model, experiment.seed)
    available = _available(name, experiment, keys)
    if abs(own / target - 1) <= CLOSE:
        return Match(experiment, available[0], _value(experiment, available[0]), own)
    compared = configs.differences(next(iter(experiments.values())), experiment)
    free = [key for key in available if key not in compared]
    if not free:
        raise UserError(
            f"--match=parameters: {name} differs from the base in {' and '.join(available)}, "
            f"which leaves no dimension to adjust; name another one by --match_key"
        )
    nearest = None
    for key in free:
        dimension = _Dimension(task, experiment, key.removeprefix("model."))
        value, count = _search(dimension, target)
        if abs(count / target - 1) <= TOLERANCE:
            changed = dimension.experiment(value, f"{experiment.name}_matched")
            return Match(changed, key, value, count)
        if nearest is None or abs(count - target) < abs(nearest[2] - target):
            nearest = key, value, count
    assert nearest is not None
    key, value, count = nearest
    raise UserError(
        f"--match=parameters: {name} has {own:,} parameters, and no value of "
        f"{' or '.join(free)} gives the {target:,} of the base within {TOLERANCE:.0%}; the nearest "
        f"is {key}={value} with {count:,}; name another dimension by --match_key, or another base"
    )


def _value(experiment: Experiment, key: str) -> Any:
    return getattr(experiment.model, key.removeprefix("model."))


def _available(name: str, experiment: Experiment, keys: Sequence[str]) -> list[str]:
    """Returns the keys of those dimensions of a model that can be adjusted, by preference."""
    hints, found = typing.get_type_hints(type(experiment.model)), []
    for key in keys or [f"model.{field}" for field in WIDTHS]:
        field = key.removeprefix("config.").removeprefix("model.")
        value = getattr(experiment.model, field, None)
        sizes = isinstance(value, int) and not isinstance(value, bool)
        if sizes or (isinstance(value, tuple) and hints[field] == tuple[int, ...] and value):
            found.append(f"model.{field}")
    if not found:
        known = ", ".join(keys) or ", ".join(f"model.{field}" for field in WIDTHS)
        raise UserError(
            f"--match=parameters: the model {experiment.model.name!r} of {name} has none of the "
            f"dimensions {known}; name one of its keys by --match_key"
        )
    return found


class _Dimension:
    """An adjustable dimension of a model, with the parameter count for each of its sizes.

    If the dimension is a tuple of sizes, they are scaled together, and "size" is the largest one.
    """

    def __init__(self, task: Task, experiment: Experiment, field: str):
        self._task, self._experiment, self._field = task, experiment, field
        self._own = getattr(experiment.model, field)
        self._counts: dict[int, int | None] = {}

    @property
    def start(self) -> int:
        """Size of the dimension in the given experiment."""
        return max(self._own) if isinstance(self._own, tuple) else self._own

    def value(self, size: int) -> Any:
        """Returns the value of the config key that gives the dimension a size."""
        if isinstance(self._own, tuple):
            return tuple(max(1, round(part * size / self.start)) for part in self._own)
        return size

    def experiment(self, value: Any, name: str) -> Experiment:
        """Returns the experiment with another value of the dimension.

        Raises:
          UserError: the value is invalid.
        """
        return configs.override(self._experiment, {f"model.{self._field}": value, "name": name})

    def count(self, size: int) -> int | None:
        """Returns the number of parameters for a size; None if the size is not valid."""
        if size not in self._counts:
            try:
                changed = self.experiment(self.value(size), self._experiment.name)
                model = changed.model
                self._counts[size] = count_parameters(self._task, model, changed.seed)
            except (UserError, ValueError, ZeroDivisionError):
                # The size is invalid, for example not divisible by the number of heads.
                self._counts[size] = None
        return self._counts[size]


def _search(dimension: _Dimension, target: int) -> tuple[Any, int]:
    """Searches for the value whose parameter count is nearest to the target.

    Counts increase with the size. The search interpolates between the largest known size with a
    count below the target and the smallest one with a count above it; every third step halves the
    interval instead. It ends at a count within `CLOSE` of the target.

    Returns:
      The value of the dimension, and its parameter count.
    """
    known: dict[int, int] = {}

    def visit(size: int, step: int) -> int | None:
        """Returns the first valid of the 64 sizes `size`, `size + step`, ..., or None.

        The parameter count of this size is added to `known`.
        """
        for other in range(size, size + 64 * step, step):
            if not 1 <= other <= _LARGEST:
                return None
            if (count := dimension.count(other)) is not None:
                known[other] = count
                return other
        return None

    low = high = visit(dimension.start, 1)
    while high is not None and known[high] < target:
        low, high = high, visit(2 * high, 1)
    while low is not None and known[low] > target:
        high, low = low, visit(low // 2, -1) if low > 1 else None
    for number in range(_MOST_COUNTS):
        if (
            low is None
            or high is None
            or high - low <= 1
            or known[low] == known[high]
            or _nearest(known, target)[1] <= CLOSE
        ):
            break
        share = 0.5 if number % 3 == 2 else (target - known[low]) / (known[high] - known[low])
        between = min(max(low + round(share * (high - low)), low + 1), high - 1)
        size = visit(between, 1)
        if size is None or size >= high:
            size = visit(between, -1)
        if size is None or size <= low:
            break
        low, high = (size, high) if known[size] <= target else (low, size)
    size = _nearest(known, target)[0]
    return dimension.value(size), known[size]


def _nearest(known: Mapping[int, int], target: int) -> tuple[int, float]:
    size = min(known, key=lambda size: abs(known[size] - target))
    return size, abs(known[size] / target - 1)


def count_parameters(task: Task, model: Any, seed: int) -> int:
    """Counts the parameters of a task's model without initializing them.

    Args:
      task: prepared task.
      model: config of the model, which replaces that of the task.
      seed: seed of the initialization.
    """
    processor = dataclasses.replace(task.processor, model=model)
    changed = type(task)(task.data, model, processor, task.dataset)

    def build() -> Any:
        return states.split_model(changed.build_model(nnx.Rngs(seed)))[1]

    return states.parameter_count({"params": jax.eval_shape(build)})
