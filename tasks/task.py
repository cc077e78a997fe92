"""Interface between a task and the engine that trains and evaluates it.

A task is defined in tasks/<name>/task.py, where `TASK` is its class. It has three parts:

* the data set: the examples of each split, and their hashes;
* the processor: converts raw inputs to arrays and outputs to predictions, on the host, with fields
  that are fitted on the training split (vocabulary, labels, scales);
* the objective: model, loss, evaluation, prediction and metrics.

Methods with a model argument run under `jax.jit`, on batches that may be sharded over a mesh. They
are pure functions. Rows with `weight` 0, which pad the last batch, do not affect their results.

In shapes, B is the number of rows of a batch, and n the number of examples in a split.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tasks.answers import AnswerOptions
from tasks.common.data import digests
from tasks.common.data.own import OwnData
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import Bucket, Examples
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.data.summary import Columns
from tasks.common.errors import UserError, collected
from tasks.common.metrics.descriptions import Metric, describe
from tasks.explainer import Explainer
from tasks.figures import Figure, SplitResults, Transcript
from tasks.processor import Arrays, ArraySpec, ProcessingSteps, Processor

__all__ = [
    "SPLITS",
    "ArraySpec",
    "Arrays",
    "Axes",
    "Batch",
    "Columns",
    "ExamplePrediction",
    "Metric",
    "Pretrained",
    "ProcessingSteps",
    "Processor",
    "Task",
    "seven_digits",
]

Batch = Mapping[str, Any]
"""Arrays on devices by name."""
Axes = Mapping[str, "Sequence[str] | None"]
"""Dimensions of an array, in order: the labels of the positions along each dimension, by its name.

The value is None for a dimension without labels."""


class ExamplePrediction(NamedTuple):
    """Input, target and prediction of one example as JSON values.

    A value is None if the task does not provide it.

    Attributes:
      input: input as text, such as a sentence, or the name of an image.
      target: true text, class, values or objects.
      prediction: predicted value of the same kind.
      confidence: number from 0 to 1: the probability of the predicted class; for a decoded text,
        the exponential of its decoding score.
    """

    input: str | None = None
    target: Any = None
    prediction: Any = None
    confidence: float | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A finished run whose parameters initialize another run.

    Attributes:
      folder: run directory, for messages.
      task: name of the run's task.
      data, model: configs of the data set and of the model of the run.
      assets: fitted fields of the processor, see `Processor.assets`.
      params: parameters at the best step, as nested dicts of NumPy arrays. List indices are string
        keys.
    """

    folder: Path
    task: str
    data: Any
    model: Any
    assets: Mapping[str, Any]
    params: Mapping[str, Any]


