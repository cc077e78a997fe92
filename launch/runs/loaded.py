"""Access to run directories from Python: results, model, predictions, evaluations.

`launch.load` returns a `Run`.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import answers as answering
from launch.engine import config as configs
from launch.engine import devices, prediction_options
from launch.engine import inputs as reading
from launch.engine import state as states
from launch.engine.config import Experiment
from launch.engine.predictor import Predictor
from launch.engine.steps import Steps
from launch.engine.writers import read_lines
from launch.reporting import report as reports
from launch.reporting import results
from launch.reporting.formatting import DIFFERENCE, format_differences, measured
from launch.runs import directory
from launch.runs.evaluation import evaluate_file, evaluate_run, prepared_for_evaluation
from launch.runs.explained import Explanations
from launch.runs.explaining import Explaining
from tasks.answers import AnswerOptions
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import SPLITS, Task

Folder = str | os.PathLike[str]

# Inputs per batch of predictions, which bounds memory.
_PORTION = 2048


@dataclasses.dataclass(frozen=True)
class AttentionWeights:
    """Attention weights of one input; `numpy.asarray` converts them.

    Attributes:
      weights: array with a dimension for each of the `axes`.
      axes: name of each dimension, with the labels of its positions, such as tokens. The value is
        None for a dimension without labels, such as heads.
    """

    weights: np.ndarray
    axes: Mapping[str, Sequence[str] | None]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.weights, dtype) if copy else np.asarray(self.weights, dtype)

    def __repr__(self) -> str:
        sizes = zip(self.axes, self.weights.shape, strict=True)
        return f"AttentionWeights({', '.join(f'{name} {size}' for name, size in sizes)})"


class Metrics(dict[str, float]):
    """Metrics of an evaluation on a labeled file, by name.

    Attributes:
      intervals: 95 % confidence intervals [low, high] of metrics by name.
      examples: record of each example; see `Run.predictions`.
    """

    def __init__(
        self,
        metrics: Mapping[str, float],
        intervals: Mapping[str, Sequence[float]],
        examples: Sequence[Mapping[str, Any]],
    ):
        """Initializes the metrics and the attributes."""
        super().__init__(metrics)
        self.intervals, self.examples = dict(intervals), list(examples)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A run directory: config, results, and predictions of the model with the best parameters.

    Files are read, and the model is compiled, on first use. A run that is still in training has no
    metrics yet; call `launch.load` again to use later checkpoints.

    Attributes:
      folder: run directory.
      config: the experiment.
      paths: directories of data sets and caches.
    """

    folder: Path
    config: Experiment
    paths: Paths

    # ------------------------------------------------------------------ results

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Content of result.json: metrics, baselines, time, device, versions; {} if unfinished."""
        path = self.folder / "result.json"
        return results.load_result(path) if path.exists() else {}

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on the test split; empty if the run is not finished."""
        return self.record.get("metrics", {})

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Metrics of the baselines on the test split, by name."""
        return self.record.get("baselines", {})

    @property
    def report(self) -> Path | None:
        """Path of report.html; None if the run is not finished."""
        path = self.folder / "report.html"
        return path if path.exists() else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Training and validation metrics by step: records with "step", "split" and the metrics.

        For a refitted run, these are the curves of the first training, which used validation.
        """
        return read_lines(reports.log_file(self.folder))

    # ------------------------------------------------------------------ the model

    @functools.cached_property
    def _task(self) -> Task:
        """The task for predictions, without data."""
        return directory.restored_task(self.config, self.folder)

    @functools.cached_property
    def _loaded(self) -> tuple[Steps, Any, int]:
        """Compiled functions, variables with the best validation metric, and their step."""
        self._set_up()
        return directory.load_variables(self._task, self.config, self.folder)

    @functools.cached_property
    def _prepared(self) -> Task:
        """The task with the data that the run was trained on."""
        return prepared_for_evaluation(self.config, self.folder, self.paths)

    def _set_up(self) -> None:
        devices.set_up_jax(self.paths.cache_dir, self.config)

    @property
    def step(self) -> int:
        """Step of the loaded parameters: the best on validation, or the last if refitted."""
        return self._loaded[2]

    @functools.cached_property
    def model(self) -> Any:
        """The `flax.nnx` module with the best parameters."""
        graph = states.graph_definition(self._task, self.config.seed)
        variables = self._loaded[1]
        return states.merge_model(graph, variables["params"], variables["statistics"])

    def predict(
        self,
        inputs: Sequence[Folder],
        options: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        positive: str | None = None,
    ) -> list[dict[str, Any]]:
        """Predicts for inputs as `python -m launch.predict` does.

        Args:
          inputs: texts, or paths of images, sounds or tables. A path may also be a folder or a
            pattern of files.
          options: options of the decoding as for --set, such as {"model.decoding.beam_size": 1}.
          top_k, threshold, positive: see `tasks.answers.AnswerOptions`.

        Returns:
          The JSON object of each input, see `tasks.processor.Processor.decode`.

        Raises:
          UserError: an input cannot be read, an option does not apply, or there is no checkpoint.
        """
        if isinstance(inputs, str | os.PathLike):
            raise UserError(
                f"inputs: got {inputs!r}, expected a list of inputs; write [...], or "
                "run.predict_file for a table"
            )
        predictor = self._predictor(options, AnswerOptions(top_k, threshold, positive))
        suffixes = self._task.processor.input_suffixes
        given = (one for each in inputs for one in reading.expanded(os.fspath(each), suffixes))
        return [answer for _, found in self._answered(given, predictor) for answer in found]

    def predict_file(
        self,
        file: Folder,
        output: Folder | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        positive: str | None = None,
    ) -> list[dict[str, Any]]:
        """Predicts for the rows of a table, or for the lines of a text file.

        Args:
          file: table with the input column of the run, or text file with one input per line.
          output: file to write, .csv, .tsv or .jsonl; the rows are then not returned, so that a
            large table needs little memory.
          options, top_k, threshold, positive: as for `predict`.

        Returns:
          The rows of the table with the additional columns predicted_<key>; [] with an output.

        Raises:
          UserError: the file cannot be read, an option does not apply, the output cannot be
            written, or there is no checkpoint.
        """
        name, rows = os.fspath(file), type(self._task).rows
        target = None if output is None else os.fspath(output)
        form = "csv" if target is None else answering.format_of(target, None)
        chosen = AnswerOptions(top_k, threshold, positive)
        with answering.Destination(target, [name]) as destination:
            summary = reading.check_file(name, self._task.processor)
            predictor = self._predictor(options, chosen)
            given = reading.read_inputs((), name, self._task.processor)
            written = answering.Answers(form, destination, rows, summary.columns)
            found: list[dict[str, Any]] = []
            for portion, answers in self._answered(given, predictor):
                if target is not None:
                    written.write(portion, answers)
                    continue
                for one, answer in zip(portion, answers, strict=True):
                    row = {"input": one.raw} if one.row is None else one.row
                    found += answering.table_rows(row, rows(answer))
        return found

    def _answered(
        self, given: Iterator[reading.Input], predictor: Predictor
    ) -> Iterator[tuple[list[reading.Input], list[dict[str, Any]]]]:
        skipped = reading.Skipped()
        for portion in reading.in_portions(given, _PORTION):
            yield skipped.answered(portion, predictor, predictor.check)
        skipped.report()

    def attention(self, x: Folder) -> dict[str, AttentionWeights]:
        """Returns the attention weights of the model for one input, by name.

        The dict is empty for a model without attention weights.

        Args:
          x: text, or the path of an image, sound or table. If a large image is cut into windows,
            only the first window is used.

        Raises:
          UserError: the input cannot be read, or there is no checkpoint.
        """
        weights, axes = self._predictor().attention(os.fspath(x))
        return {name: AttentionWeights(array, axes[name]) for name, array in weights.items()}

    def explain(
        self,
        inputs: Sequence[Folder] | None = None,
        *,
        examples: Sequence[int] = (),
        split: str = "test",
        methods: Sequence[str] | None = None,
    ) -> Explanations:
        """Explains predictions as `python -m launch.explain` does.

        Args:
          inputs: as for `predict`; or None for examples of a split.
          examples: indices of examples of the split.
          split: "train", "validation" or "test".
          methods: names of `launch.runs.explaining.METHODS`; all that apply if None.

        Returns:
          Explanations, see `tasks.explanation.Explanation`; notebooks show them as a page, and
          `save` writes it.

        Raises:
          UserError: an input cannot be read, a method does not apply, there is no such example, or
            there is no checkpoint.
        """
        _check_split(split)
        if (inputs is None) == (not examples):
            raise UserError(
                "inputs: got both inputs and examples or neither, expected one of them: a list of "
                "inputs, or a list of indices of examples"
            )
        if isinstance(inputs, str | os.PathLike):
            raise UserError(f"inputs: got {inputs!r}, expected a list of inputs; write [...]")
        steps, variables, _ = self._loaded
        task = self._prepared if inputs is None else self._task
        explaining = Explaining(task, self.config, steps, variables)
        if inputs is None:
            count = len(task.examples(split))
            wrong = [index for index in examples if not 0 <= index < count]
            if wrong:
                raise UserError(f"examples: got {wrong[0]}, expected indices from 0 to {count - 1}")
            subjects = explaining.of_split(split, examples)
        else:
            subjects = explaining.of_inputs([os.fspath(each) for each in inputs])
        title = f"{self.config.name}: {self.config.task} of {self.config.data.name}"
        return Explanations(explaining.explain_all(subjects, methods), title)

    def _predictor(
        self, options: Mapping[str, Any] | None = None, chosen: AnswerOptions | None = None
    ) -> Predictor:
        settings = [f"{key}={value}" for key, value in (options or {}).items()]
        changed = prediction_options.with_options(self.config, settings)
        task = self._task
        if settings:
            task = directory.restored_task(changed, self.folder)
        if chosen is not None:
            task = task.with_options(chosen)
        steps, variables, _ = self._loaded
        if not settings and not task.compiles_options:
            return Predictor(task, self.config, steps, variables)
        return directory.load_predictor(task, changed, self.folder)

    # ------------------------------------------------------------------ evaluation

    def evaluate(
        self,
        file: Folder | None = None,
        split: str = "test",
        *,
        images: Folder | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        positive: str | None = None,
    ) -> dict[str, float]:
        """Evaluates the best parameters as `python -m launch.evaluate` does.

        Args:
          file: labeled file or folder to evaluate on instead of a split, in a form that the task
            accepts as user data. The data of the run are not needed, and nothing is written.
          split: "train", "validation" or "test".
          images: folder of the images of an annotation file.
          top_k, threshold, positive: see `tasks.answers.AnswerOptions`; they add metrics.

        Returns:
          The metrics. For a split, they are also written to evaluation-<split>.json. For a file,
          they are `Metrics`, which also have confidence intervals and example records.

        Raises:
          UserError: the data cannot be read or differ from the run's data, an option does not
            apply, or there is no checkpoint.
        """
        _check_split(split)
        options = AnswerOptions(top_k, threshold, positive)
        self._set_up()
        if file is None:
            task = self._prepared
            record = evaluate_run(self.config, self.folder, split, self.paths, task, options)
            return record["metrics"]
        if split != "test":
            raise UserError(
                f"split: got {split!r} with a file, expected 'test' (the default); leave out split"
            )
        where = None if images is None else os.fspath(images)
        found = evaluate_file(self.config, self.folder, os.fspath(file), options, where)
        return Metrics(found.record["metrics"], found.record["intervals"], found.rows)

    def predictions(self, split: str = "test") -> list[dict[str, Any]]:
        """Returns target, prediction and score of each example of a split.

        For the test split of a finished run, they are computed from saved outputs. Other splits are
        evaluated first. `pandas.DataFrame(run.predictions())` makes a table.

        Args:
          split: "train", "validation" or "test".

        Returns:
          Records with id, input, target, prediction, confidence and score; see
          `tasks.task.Task.predictions`. Values are None where a task has none.

        Raises:
          UserError: as for `evaluate`.
        """
        _check_split(split)
        saved = self.folder / f"outputs-{split}.npz"
        if split != "test" or not self.record or not saved.exists():
            self.evaluate(split=split)
        task = self._prepared
        with np.load(saved) as arrays:
            outputs = dict(arrays)
        ids, scores = outputs.pop("example_ids", None), outputs.pop("example_scores")
        return task.predictions(outputs, split, ids, scores)

    # ------------------------------------------------------------------ display

    def __repr__(self) -> str:
        shown = "unfinished"
        if self.metrics:
            metric = self._metric
            shown = f"{metric}={self.metrics[metric]:.4f}"
        relative = Path(os.path.relpath(self.folder)).as_posix()
        folder = min(relative, str(self.folder), key=len)
        return f"<Run {folder}: {self.config.task}, {self.config.name}, {shown}>"

    @property
    def _metric(self) -> str:
        return configs.task_class(self.config.task).primary_metric

    def _repr_html_(self) -> str:
        """Returns name, metrics with baselines, curves and a link to the report, for notebooks."""
        title = f"{self.config.task}: {self.config.data.name}, {self.config.name}"
        parts = [f"<b>{html.escape(title)}</b>"]
        if self.record:
            metrics = measured(self.record, configs.task_class(self.config.task).table_metrics)
            gains = format_differences(self.record)
            rows = {self.config.name: self.metrics}
            rows |= {f"baseline {name}": values for name, values in self.baselines.items()}
            head = ["model", *metrics, *[DIFFERENCE] * bool(gains)]
            table = "".join(
                _row(
                    "td",
                    [name, *(_number(values, metric) for metric in metrics)]
                    + [gains.get(name.removeprefix("baseline "), "")] * bool(gains),
                )
                for name, values in rows.items()
            )
            parts.append(f"<table>{_row('th', head)}{table}</table>")
        else:
            parts.append("<p>This run is not finished.</p>")
        if reports.log_file(self.folder).exists():
            drawn = reports.curves(self.folder, self._metric, self.record.get("steps"))
            # Drawings use the browser's color scheme, which may differ from the notebook's.
            look = "background: Canvas; color-scheme: light dark; display: flex; flex-wrap: wrap"
            parts.append(f'<div style="{look}">{drawn}</div>')
        if self.report is not None:
            link = Path(os.path.relpath(self.report)).as_posix()
            parts.append(f'<p><a href="{html.escape(link)}">report.html</a></p>')
        return "\n".join(parts)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(
            f"split: got {split!r}, expected {', '.join(SPLITS[:-1])} or {SPLITS[-1]}"
            f"{configs.did_you_mean(str(split), SPLITS)}"
        )


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _number(values: Mapping[str, float], metric: str) -> str:
    return f"{values[metric]:.4f}" if metric in values else ""
