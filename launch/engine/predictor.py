"""Predictions of a task for raw inputs, and attention weights for figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from launch.engine.config import Experiment
from launch.engine.evaluation import Subset, gather, prediction_inputs, split_by_length
from launch.engine.steps import Steps
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.errors import UserError
from tasks.figures import Figure
from tasks.task import Axes, Task


class Predictor:
    """Predictor that encodes raw inputs, runs the model, and decodes the outputs."""

    def __init__(self, task: Task, config: Experiment, steps: Steps, variables: Any):
        """Initializes the predictor from the task, config, functions and variables of a run."""
        self._task, self._steps, self._variables = task, steps, variables
        self._batch_size = config.training.evaluation_batch_size
        self._model_name = config.model.name

    def __call__(self, raw: Sequence[str]) -> list[dict[str, Any]]:
        """Returns a prediction for each input; see `Task.answers`."""
        return self._task.answers(raw, self.outputs(self._task.processor.encode(raw)))

    def check(self, raw: str) -> None:
        """Checks that an input can be read.

        Raises:
          UserError: the input cannot be read.
        """
        examples = self._task.processor.encode([raw])
        for index in range(len(examples)):
            examples[index]

    def outputs(self, examples: Any) -> dict[str, np.ndarray]:
        """Returns model outputs in the order of the examples; see `Task.predict`."""
        return self._gathered(examples, self._steps.predict)

    def with_figures(self, raw: Sequence[str]) -> tuple[list[dict[str, Any]], list[list[Figure]]]:
        """Returns predictions and figures for each input; see `Task.input_figures`.

        Raises:
          UserError: the task or its model draws no figures.
        """
        if type(self._task).input_figures is Task.input_figures:
            raise UserError(
                "--figures: this task has no figures of predictions; leave out the flag"
            )
        examples = self._task.processor.encode(raw)
        outputs = self.outputs(examples)
        attention = self._gathered(examples, self._steps.attention)
        figures = self._task.input_figures(raw, outputs, attention)
        if len(raw) and not any(figures):
            raise UserError(
                f"--figures: config.model.name={self._model_name} has no figures of "
                f"predictions; leave out the flag"
            )
        return self._task.answers(raw, outputs), figures

    def attention(self, raw: str) -> tuple[dict[str, np.ndarray], dict[str, Axes]]:
        """Returns the attention weights of one input, and their axes, by name.

        The padding at the end of axes with labels is removed. If an input has several examples,
        such as the windows of an image, only the first one is used. Both dicts are empty for a
        model without attention weights.

        Raises:
          UserError: the input cannot be read.
        """
        examples = self._task.processor.encode([raw])
        first = Subset(examples, range(min(len(examples), 1)))
        outputs = self.outputs(first)
        found = self._gathered(first, self._steps.attention)
        whole = {name: value[0] for name, value in found.items()}
        known = self._task.attention_axes(raw, outputs, whole)
        weights, axes = {}, {}
        for name, array in whole.items():
            axes[name] = known.get(name) or {f"axis_{n}": None for n in range(1, array.ndim + 1)}
            sizes = (slice(None if each is None else len(each)) for each in axes[name].values())
            weights[name] = array[tuple(sizes)]
        return weights, axes

    def _gathered(self, examples: Any, step: Any) -> dict[str, np.ndarray]:
        def outputs(batch: dict[str, np.ndarray]) -> Any:
            return step(self._variables, prediction_inputs(self._task, self._steps.place(batch)))

        return gather((ids, outputs(batch)) for ids, batch in self._batches(examples))

    def _batches(self, examples: Any) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields each batch with its ids; much longer examples are in separate, smaller batches."""
        shards = self._steps.batch_shards
        for chosen, size in split_by_length(examples, self._batch_size, shards):
            part = Subset(examples, chosen)
            for batch in evaluation_batches(
                part, batch_size=size, buckets=self._task.buckets, multiple=shards
            ):
                yield np.where(batch["id"] < 0, -1, chosen[batch["id"]]), batch


def outputs_of_examples(
    task: Task, steps: Steps, variables: Any, split: str, indices: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the attention weights and the predictions of some examples, as two dicts by name.

    Rows are in the order of `indices`. Predictions are computed only if `Task.draws_predictions` is
    set; otherwise the second dict is empty.
    """
    import jax

    examples = Subset(task.examples(split), indices)
    longest = None if task.buckets is None else [task.buckets[-1]]
    for batch in evaluation_batches(
        examples,
        batch_size=max(len(examples), 1),
        buckets=longest,
        multiple=steps.batch_shards,
        shards=steps.local_shards,
    ):
        placed = steps.place(batch)
        inputs, ids = prediction_inputs(task, placed), steps.fetch(placed["id"])
        found = [jax.device_get(steps.attention(variables, inputs)), {}]
        if task.draws_predictions:
            found[1] = jax.device_get(steps.predict(variables, inputs))
        real = ids >= 0
        order = np.argsort(ids[real])
        attention, predicted = (
            {name: np.asarray(value)[real][order] for name, value in arrays.items()}
            for arrays in found
        )
        return attention, predicted
    return {}, {}
