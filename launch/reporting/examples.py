"""Choice of the test examples that a report shows: correct, wrong and uncertain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.engine.evaluation import Evaluation
from tasks.figures import Shown
from tasks.task import Task

_UNCERTAIN = "uncertain"
# Description of each kind of chosen examples, for the note.
_KINDS: Mapping[str, str] = {
    "correct": "correct",
    "wrong": "wrong",
    "best quarter": "of the best quarter by score",
    "worst quarter": "of the worst quarter by score",
    "middle half": "of the middle half by score",
    _UNCERTAIN: "with the lowest confidence",
}


class Choice(NamedTuple):
    """Chosen examples, and a sentence that says how they were chosen."""

    shown: Sequence[Shown]
    note: str


def choose(task: Task, evaluation: Evaluation, split: str, seed: int) -> Choice:
    """Chooses the examples that a report shows.

    If the task has confidences, a quarter of the examples are those with the lowest confidence. The
    other examples are drawn at random, as many correct as wrong ones. Some scores, such as squared
    errors, do not tell whether an example is correct. Examples are then drawn equally from the best
    quarter, the middle half and the worst quarter of the scores.

    Args:
      task: task with its data.
      evaluation: results on the split.
      split: name of the split.
      seed: seed of the random choice; the same seed chooses the same examples.
    """
    scores = task.example_scores(evaluation.outputs, split)
    rows = task.predictions(evaluation.outputs, split, scores=scores)
    groups = grouped(rows, scores, task.higher_is_better, task.drawn_examples // 4)
    chosen = _draw(groups, task.drawn_examples, np.random.default_rng(seed))
    indices = task.scored_examples(split)
    shown = [
        Shown(int(indices[row]), kind, rows[row]["id"])
        for kind, members in chosen.items()
        for row in members
    ]
    counts = [f"{len(members)} {_KINDS[kind]}" for kind, members in chosen.items() if members]
    listed = ", ".join(counts[:-1]) + " and " * (len(counts) > 1) + "".join(counts[-1:])
    graded = not {"correct", "wrong"} & set(groups)
    score = f" The score is the contribution to {task.primary_metric}." if graded else ""
    note = (
        f"Of the {len(scores):,} examples of the {split} split: {listed}; drawn at random with "
        f"seed {seed}.{score} The ids are those of predictions-{split}.csv."
    )
    return Choice(shown, note)


def grouped(
    rows: Sequence[Mapping[str, Any]], scores: np.ndarray, higher_is_better: bool, uncertain: int
) -> dict[str, list[int]]:
    """Groups the examples of a split by kind.

    Args:
      rows: record of each example, see `tasks.task.Task.predictions`.
      scores: score of each example, [n].
      higher_is_better: whether higher values of the primary metric are better.
      uncertain: number of examples in the group "uncertain", those with the lowest confidence.
        There is no such group if there are no confidences.

    Returns:
      Indices of rows by kind: "correct" and "wrong", or "best quarter", "worst quarter" and "middle
      half"; and "uncertain".
    """
    confidence = np.array(
        [math.nan if row["confidence"] is None else row["confidence"] for row in rows], float
    )
    found: dict[str, list[int]] = {}
    # A correct example has an error rate of 0 or, if all scores are 0 or 1, a score of 1.
    perfect = scores == (1 if higher_is_better else 0)
    if perfect.any() and (not higher_is_better or np.isin(scores, (0, 1)).all()):
        found = {"correct": np.flatnonzero(perfect), "wrong": np.flatnonzero(~perfect)}
    elif higher_is_better and not scores.any():
        found = {"wrong": np.arange(len(scores))}
    else:
        order = np.argsort(-scores if higher_is_better else scores, kind="stable")
        quarter = -(-len(order) // 4)
        found = {
            "best quarter": order[:quarter],
            "worst quarter": order[max(len(order) - quarter, quarter) :],
            "middle half": order[quarter : len(order) - quarter],
        }
    known = np.flatnonzero(np.isfinite(confidence))
    least = known[np.argsort(confidence[known], kind="stable")[:uncertain]]
    found = {kind: [i for i in rows if i not in set(least)] for kind, rows in found.items()}
    return {**found, **({_UNCERTAIN: list(least)} if len(least) else {})}


def _draw(
    groups: Mapping[str, Sequence[int]], count: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    """Draws up to `count` examples, with about equal numbers of each kind if there are enough."""
    waiting = {
        kind: list(rows) if kind == _UNCERTAIN else rng.permutation(rows).astype(int).tolist()
        for kind, rows in groups.items()
    }
    found: dict[str, list[int]] = {kind: [] for kind in groups}
    while any(waiting.values()) and sum(map(len, found.values())) < count:
        for kind, rows in waiting.items():
            if rows and sum(map(len, found.values())) < count:
                found[kind].append(rows.pop(0))
    return found
