"""Options of predictions: the number of candidates, and decision thresholds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tasks.common.errors import UserError

# Reasons why an option does not apply, unless a task gives its own.
_REASONS = {
    "top_k": "predictions of this task have no ranked candidates",
    "threshold": "predictions of this task have no probabilities to compare with a threshold",
    "positive": "this task has no classes to decide between",
}


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """Options of predictions. A value of None stands for the default of the task.

    Attributes:
      top_k: number of candidates in a prediction, such as classes, items or words.
      threshold: minimum probability or score of a prediction. A classifier gives no label to an
        input whose most probable class is below `threshold`. With `positive`, `threshold` is the
        minimum probability of the positive class.
      positive: class that the classifier predicts if its probability is at least `threshold`,
        which is 0.5 by default; otherwise the most probable other class is predicted.
    """

    top_k: int | None = None
    threshold: float | None = None
    positive: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Options that are not None, by name."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def check(self, applicable: Mapping[str, str | None]) -> None:
        """Checks the values of the options, and that the given options apply to a task.

        Args:
          applicable: for the name of each option, None if the option applies to the task, or else
            the reason why it does not; see `tasks.task.Task.answer_options`.

        Raises:
          UserError: an option does not apply, or its value is out of range.
        """
        for name in self.given:
            reason = applicable.get(name, _REASONS[name])
            if reason is not None:
                raise UserError(f"--{name}: does not apply, because {reason}; leave out this flag")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top_k: got {self.top_k}, expected a number of 1 or more")
        threshold = self.threshold
        if threshold is not None and not (math.isfinite(threshold) and 0 <= threshold <= 1):
            raise UserError(f"--threshold: got {threshold:g}, expected a number from 0 to 1")
