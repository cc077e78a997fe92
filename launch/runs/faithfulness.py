"""Faithfulness of attributions to a model: deletion and insertion, random weights, other seeds.

A method is compared with random orders of the positions. The deletion gain is the area under the
deletion curve of random orders minus the area for the method. The insertion gain is the area under
the insertion curve of the method minus the area for random orders. Both are positive for a method
that finds the positions that the model uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

from launch.engine import state as states
from launch.engine.config import Experiment
from launch.reporting.paired import mean_and_interval
from launch.runs.explaining import CONTROLS, Explaining, area
from tasks.explainer import Subject
from tasks.task import Task

# Number of examples whose attention weights are in memory at a time.
_TOGETHER = 32
KINDS = ("deletion", "insertion")


@dataclasses.dataclass
class _Measured:
    """Measurements of one method, one number for each example."""

    areas: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )
    random_weights: list[float] = dataclasses.field(default_factory=list)
    agreement: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)


def evaluate(
    explaining: Explaining,
    split: str,
    indices: Sequence[int],
    *,
    methods: Sequence[str] | None = None,
    randomized: Explaining | None = None,
    other: Explaining | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Measures the faithfulness of attributions on examples of a split.

    Args:
      explaining: `Explaining` of the model.
      split: name of the split.
      indices: examples.
      methods: names of methods; all that apply if None.
      randomized: `Explaining` of the same model with random parameters (Adebayo et al. 2018).
      other: `Explaining` of a model that was trained with another seed.
      progress: called with the number of new examples.

    Returns:
      The split, the number of examples, and `replacement` and `quantity` of the explainer. For each
      method, means over the examples with the half-widths of their 95 % confidence intervals: the
      areas "deletion" and "insertion"; their gains over random orders and over gradients; and the
      rank correlations of the attributions with those of a model with random weights
      ("random_weights") and with those of a model with another seed ("agreement"). For each method,
      also the median of the seconds per example.

    Raises:
      UserError: a method does not apply.
    """
    measured: dict[str, _Measured] = {}
    models = {"random_weights": randomized, "agreement": other}
    for subject, others in _prepared(explaining, split, indices, models):
        names = explaining.checked(subject, methods)
        found = explaining.attributions(subject, names)
        for curve in explaining.curves(subject, found, names):
            own = measured.setdefault(curve.method, _Measured())
            own.areas[curve.kind].append(area(curve))
        for name, each in found.items():
            measured[name].seconds.append(each.seconds)
        for key, (model, again) in others.items():
            changed = model.attributions(again, [*found])
            for name, each in changed.items():
                pair = found[name].values, each.values
                getattr(measured[name], key).append(similarity(*pair, explaining.explainer.signed))
        progress(1)
    return {
        "split": split,
        "examples": len(indices),
        "replacement": explaining.explainer.replacement,
        "quantity": explaining.explainer.quantity,
        "methods": {name: _summary(name, measured) for name in measured},
    }


def _prepared(
    explaining: Explaining,
    split: str,
    indices: Sequence[int],
    models: Mapping[str, Explaining | None],
) -> Iterator[tuple[Subject, dict[str, tuple[Explaining, Subject]]]]:
    """Yields each example, and pairs (model, copy of the example) of the other models by name."""
    for start in range(0, len(indices), _TOGETHER):
        subjects = list(explaining.of_split(split, indices[start : start + _TOGETHER]))
        explaining.prepare(subjects)
        others: list[dict[str, tuple[Explaining, Subject]]] = [{} for _ in subjects]
        for key, model in models.items():
            if model is None:
                continue
            again = [model.again(subject) for subject in subjects]
            model.prepare(again)
            for row, subject in enumerate(again):
                others[row][key] = (model, subject)
        yield from zip(subjects, others, strict=True)


def similarity(a: np.ndarray, b: np.ndarray, signed: bool) -> float:
    """Computes Spearman's rank correlation of two attributions; NaN if one of them is constant."""
    if not signed:
        a, b = np.abs(a), np.abs(b)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def _summary(name: str, measured: Mapping[str, _Measured]) -> dict[str, Any]:
    own, found = measured[name], {}
    for kind in KINDS:
        found[kind] = _interval(own.areas[kind])
    for other in ("random", "gradient_x_input"):
        if other not in measured or name in (other, *CONTROLS):
            continue
        for kind, sign in zip(KINDS, (-1, 1), strict=True):
            pairs = zip(own.areas[kind], measured[other].areas[kind], strict=True)
            label = "random" if other == "random" else "gradient"
            found[f"{kind}_gain_over_{label}"] = _interval([sign * (a - b) for a, b in pairs])
    for key in ("random_weights", "agreement"):
        values = [value for value in getattr(own, key) if np.isfinite(value)]
        if values:
            found[key] = _interval(values)
    if own.seconds:
        # The first example of each shape includes compilation.
        found["seconds"] = float(f"{np.median(own.seconds):.3g}")
    return found


def _interval(values: Sequence[float]) -> list[float]:
    middle, half = mean_and_interval(np.asarray(values, np.float64))
    return [round(middle, 5), round(half, 5)]


def random_variables(task: Task, config: Experiment, variables: Any) -> Any:
    """Returns the variables of a model with newly initialized parameters.

    Arrays that are computed from the training data, such as co-occurrence counts, are kept.

    Args:
      task: the task.
      config: its experiment; parameters are initialized with the next seed.
      variables: trained variables.
    """

    def initialized() -> Any:
        _, params, _ = states.split_model(task.build_model(nnx.Rngs(config.seed + 1)))
        return params

    return {**variables, "params": jax.jit(initialized)()}
