"""What a classifier answers a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def classes_by_probability(
    raw: Sequence[str], probabilities: np.ndarray, labels: Sequence[str], shown: int | None = None
) -> list[dict[str, Any]]:
    """For each input its label and probabilities, the most probable first.

    Args:
      raw: the inputs as typed.
      probabilities: [inputs, classes].
      labels: names of the classes.
      shown: classes in the line for people; all if None.

    Returns:
      JSON objects with input, label, probabilities and text, the line for people.
    """
    answers = []
    for source, row in zip(raw, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        ranked = {labels[index]: round(float(row[index]), 4) for index in order}
        label = labels[order[0]]
        line = "  ".join(f"{name} {value:.4f}" for name, value in list(ranked.items())[:shown])
        answer = {"input": source, "label": label, "probabilities": ranked}
        answers.append({**answer, "text": f"{label}  {line}"})
    return answers
