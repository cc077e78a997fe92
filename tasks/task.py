"""The contract between a task and the engine that trains, evaluates and explains it.

A task lives in tasks/<name>/task.py; the module's `TASK` is its class. It has three parts:

* the data set: examples by split, and hashes of them;
* the processor: converts raw inputs to arrays and outputs to answers, on the host, with what was
  fitted on the training split (vocabulary, labels, scales);
* the objective: model, loss, evaluation, prediction and metrics.

Methods that take a model run under `jax.jit` on batches that a mesh may shard. They are pure, and
rows whose `weight` is 0 (padding of the last batch) do not contribute.
"""

from __future__ import annotations

import abc
import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import Bucket, Examples
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.errors import UserError
from tasks.figures import Figure

__all__ = ["SPLITS", "ArraySpec", "Arrays", "Batch", "Pretrained", "Processor", "Task"]

Arrays = Mapping[str, np.ndarray]
"""Arrays on the host by name."""
Batch = Mapping[str, Any]
"""Arrays on devices by name."""


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An input or output array.

    Attributes:
      shape: sizes, with names for those that vary: ("batch", "length"), ("batch", 28, 28, 1).
      dtype: name of the dtype.
      padding: value of padding; None if the array is not padded.
    """

    shape: tuple[str | int, ...]
    dtype: str
    padding: Any = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A finished run whose parameters another run starts from.

    Attributes:
      folder: run directory, for messages.
      task: name of its task.
      data, model: its configs.
      assets: see `Processor.assets`.
      params: parameters of its best step, nested dicts of NumPy arrays; keys of lists are strings.
    """

    folder: Path
    task: str
    data: Any
    model: Any
    assets: Mapping[str, Any]
    params: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Processor(abc.ABC):
    """Converts raw inputs to arrays and outputs to answers, on the host.

    A subclass is a frozen dataclass. Its fields after `data` and `model` were fitted on the
    training split: JSON values, NumPy arrays, or objects with `to_json` and `from_json`. They are
    the content of assets.json. A field or property `buckets` has the lengths of padded batches,
    ascending, if there are any.

    Attributes:
      data, model: configs.
    """

    data: Any
    model: Any

    @property
    def input_column(self) -> str | None:
        """Column that `launch.predict` reads of a table of inputs; None if it reads no tables."""
        return None

    def assets(self) -> dict[str, Any]:
        """Returns the fitted fields as JSON values."""
        found = {}
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            found[field.name] = value.to_json() if hasattr(value, "to_json") else value
        return found

    @classmethod
    def from_assets(cls, data: Any, model: Any, assets: Mapping[str, Any]) -> Processor:
        """Returns the processor of saved assets; inverts `assets`.

        Raises:
          KeyError: a field is missing.
        """
        types, found = typing.get_type_hints(cls), {}
        for field in dataclasses.fields(cls)[2:]:
            value, kind = assets[field.name], types[field.name]
            if types[field.name] is np.ndarray:
                value = np.asarray(value, np.float32)
            found[field.name] = kind.from_json(value) if hasattr(kind, "from_json") else value
        return cls(data, model, **found)

    @abc.abstractmethod
    def encode(self, raw: Sequence[str]) -> Examples:
        """Converts raw inputs to examples without labels.

        Raises:
          UserError: an input cannot be read.
        """

    @abc.abstractmethod
    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns one JSON object per input; its "text" is the line to print.

        Args:
          raw: as for `encode`.
          outputs: of `Task.predict`, first dimension that of `raw`.
        """

    @abc.abstractmethod
    def signature(self) -> dict[str, ArraySpec]:
        """Returns the arrays that `Task.predict` takes, by name."""

    def table_input(self, value: str, folder: Path) -> str:
        """Returns the raw input of a cell of `input_column`; by default the cell.

        Args:
          value: of the cell.
          folder: of the table, to which paths are relative.
        """
        return value


class Task(abc.ABC):
    """Base class of every task.

    Class attributes:
      data_config: frozen dataclass of `config.data`; has a `name` field.
      model_configs: name -> frozen dataclass of `config.model`, each with a `name` field.
      processor_type: class of the processor.
      primary_metric: metric on the validation split that selects the best step.
      higher_is_better: direction of that metric.
      table_metrics: metrics that tables show, the primary one first.
      condition_metrics: regular expression of the names of metrics under further conditions, which
        tables show in columns of their own; empty for none.
      averaged_over: key of `settings` over whose values tables show the mean; empty for none.
      sharding_rules: see `launch.engine.sharding`.
      baseline_version: raised when the code of a baseline changes, so that cached metrics of the
        old one are not shown.
      decodes: whether `predict` runs a decoding loop. `evaluate` then returns statistics of teacher
        forcing alone, and evaluation calls `predict` too.
      overlap: number of consecutive examples with overlapping targets, such as the windows of a
        series.

    Attributes:
      data, model: configs.
      processor: see `Processor`.
      dataset: object with `splits`, `fingerprint`, `parts` (hash of each part) and `summary()`;
        None if only predictions are wanted.
    """

    data_config: ClassVar[type]
    model_configs: ClassVar[Mapping[str, type]]
    processor_type: ClassVar[type[Processor]]
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    table_metrics: ClassVar[Sequence[str]]
    condition_metrics: ClassVar[str] = ""
    averaged_over: ClassVar[str] = ""
    sharding_rules: ClassVar[Sequence[tuple[str, tuple[str | None, ...]]]] = ()
    baseline_version: ClassVar[int] = 1
    decodes: bool = False
    overlap: int = 1

    def __init__(self, data: Any, model: Any, processor: Any, dataset: Any = None):
        """Use `prepare` or `restore`."""
        self.data, self.model, self.processor, self.dataset = data, model, processor, dataset

    # ------------------------------------------------------------------ construction

    @classmethod
    def prepare(cls, data: Any, model: Any, paths: Paths, **options: Any) -> Task:
        """Fetches, builds and reads the data, and fits the processor on the training split.

        Idempotent and cached.

        Args:
          data, model: configs.
          paths: folders of data and caches.
          **options: passed to `fit`. For a model config whose `init_from` names a run directory:
            `pretrained`, a `Pretrained`; or `assets`, those of the run itself if it has parameters
            already.

        Raises:
          UserError: the configs do not fit each other, or the data cannot be read.
        """
        cls.check(data, model)
        dataset = cls.load(data, paths)
        return cls(data, model, cls.fit(dataset, data, model, paths, **options), dataset)

    @classmethod
    def restore(cls, data: Any, model: Any, assets: Mapping[str, Any]) -> Task:
        """Returns the task of a run directory's assets, able to predict but without data."""
        return cls(data, model, cls.processor_type.from_assets(data, model, assets))

    @classmethod
    def check(cls, data: Any, model: Any) -> None:
        """Checks that the configs fit each other.

        Raises:
          UserError: they do not.
        """
        return

    @classmethod
    @abc.abstractmethod
    def load(cls, data: Any, paths: Paths) -> Any:
        """Reads the data set; see the attribute `dataset`.

        Raises:
          UserError: the data cannot be read.
        """

    @classmethod
    def fit(cls, dataset: Any, data: Any, model: Any, paths: Paths, **options: Any) -> Processor:
        """Fits the processor on the training split; by default it has no fitted fields."""
        return cls.processor_type(data, model)

    def assets(self) -> dict[str, Any]:
        """Returns what prediction needs beside the parameters; see `Processor.assets`."""
        return self.processor.assets()

    @property
    def fingerprint(self) -> str:
        """Hash of the data; part of the cache key of baseline metrics."""
        return self.dataset.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hash of each part of the data by a name for messages ("train labels").

        Together they cover the data that `fingerprint` covers; see
        `tasks.common.data.digests.of_rows`.
        """
        return self.dataset.parts

    @property
    def settings(self) -> dict[str, Any]:
        """Config values that distinguish runs of one experiment in results (horizon, speaker)."""
        return {}

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> Examples:
        """Returns random access to the examples of "train", "validation" or "test"."""
        return self.dataset.splits[split]

    def summary(self) -> dict[str, SplitSummary]:
        """Returns the counts of each split, which are printed before training."""
        return self.dataset.summary()

    def with_validation(self) -> Task:
        """Returns the task with the validation split added to the training split.

        See `launch.engine.config.TrainingConfig.refit`.

        Raises:
          UserError: not supported.
        """
        raise UserError("config.training.refit: this task is tested as fitted on train alone")

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
        """Returns the weighted mean loss [] and scalar training metrics."""

    @abc.abstractmethod
    def evaluate(self, model: Any, batch: Batch) -> tuple[dict, dict]:
        """Evaluates a batch in one program.

        Returns:
          Statistics, sums over the rows with weight > 0, which are added over batches; and outputs
          [B, ...], empty if the task `decodes`.
        """

    @abc.abstractmethod
    def predict(self, model: Any, inputs: Batch, *, fast: bool = False) -> dict:
        """Returns outputs [B, ...] for the arrays of `Processor.signature`.

        Args:
          model: of `build_model`.
          inputs: arrays by name.
          fast: static; greedy decoding, for validation during training.
        """

    def attention(self, model: Any, inputs: Batch) -> dict[str, Any]:
        """Returns attention weights [B, ...] by name; empty for a model without attention."""
        return {}

    # ------------------------------------------------------------------ on the host

    @abc.abstractmethod
    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of a split from summed statistics and outputs in id order."""

    @abc.abstractmethod
    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns scores [n] whose mean is the primary metric, for paired comparisons."""

    def example_ids(self, split: str) -> np.ndarray:
        """Returns an id of each example, uint64 [n], in the order of `example_scores`.

        Runs are compared example by example where these are equal. The default hashes the arrays
        of each example. A task whose config changes these (a tokenizer, a size) hashes what they
        were made of.
        """
        examples = self.examples(split)
        return digests.ids([examples[index] for index in range(len(examples))])

    def figures(
        self, statistics: Arrays, outputs: Arrays, split: str, attention: Arrays
    ) -> list[Figure]:
        """Returns the figures of the report.

        Args:
          statistics: summed over the split.
          outputs: of the whole split, in id order.
          split: name of the split.
          attention: weights of the first few examples of the split, in id order.
        """
        return []

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Returns figures for each raw input: what was found, and where the model attended.

        Args:
          raw: as for `Processor.encode`.
          outputs: of these inputs.
          attention: of these inputs, first dimension as that of `outputs`.
        """
        return [[] for _ in raw]

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns cheap baselines by name; each call fits one and returns its metrics on test.

        "example_scores" [n] among them gives the model's gain a paired confidence interval.
        """
        return {}
