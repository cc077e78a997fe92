"""Selection of the examples of a split to explain."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.engine.config import Experiment
from launch.engine.evaluation import evaluate
from launch.engine.steps import Steps
from launch.reporting.examples import choose, grouped
from tasks.common.errors import UserError
from tasks.explanation import Explanation
from tasks.task import Task


def score_name(task: Task, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the name that pages show for the scores of examples.

    Args:
      task: the task.
      rows: records of examples, see `select`.
    """
    graded = rows and all(row["correct"] is None for row in rows)
    return f"contribution to {task.primary_metric}" if graded else task.primary_metric


def select(
    task: Task,
    config: Experiment,
    steps: Steps,
    variables: Any,
    split: str,
    words: str | None,
    count: int,
    seed: int,
) -> tuple[list[int], list[dict[str, Any]]]:
    """Evaluates a split and chooses examples.

    Args:
      task: task with its data.
      config: its experiment.
      steps: compiled functions.
      variables: variables of the model.
      split: name of the split.
      words: "wrong", "correct", "uncertain", "random", or numbers separated by commas; None for the
        examples that a report would show.
      count: largest number of examples, unless `words` gives numbers.
      seed: seed of random choices.

    Returns:
      Indices of the chosen examples, and a record of every example of the split, see
      `tasks.task.Task.predictions`. Records also have the keys "index", "kind" and "correct"; the
      value of "correct" is None if the task has no correct and wrong examples.

    Raises:
      UserError: there are no such examples.
    """
    found = evaluate(task, steps, variables, split, config.training.evaluation_batch_size)
    scores = task.example_scores(found.outputs, split)
    rows = task.predictions(found.outputs, split, scores=scores)
    indices = task.scored_examples(split).tolist()
    groups = grouped(rows, scores, task.higher_is_better, count)
    kinds = {row: kind for kind, members in groups.items() for row in members}
    perfect = 1 if task.higher_is_better else 0
    right = set(np.flatnonzero(scores == perfect).tolist())
    judged = bool({"correct", "wrong"} & {*groups})
    for row, (record, index) in enumerate(zip(rows, indices, strict=True)):
        record |= {"index": index, "kind": kinds.get(row, "")}
        record["correct"] = row in right if judged else None
        if isinstance(record["input"], str) and not task.processor.input_suffixes:
            record["length"] = len(record["input"].split())
    if words is None:
        shown = choose(task, found, split, seed).shown[:count]
        return [example.index for example in shown], rows
    rng = np.random.default_rng(seed)
    if words == "random":
        chosen = rng.permutation(len(rows))[:count].tolist()
        return sorted(indices[row] for row in chosen), rows
    if re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", words):
        numbers = [int(word) for word in words.split(",")]
        missing = sorted(set(numbers) - set(indices))
        if missing:
            raise UserError(
                f"--select={words}: {split} has no example {missing[0]}; the numbers are 0 to "
                f"{max(indices)}"
            )
        return numbers, rows
    members = groups.get(words)
    if members is None and words == "uncertain":
        raise UserError(
            "--select=uncertain: predictions of this run have no confidence; leave out --select"
        )
    if members is None:
        known = ", ".join([*groups, "random"])
        raise UserError(f"--select: got {words!r}, expected {known}, or numbers such as 3,17")
    if not members:
        raise UserError(
            f"--select={words}: {split} has no {words} prediction; write --select=random"
        )
    if words == "uncertain":
        return [indices[row] for row in members[:count]], rows
    return sorted(indices[row] for row in rng.permutation(members)[:count].tolist()), rows


def identified(
    explanations: Sequence[Explanation], rows: Sequence[Mapping[str, Any]], chosen: Sequence[int]
) -> list[Explanation]:
    """Adds the id, kind and score of its example to each explanation.

    Args:
      explanations: explanations of the chosen examples.
      rows: records of all examples, as `select` returns them.
      chosen: indices of the examples.
    """
    by_index = {row["index"]: row for row in rows}
    found = []
    for one, index in zip(explanations, chosen, strict=bool(explanations)):
        row = by_index[index]
        facts = {"id": row["id"], "kind": row["kind"], "score": row["score"]}
        found.append(dataclasses.replace(one, **facts))
    return found