class Task(abc.ABC):
    """Base class of every task.

    Class attributes:
      data_config: frozen dataclass of `config.data`; has a `name` field.
      model_configs: for the name of each model, the frozen dataclass of `config.model`, which has a
        `name` field.
      processor_type: class of the processor.
      primary_metric: metric on the validation split that selects the best step.
      higher_is_better: whether larger values of the primary metric are better.
      table_metrics: metrics that tables show, the primary one first.
      metric_table: descriptions of all metrics that `loss`, `metrics` and baselines return. Each
        key is the name of a metric or a regular expression for names; see `describe_metric`.
      condition_metrics: regular expression for names of metrics under additional test conditions,
        which tables show in separate columns; empty if there are no such metrics.
      averaged_over: key of `settings`. Tables also show the mean of the results over all values of
        this key. Empty for no mean.
      sharding_rules: sharding rules of the parameters, see `launch.engine.sharding`.
      baseline_version: number to increment when the code of a baseline changes, so that cached
        metrics of the old code are not used.
      decodes: whether `predict` runs a decoding loop. If so, `evaluate` returns only statistics
        under teacher forcing, so an evaluation calls `predict` too.
      overlap: number of consecutive examples whose targets overlap, such as the windows of a
        series; confidence intervals account for it.
      separate_images: whether --file may be an annotation file whose images are in a separate
        folder, which --images names.
      answer_options: for the name of each option of `tasks.answers.AnswerOptions`, None if the
        option applies, or else the reason why it does not. Options without an entry do not apply.
      drawn_examples: number of test examples that a report shows.
      draws_predictions: whether `figures` needs the outputs of `predict` for the shown examples.
      own_data: declaration of the files of --data and of the flags that name columns; or a text
        with the reason why the task takes no user data.

    Attributes:
      data, model: configs of the data set and of the model.
      processor: the fitted `Processor`.
      dataset: object with `splits`, `fingerprint`, `parts` (hash of each part) and `summary()`;
        None if the task is only used for predictions.
      options: options of predictions, such as a decision threshold.
      file_names: names of the files of the examples, for a task that `with_file` returned; None if
        examples are not files.
      notes: messages about the data that were printed while they were read.
    """

    data_config: ClassVar[type]
    model_configs: ClassVar[Mapping[str, type]]
    processor_type: ClassVar[type[Processor]]
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    table_metrics: ClassVar[Sequence[str]]
    metric_table: ClassVar[Mapping[str, Metric]] = {}
    condition_metrics: ClassVar[str] = ""
    averaged_over: ClassVar[str] = ""
    sharding_rules: ClassVar[Sequence[tuple[str, tuple[str | None, ...]]]] = ()
    baseline_version: ClassVar[int] = 1
    separate_images: ClassVar[bool] = False
    answer_options: ClassVar[Mapping[str, str | None]] = {}
    decodes: bool = False
    overlap: int = 1
    options: AnswerOptions = AnswerOptions()
    file_names: Sequence[str] | None = None
    notes: Sequence[str] = ()
    drawn_examples: ClassVar[int] = 8
    draws_predictions: ClassVar[bool] = False
    own_data: ClassVar[OwnData | str] = "all of its data sets are built in"

    def __init__(self, data: Any, model: Any, processor: Any, dataset: Any = None):
        """Initializes the attributes. Tasks are usually built by `prepare` or `restore`."""
        self.data, self.model, self.processor, self.dataset = data, model, processor, dataset

    # ------------------------------------------------------------------ construction

    @classmethod
    def prepare(cls, data: Any, model: Any, paths: Paths, **options: Any) -> Task:
        """Fetches, builds and reads the data, and fits the processor on the training split.

        Repeated calls reuse the data that were downloaded and prepared before.

        Args:
          data, model: configs of the data set and of the model.
          paths: directories of data sets and caches.
          **options: passed to `fit`; only used if the model config's `init_from` names a source
            run. Before training there is the option `pretrained`, a `Pretrained` with the
            parameters of the source run. For a model that has parameters already, there is the
            option `assets` instead, with the assets of its own run.

        Raises:
          UserError: the configs are not compatible, or the data cannot be read.
        """
        cls.check(data, model)
        with collected() as notes:
            dataset = cls.load(data, paths)
        task = cls(data, model, cls.fit(dataset, data, model, paths, **options), dataset)
        task.notes = tuple(notes)
        return task

    @classmethod
    def restore(cls, data: Any, model: Any, assets: Mapping[str, Any]) -> Task:
        """Builds a task from the assets of a run directory, for predictions without data."""
        return cls(data, model, cls.processor_type.from_assets(data, model, assets))

    @classmethod
    def check(cls, data: Any, model: Any) -> None:
        """Checks that the configs of data and model are compatible.

        Raises:
          UserError: the configs are not compatible.
        """
        return

    @classmethod
    @abc.abstractmethod
    def load(cls, data: Any, paths: Paths) -> Any:
        """Reads the data set and returns the value of the attribute `dataset`.

        Raises:
          UserError: the data cannot be read.
        """

    @classmethod
    def fit(cls, dataset: Any, data: Any, model: Any, paths: Paths, **options: Any) -> Processor:
        """Builds the processor. Fields that depend on data are fitted on the training split."""
        return cls.processor_type(data, model)

    def with_options(self, options: AnswerOptions) -> Task:
        """Returns a copy of the task whose predictions use the given options.

        Raises:
          UserError: an option does not apply, or its value is out of range.
        """
        options.check(self.answer_options)
        chosen = copy.copy(self)
        chosen.options = options
        return chosen

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Returns a copy of the task whose only split, "test", has the examples of a labeled file.

        Classes, vocabulary and scales are those of the processor; training data are not needed.

        Args:
          file: path of the file or folder, in the form of the user files of the task.
          images: folder of the images of an annotation file.

        Raises:
          UserError: the task reads no labeled files, the file cannot be read, or a label is not
            known to the processor.
        """
        raise UserError(
            "--file: does not apply, because this task generates its data; leave it out"
        )

    def _with_dataset(self, dataset: Any, names: Sequence[str] | None = None) -> Task:
        """Returns a copy of the task with another data set, but the same processor and options."""
        found = type(self)(self.data, self.model, self.processor, dataset)
        found.options, found.file_names = self.options, names
        return found

    def assets(self) -> dict[str, Any]:
        """Returns the assets that predictions need in addition to the parameters."""
        return self.processor.assets()

    @property
    def fingerprint(self) -> str:
        """Hash of the data; part of the cache key of baseline metrics."""
        return self.dataset.fingerprint

    @property
    def baseline_data(self) -> str:
        """Part of the cache key of baseline metrics.

        It tells whether the baselines are fitted on training and validation data, or on the
        training split alone, if the task supports both.
        """
        return ""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hash of each part of the data, as returned by `tasks.common.data.digests.of_rows`.

        The keys name the parts in messages, such as "train labels". The parts together cover the
        same data as `fingerprint`.
        """
        return self.dataset.parts

    @property
    def settings(self) -> dict[str, Any]:
        """Config values that distinguish runs of one experiment in results, such as the horizon."""
        return {}

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split, with random access.

        Args:
          split: "train", "validation" or "test".
        """
        return self.dataset.splits[split]

    def summary(self) -> dict[str, SplitSummary]:
        """Returns the counts of each split, which are printed before training."""
        return self.dataset.summary()

    def columns(self, split: str) -> Columns:
        """Returns the columns of a split that are summarized before training.

        By default the rows are the examples. The input of a row consists of the arrays of
        `Processor.signature`; its label consists of the other arrays. A task overrides this method
        to compare raw data, such as texts, or to describe other facts, such as sizes before
        truncation and unknown tokens.
        """
        examples = self.examples(split)
        inputs = self.processor.signature()

        def pair(index: int) -> tuple[Arrays, Arrays | None]:
            example = examples[index]
            label = {name: value for name, value in example.items() if name not in inputs}
            return {name: example[name] for name in inputs if name in example}, label or None

        lengths = examples.lengths
        named = lengths if isinstance(lengths, Mapping) else {"positions": lengths}
        sizes = {name: values for name, values in named.items() if values is not None}
        return Columns(len(examples), pair, sizes=sizes, facts=self.fixed_sizes())

    def fixed_sizes(self) -> dict[str, str]:
        """Describes the input arrays whose sizes are the same for all examples.

        Returns:
          A dict for the `facts` of `columns`, with the key "input"; empty without such arrays.
        """
        found = [
            f"{name} {' x '.join(map(str, spec.shape[1:]))}"
            for name, spec in self.processor.signature().items()
            if len(spec.shape) > 2 and all(isinstance(size, int) for size in spec.shape[1:])
        ]
        return {"input": ", ".join(found)} if found else {}

    @classmethod
    def describe_metric(cls, name: str) -> Metric | None:
        """Returns the description of a metric: its content, its unit and which direction is better.

        The result is None for an unknown metric.
        """
        return describe(cls.metric_table, name)

    def with_validation(self) -> Task:
        """Returns a copy of the task whose training split includes the validation split.

        See `launch.engine.config.TrainingConfig.refit`.

        Raises:
          UserError: the task does not support training on the validation split.
        """
        raise UserError(
            "config.training.refit: got True, but this task supports training on "
            "the train split alone; set it to False"
        )

    @property
    def buckets(self) -> Sequence[Bucket] | None:
        """Lengths of padded batches, ascending; None if all examples have the same shape."""
        return getattr(self.processor, "buckets", None)

    # ------------------------------------------------------------------ objective

    @abc.abstractmethod
    def build_model(self, rngs: Any) -> Any:
        """Returns the `nnx.Module` with parameters initialized from `rngs`."""

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch, dropout_key: Any) -> tuple[Any, dict]:
        """Computes the loss of a batch in training.

        Args:
          model: model returned by `build_model`.
          batch: arrays of the examples, with their "weight".
          dropout_key: random key of the step.

        Returns:
          The weighted mean loss, a scalar, and training metrics by name, which are scalars too.
        """

    @abc.abstractmethod
    def evaluate(self, model: Any, batch: Batch) -> tuple[dict, dict]:
        """Computes the statistics and outputs of a batch in one compiled function.

        Returns:
          Statistics and outputs, by name. Statistics are sums over the rows with weight > 0, so
          that those of several batches can be added. Outputs have shape [B, ...]; there are none if
          `decodes` is set.
        """

    @abc.abstractmethod
    def predict(self, model: Any, inputs: Batch, *, fast: bool = False) -> dict:
        """Computes the outputs from which `Processor.decode` makes predictions.

        Args:
          model: model returned by `build_model`.
          inputs: arrays of `Processor.signature`, by name.
          fast: whether to use greedy decoding, as in validation during training; a static argument
            of `jax.jit`.

        Returns:
          Arrays [B, ...] by name.
        """

    def decoder(self, model: Any, inputs: Batch) -> Any:
        """Returns the `tasks.common.decoding.generate.TokenDecoder` that `predict` uses.

        The result is None for a task or a model that does not decode token by token.
        """
        return None

    def attention(self, model: Any, inputs: Batch) -> dict[str, Any]:
        """Returns attention weights [B, ...] by name; empty for a model without attention."""
        return {}

    # ------------------------------------------------------------------ on the host

    @property
    def compiles_options(self) -> bool:
        """True if the compiled functions depend on `options`."""
        return False

    def answers(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Decodes outputs of `predict` to answers, and applies `options` to each.

        Args:
          raw: inputs, as for `Processor.encode`.
          outputs: outputs of `predict`, with one row per input.

        Returns:
          Answers: the JSON objects that `Processor.decode` returns, changed by `chosen`.
        """
        answers = self.processor.decode(raw, outputs)
        return [self.chosen(answer, self.options) for answer in answers]

    @classmethod
    def chosen(cls, answer: dict[str, Any], options: AnswerOptions) -> dict[str, Any]:
        """Applies options to an answer of `Processor.decode` or `launch.exports.reader`.

        Raises:
          UserError: an option has a value that the answer does not support.
        """
        return answer

    @classmethod
    def rows(cls, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the rows of an answer in a table of predictions.

        By default there is one row, with all entries of the answer except the input and the text.
        If the answer has no other entries, input and text are kept.
        """
        keys = [key for key in answer if key not in ("input", "text") or len(answer) <= 2]
        return [{key: answer[key] for key in keys}]

    @abc.abstractmethod
    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Computes the metrics of a split.

        Args:
          statistics: statistics of `evaluate`, summed over the split.
          outputs: outputs of the complete split, in the order of its examples.
          split: name of the split.
        """

    @abc.abstractmethod
    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns a score for each example, [n], whose mean is the primary metric.

        Paired tests between runs compare these scores.
        """

    def intervals(self, outputs: Arrays, split: str) -> dict[str, tuple[float, float]]:
        """Returns 95 % confidence intervals of metrics by name.

        An interval of the primary metric replaces the interval computed from `example_scores`.
        """
        return {}

    def decided(self, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of predictions made with `options`; empty if no option is given."""
        return {}

    def scored_examples(self, split: str) -> np.ndarray:
        """Returns the indices of the examples that `example_scores` has entries for, int [n]."""
        return np.arange(len(self.examples(split)))

    def example_ids(self, split: str) -> np.ndarray:
        """Returns an id of each example, uint64 [n], in the order of `example_scores`.

        Paired comparisons match the examples of two runs by id. By default, the arrays of each
        example are hashed. A task whose arrays depend on the config, such as the tokenizer or image
        size, hashes the raw data instead.
        """
        examples = self.examples(split)
        return digests.ids([examples[index] for index in range(len(examples))])

    def predictions(
        self,
        outputs: Arrays,
        split: str,
        ids: np.ndarray | None = None,
        scores: np.ndarray | None = None,
    ) -> list[dict[str, Any]]:
        """Returns a record for each example, with JSON values, in the order of `example_scores`.

        Args:
          outputs: outputs of the complete split, in the order of its examples.
          split: name of the split.
          ids: `example_ids` of the split; None to compute them.
          scores: `example_scores` of the outputs; None to compute them.

        Returns:
          For each example, a dict with "id" (16 hexadecimal digits), the fields of
          `ExamplePrediction`, and "score".
        """
        ids = self.example_ids(split) if ids is None else ids
        scores = self.example_scores(outputs, split) if scores is None else scores
        found = self.example_predictions(outputs, split)
        if self.file_names is not None and len(self.file_names) == len(found):
            pairs = zip(found, self.file_names, strict=True)
            found = [row if row.input else row._replace(input=name) for row, name in pairs]
        return [
            {
                "id": f"{int(number):016x}",
                **row._asdict(),
                "confidence": seven_digits(row.confidence),
                "score": seven_digits(score),
            }
            for number, row, score in zip(ids, found, scores, strict=True)
        ]

    def example_predictions(self, outputs: Arrays, split: str) -> Sequence[ExamplePrediction]:
        """Returns input, target and prediction of each example, in the order of `example_scores`.

        Args:
          outputs: outputs of the complete split, in the order of its examples.
          split: name of the split.
        """
        return [ExamplePrediction()] * len(self.example_ids(split))

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the axes of the attention weights of one input, for the name of each array.

        Positions after the last label are padding. Arrays of weights that are missing in the result
        have no named axes.

        Args:
          raw: input, as for `Processor.encode`.
          outputs: model outputs for this input, with one row.
          attention: attention weights for this input, without a batch dimension.
        """
        return {}

    def explainer(self) -> Explainer:
        """Returns the explainer that explains predictions for single inputs; see `tasks.explainer`.

        Raises:
          UserError: the task or its model has no explainer.
        """
        raise UserError(
            "--workdir: runs of this task cannot be explained; name a run of another task"
        )

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns the figures for the report of a run.

        By default these show target and prediction of each shown example, if
        `example_predictions` returns predictions.
        """
        drawn: list[Figure] = []
        scored = self.scored_examples(results.split).tolist()
        predictions = self.example_predictions(results.outputs, results.split)
        rows = dict(zip(scored, predictions, strict=True))
        for example in results.shown:
            row = rows[example.index]
            if row.prediction is not None:
                texts = str(row.prediction), str(row.target), row.input or ""
                drawn.append(Transcript(results.caption(example), *texts))
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Returns figures of the prediction and the attention weights for each raw input.

        Args:
          raw: inputs, as for `Processor.encode`.
          outputs: model outputs for these inputs.
          attention: attention weights for these inputs, with one row per input.
        """
        return [[] for _ in raw]

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns, for the name of each baseline, a function that fits and evaluates the baseline.

        The function returns the metrics of the test split. If it also returns "example_scores" [n],
        reports show a paired confidence interval of the model's gain over the baseline.
        """
        return {}


def seven_digits(value: float | None) -> float | None:
    """Rounds a number to seven digits, about the precision of float32.

    Returns None for None and for numbers that are not finite.
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")
