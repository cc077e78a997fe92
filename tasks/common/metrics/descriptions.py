"""Descriptions of metrics: what is measured, in which unit, and which direction is better."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Metric:
    """Description of a metric.

    Attributes:
      about: what the metric measures. If the name is given by a regular expression, {0} stands for
        the first group of the match.
      unit: unit of the values, such as "fraction" or "nats per token".
      higher_is_better: whether higher values are better; None if neither direction is better.
    """

    about: str
    unit: str
    higher_is_better: bool | None

    @property
    def direction(self) -> str:
        """Text that states which direction is better."""
        if self.higher_is_better is None:
            return "neither direction is better"
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def __str__(self) -> str:
        return f"{self.about}; {self.unit}; {self.direction}"


def fraction(about: str, higher_is_better: bool | None = True) -> Metric:
    """Returns the description of a fraction from 0 to 1."""
    return Metric(about, "fraction from 0 to 1", higher_is_better)


def lower(about: str, unit: str) -> Metric:
    """Returns the description of a metric whose lower values are better."""
    return Metric(about, unit, False)


# Metrics of every task: metrics of training steps, and metrics of baselines.
COMMON = {
    "gradient_norm": Metric("global norm of the gradient before clipping", "1 / parameter", None),
    "learning_rate": Metric("learning rate of the step", "per step", None),
    "seconds": lower("time to fit and evaluate a baseline", "seconds"),
    "gain": Metric("paired gain of the model over a baseline", "as the first metric", True),
    "gain_95": Metric("half-width of the 95 % interval of the gain", "as the first metric", None),
}


def pattern_of(table: Mapping[str, Metric], name: str) -> str | None:
    """Returns the key of a table of metrics that matches the name of a metric.

    The result is None if no key matches.

    Args:
      table: descriptions by name, or by a regular expression for the whole name. `COMMON` is
        searched, too.
      name: name of the metric.
    """
    known = {**table, **COMMON}
    return next((pattern for pattern in known if re.fullmatch(pattern, name)), None)


def describe(table: Mapping[str, Metric], name: str) -> Metric | None:
    """Returns the description of a metric; None if it is neither in the table nor in `COMMON`.

    Args:
      table: descriptions by name, or by a regular expression for the whole name.
      name: name of the metric.
    """
    pattern = pattern_of(table, name)
    match = re.fullmatch(pattern, name) if pattern else None
    if pattern is None or match is None:
        return None
    metric = {**table, **COMMON}[pattern]
    return dataclasses.replace(metric, about=metric.about.format(*match.groups()))
