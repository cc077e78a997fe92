"""The contract between a task and the engine that trains, evaluates and explains it.

A task lives in tasks/<name>/task.py and is found there by its folder's name; the module's `TASK` is
its class. It knows its data, its models and its metrics, and nothing of devices, checkpoints or
loggers. The methods that take a model run inside `jax.jit`, on batches that a mesh may have split:
they are pure, and a row whose `weight` is 0 (padding of a last batch) counts for nothing.
"""

from __future__ import annotations

import abc
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

__all__ = ["SPLITS", "Task"]


class Task(abc.ABC):
    """Base of every task.

    Class attributes:
      data_config: frozen dataclass of `config.data`; has a `name` field.
      model_configs: name -> frozen dataclass of `config.model`, each with a `name` field.
      primary_metric: metric on the validation split by which the best step is chosen.
      higher_is_better: direction of that metric.
      table_metrics: metrics that tables show, the primary one first.
      condition_metrics: regular expression of the names of metrics under further conditions, or of
        ways to fail, which tables show apart beside the primary one, of runs that have them; none
        where empty.
      averaged_over: a setting, of `settings`, over whose values tables show the mean too; none
        where empty.
      sharding_rules: see `launch.engine.sharding`.
      baseline_version: to be raised when a baseline's code changes, so that no cached figure of
        the old one is shown.
      overlap: how many examples in a row have a part of their truth in common, such as the windows
        of a series; an instance may know better.
    """

    data_config: ClassVar[type]
    model_configs: ClassVar[Mapping[str, type]]
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    table_metrics: ClassVar[Sequence[str]]
    condition_metrics: ClassVar[str] = ""
    averaged_over: ClassVar[str] = ""
    sharding_rules: ClassVar[Sequence[tuple[str, tuple[str | None, ...]]]] = ()
    baseline_version: ClassVar[int] = 1
    overlap: int = 1

    # ------------------------------------------------------------------ making

    @classmethod
    @abc.abstractmethod
    def prepare(cls, data: Any, model: Any, paths: Paths) -> Task:
        """Fetches, builds and reads the data, and fits what is fitted on the train split.

        Idempotent and cached; raises UserError with one line where the data cannot be had. Where a
        model config has a field `init_from` that names a run folder, what that run learned comes
        too, as `pretrained`: see `tasks.common.pretrained`; or, for a run whose weights are there
        already, its own `assets`.
        """

    @classmethod
    @abc.abstractmethod
    def restore(cls, data: Any, model: Any, assets: Mapping[str, Any]) -> Task:
        """The task from a run folder's assets alone, able to predict but without data."""

    @abc.abstractmethod
    def assets(self) -> dict[str, Any]:
        """What prediction needs beside the weights (labels, tokenizer), as JSON values."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of the data and of what was fitted on it; keys the cache of the baselines."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hash of each part of the data, by a name for messages ('train labels'), so that a run can
        tell which part has changed; see `tasks.common.data.digests.of_rows`. Together they cover
        all that `fingerprint` does.
        """
        return {"data": self.fingerprint}

    @property
    def settings(self) -> dict[str, Any]:
        """What sets runs of one experiment apart in results (a horizon, a held-out speaker)."""
        return {}

    # ------------------------------------------------------------------ data

    @abc.abstractmethod
    def examples(self, split: str) -> Examples:
        """Random access to the examples of 'train', 'validation' or 'test'."""

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split, printed before training; by default the examples alone."""
        return {split: SplitSummary(len(self.examples(split))) for split in SPLITS}

    def with_validation(self) -> Task:
        """The same task, whose train split holds the validation split too: see
        `launch.engine.config.TrainingConfig.refit`.

        Raises:
          UserError: the task's protocol knows no such thing.
        """
        raise UserError("config.training.refit: this task is tested as fitted on train alone")

    @property
    def buckets(self) -> Sequence[Bucket] | None:
        """Lengths of padded batches, ascending; None where every example has one shape."""
        return None

    # ------------------------------------------------------------------ model

    @abc.abstractmethod
    def build_model(self, rngs: Any) -> Any:
        """The `nnx.Module`, its weights drawn from `rngs`."""

    @abc.abstractmethod
    def loss(self, model: Any, batch: Mapping[str, Any], dropout_key: Any) -> tuple[Any, dict]:
        """Mean loss over the rows by weight, and further scalar training metrics."""

    @abc.abstractmethod
    def batch_statistics(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Additive statistics of one batch: sums, weights, counts, a confusion matrix.

        Compiled apart from `outputs`: what needs decoding is better counted in `finalize`.
        """

    @abc.abstractmethod
    def outputs(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs for each example, first dimension B; needs no labels in the batch."""

    def attention(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Attention weights by name, first dimension B; empty for a model without attention."""
        return {}

    # ------------------------------------------------------------------ on the host

    @abc.abstractmethod
    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """Named metrics of a split from summed statistics and gathered outputs in id order."""

    @abc.abstractmethod
    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """[n] a figure for each example whose mean is the primary metric: for paired tests."""

    def example_ids(self, split: str) -> np.ndarray:
        """Returns an id of each example, uint64 [n], in the order of `correctness`.

        Two runs are compared example by example where these are equal. The default hashes the
        arrays of each example; a task whose config changes these (a tokenizer, a size) hashes what
        they were made of.
        """
        examples = self.examples(split)
        return digests.ids([examples[index] for index in range(len(examples))])

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """Pictures for the report.

        Args:
          statistics: summed over the split.
          outputs: of the whole split, in id order.
          split: its name.
          attention: weights of the split's first few examples, in id order.
        """
        return []

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Cheap baselines by name; each call fits one and gives its metrics on test.

        Among them may be "correctness", [n], as `correctness` tells it of the test split: then the
        model's gain is told with a paired interval.
        """
        return {}

    # ------------------------------------------------------------------ predict

    @property
    def input_column(self) -> str | None:
        """Column that `launch.predict` reads of a table of inputs; None: it reads no tables."""
        return None

    def table_input(self, value: str, folder: Path) -> str:
        """Returns the input that a cell of that column stands for; by default the cell.

        Args:
          value: of the cell.
          folder: of the table, to which paths are relative.
        """
        return value

    @abc.abstractmethod
    def inputs(self, raw: Sequence[str]) -> Examples:
        """Examples without labels from what a person typed, one a string."""

    @abc.abstractmethod
    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """For each input a JSON object; its 'text' is the line that a person reads."""

    def pictures(
        self,
        raw: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[list[Figure]]:
        """For each input what was found in it and where the model looked, as figures to write.

        Args:
          raw: as for `inputs`.
          outputs: of these inputs, as for `describe`.
          attention: weights of these inputs, first dimension as that of `outputs`.
        """
        return [[] for _ in raw]
