"""Evaluation on a split: sums statistics, gathers outputs, removes padding rows and duplicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from launch.engine.steps import Steps
from tasks.common.data.pipeline import evaluation_batches
from tasks.task import Task

# Largest number of positions, including padding, in a batch of predictions. Without this limit, one
# long example would multiply the memory of a batch of short ones.
_POSITIONS = 2**21


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation on one split.

    Attributes:
      metrics: values of the metrics by name.
      statistics: sums over the split from which metrics are computed, float64 or integers.
      outputs: arrays [examples, ...] in the order of the split.
    """

    metrics: dict[str, float]
    statistics: dict[str, Any]
    outputs: dict[str, np.ndarray]


def evaluate(task: Task, steps: Steps, variables: Any, split: str, batch_size: int) -> Evaluation:
    """Evaluates every example of a split once.

    The metrics do not depend on the batch size or the mesh.
    """
    total: Any = None
    pending = []
    for batch in evaluation_batches(
        task.examples(split),
        batch_size=batch_size,
        buckets=task.buckets,
        multiple=steps.batch_shards,
        shards=steps.local_shards,
    ):
        placed = steps.place(batch)
        statistics, outputs = steps.evaluate(variables, placed)
        if task.decodes:
            predict = steps.predict_fast if split == "validation" else steps.predict
            outputs = predict(variables, prediction_inputs(task, placed))
        pending.append((steps.fetch(placed["id"]), outputs))
        total = _add(total, jax.device_get(statistics))
    outputs = gather(pending)
    return Evaluation(task.metrics(total, outputs, split), total, outputs)


def prediction_inputs(task: Task, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the arrays of a batch that are inputs of `Task.predict`."""
    names = task.processor.signature() or batch
    return {name: batch[name] for name in names}


def _add(total: Any, statistics: Any) -> Any:
    wide = jax.tree.map(
        lambda leaf: np.asarray(
            leaf, np.int64 if np.issubdtype(np.asarray(leaf).dtype, np.integer) else np.float64
        ),
        statistics,
    )
    return wide if total is None else jax.tree.map(np.add, total, wide)


def gather(pending: Iterable[tuple[np.ndarray, Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """Concatenates the outputs of batches, without padding rows, in the order of example ids.

    Args:
      pending: for each batch of B rows, its ids [B], which are -1 for padding rows, and its outputs
        [B, ...] by name. Later dimensions, such as lengths, may differ between batches; shorter
        arrays are padded with 0.
    """
    rows: dict[str, list[np.ndarray]] = {}
    ids: list[np.ndarray] = []
    for batch_ids, outputs in pending:
        batch_ids = np.asarray(batch_ids)
        real = batch_ids >= 0
        ids.append(batch_ids[real])
        for name, value in outputs.items():
            rows.setdefault(name, []).append(np.asarray(jax.device_get(value))[real])
    if not ids:
        return {}
    _, order = np.unique(np.concatenate(ids), return_index=True)
    return {name: _stack(parts)[order] for name, parts in rows.items()}


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    widest = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    return np.concatenate(
        [
            np.pad(
                part,
                [(0, 0)]
                + [(0, wide - size) for wide, size in zip(widest, part.shape[1:], strict=True)],
            )
            for part in parts
        ]
    )


class Subset:
    """A subset of examples, by index."""

    def __init__(self, examples: Any, indices: Sequence[int] | np.ndarray):
        self._examples, self._indices = examples, np.asarray(indices, np.int64)
        self.padded = examples.padded
        self.lengths: np.ndarray | Mapping[str, np.ndarray] | None = examples.lengths
        if isinstance(self.lengths, Mapping):
            self.lengths = {field: row[self._indices] for field, row in self.lengths.items()}
        elif self.lengths is not None:
            self.lengths = self.lengths[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._examples[int(self._indices[index])]


def split_by_length(examples: Any, batch_size: int, least: int) -> list[tuple[np.ndarray, int]]:
    """Splits examples into groups of similar length, each with its own batch size.

    The batch size is `batch_size`, or less if a batch with padding would have over 2²¹ positions.

    Args:
      examples: examples of a split. If they have no lengths, they form a single group.
      batch_size: largest batch size.
      least: number that all batch sizes are multiples of.

    Returns:
      A tuple (indices of the examples, batch size) for each group.
    """
    everything = np.arange(len(examples))
    if examples.lengths is None or not len(examples):
        return [(everything, batch_size)]
    by_field = isinstance(examples.lengths, Mapping)
    rows = list(examples.lengths.values()) if by_field else [examples.lengths]
    lengths = np.max([np.maximum(row, 1) for row in rows], axis=0)
    if batch_size * lengths.max() <= _POSITIONS:
        return [(everything, batch_size)]
    # Within a group the longest example is at most four times as long as the shortest.
    kinds = np.floor(np.log(lengths.max() / lengths) / np.log(4)).astype(int)
    found = []
    for kind in np.unique(kinds):
        chosen = np.flatnonzero(kinds == kind)
        fit = int(_POSITIONS // lengths[chosen].max()) // least * least
        needed = -(-len(chosen) // least) * least
        found.append((chosen, max(min(fit, needed, batch_size), least)))
    return found
