"""Base class of classification tasks: loss, evaluation and metrics computed from logits.

In shapes, B is the number of examples in a batch, n the number of examples in a split, and C the
number of classes.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.answers import AnswerOptions
from tasks.common.class_weights import NONE, ClassWeightsConfig
from tasks.common.data.cells import join_names
from tasks.common.errors import UserError
from tasks.common.losses import cross_entropy
from tasks.common.metrics.classification import (
    CLASSIFICATION,
    classification_intervals,
    classification_metrics,
    wilson_interval,
)
from tasks.explainer import Description, Explainer, Subject
from tasks.task import Arrays, Batch, ExamplePrediction, Task


class ClassificationTask(Task):
    """A task with one class per example; subclasses only define `logits`.

    The processor has the attribute `labels`, the names of the classes; each split of the data set
    has the attribute `labels`, int [n]. A batch contains "label", int [B].
    """

    primary_metric = "accuracy"
    table_metrics = ("accuracy", "macro_f1", "mcc")
    metric_table = CLASSIFICATION
    answer_options = dict.fromkeys(("top_k", "threshold", "positive"))

    def with_options(self, options: AnswerOptions) -> ClassificationTask:
        """Returns a copy of the task that uses the given options.

        Raises:
          UserError: as for `Task.with_options`, or the positive class is unknown.
        """
        _check_positive(options, self.labels)
        return super().with_options(options)

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes."""
        return self.processor.labels

    @functools.cached_property
    def class_weights(self) -> np.ndarray | None:
        """Weights of the classes in the training loss, [C]; None if all are equal.

        The weights come from a model config that is a `ClassWeightsConfig`. With any other model
        config, all weights are equal.
        """
        if not isinstance(self.model, ClassWeightsConfig) or self.model.class_weights == NONE:
            return None
        return self.model.weights(self.dataset.splits["train"].labels, self.labels)

    def weighted_cross_entropy(self, logits: Any, labels: Any) -> Any:
        """Computes the cross-entropy of each example, multiplied by the weight of its class.

        Args:
          logits: [B, C].
          labels: int [B].

        Returns:
          [B].
        """
        losses = cross_entropy(logits, labels)
        if self.class_weights is None:
            return losses
        return losses * jnp.asarray(self.class_weights)[labels]

    @abc.abstractmethod
    def logits(self, model: Any, batch: Batch, dropout_key: Any = None) -> Any:
        """Computes the logits of a batch.

        Args:
          model: model returned by `build_model`.
          batch: arrays of the examples.
          dropout_key: random key of dropout in training; None for evaluation.

        Returns:
          [B, C].
        """

    def loss(self, model: Any, batch: Batch, dropout_key: Any) -> tuple[Any, dict]:
        """Computes the weighted mean cross-entropy, and the accuracy as a training metric.

        Both are computed from the same logits, under dropout.
        """
        logits, weight = self.logits(model, batch, dropout_key), batch["weight"]
        total = jnp.maximum(jnp.sum(weight), 1.0)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        losses = self.weighted_cross_entropy(logits, batch["label"])
        accuracy = jnp.sum(correct * weight) / total
        return jnp.sum(losses * weight) / total, {"accuracy": accuracy}

    def evaluate(self, model: Any, batch: Batch) -> tuple[dict, dict]:
        """Computes the statistics and the class probabilities of a batch.

        Returns:
          Statistics: the sum of the cross-entropies, the sum of the example weights, and the number
          of examples of each true class (row) and predicted class (column), "confusion", int32
          [C, C]. Outputs: "probabilities", [B, C].
        """
        logits, classes = self.logits(model, batch), len(self.labels)
        pair = batch["label"] * classes + jnp.argmax(logits, axis=-1)
        real = (batch["weight"] > 0).astype(jnp.int32)
        counts = jnp.zeros(classes * classes, jnp.int32).at[pair].add(real)
        statistics = {
            "loss": jnp.sum(cross_entropy(logits, batch["label"]) * batch["weight"]),
            "weight": jnp.sum(batch["weight"]),
            "confusion": counts.reshape(classes, classes),
        }
        return statistics, {"probabilities": jax.nn.softmax(logits, axis=-1)}

    def predict(self, model: Any, inputs: Batch, *, fast: bool = False) -> dict:
        """Returns "probabilities", the probability of each class, [B, C]."""
        return {"probabilities": jax.nn.softmax(self.logits(model, inputs), axis=-1)}

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns "loss", the mean cross-entropy, and the metrics that `scores` computes."""
        loss = float(statistics["loss"] / statistics["weight"])
        return {"loss": loss, **self.scores(predicted_classes(outputs), split)}

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns 1 for each correctly classified example, else 0."""
        correct = predicted_classes(outputs) == self.dataset.splits[split].labels
        return correct.astype(np.float32)

    def inputs(self, split: str) -> Sequence[str | None]:
        """Returns the input of each example of a split as a text.

        By default, all entries are None.
        """
        return [None] * len(self.dataset.splits[split].labels)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns, for each example, the true class, the predicted class and its probability."""
        best, names = outputs["probabilities"].max(axis=-1), self.labels
        rows = zip(
            self.inputs(split),
            self.dataset.splits[split].labels,
            predicted_classes(outputs),
            best,
            strict=True,
        )
        return [
            ExamplePrediction(text, names[true], names[predicted], float(probability))
            for text, true, predicted, probability in rows
        ]

    def baseline_metrics(self, predicted: np.ndarray) -> dict[str, Any]:
        """Computes the metrics of a baseline on the test split, and its "example_scores".

        Args:
          predicted: classes that the baseline predicts for the test split, int [n].
        """
        correct = predicted == self.dataset.splits["test"].labels
        return {**self.scores(predicted, "test"), "example_scores": correct.astype(np.float32)}

    def scores(self, predicted: np.ndarray, split: str) -> dict[str, float]:
        """Compares predicted classes, int [n], with the true classes of a split.

        The metrics are those of `classification_metrics`.
        """
        return classification_metrics(self.dataset.splits[split].labels, predicted, self.labels)

    def intervals(self, outputs: Arrays, split: str) -> dict[str, tuple[float, float]]:
        """Returns 95 % confidence intervals of the metrics by name.

        The result has the intervals of `classification_intervals`, and Wilson intervals of the
        fractions that `decided` returns.
        """
        labels = self.dataset.splits[split].labels
        found = classification_intervals(labels, predicted_classes(outputs), self.labels)
        return found | {
            name: wilson_interval(*counts)
            for name, counts in self._decided_counts(outputs, split).items()
            if counts[1]
        }

    def decided(self, outputs: Arrays, split: str) -> dict[str, float]:
        """Computes metrics of the labels that are chosen with the `options`.

        With `top_k`, the result has `top_<k>_accuracy`. With `threshold` alone, it has `coverage`,
        the fraction of examples that get a label, and `covered_accuracy`, the accuracy on these
        examples. With `positive`, with or without `threshold`, it has `decided_accuracy` instead,
        and `decided_precision`, `decided_recall` and `decided_f1` of the positive class. A fraction
        is 0 if its denominator is 0.
        """
        counts = self._decided_counts(outputs, split)
        found = {name: hits / max(total, 1) for name, (hits, total) in counts.items()}
        if "decided_recall" in found:
            hits, predicted = counts["decided_precision"]
            found["decided_f1"] = 2 * hits / max(predicted + counts["decided_recall"][1], 1)
        return found

    def _decided_counts(self, outputs: Arrays, split: str) -> dict[str, tuple[int, int]]:
        """Returns (number of hits, number of examples) for each fraction that `decided` returns."""
        true = np.asarray(self.dataset.splits[split].labels)
        options, found = self.options, {}
        # Rounded like the probabilities in answers, so that metrics and answers choose the same
        # labels.
        probabilities = np.round(np.asarray(outputs["probabilities"], np.float64), 4)
        order = np.argsort(-np.asarray(outputs["probabilities"]), axis=-1, kind="stable")
        if options.top_k is not None:
            hits = (order[:, : options.top_k] == true[:, None]).any(axis=-1)
            found[f"top_{options.top_k}_accuracy"] = int(hits.sum()), len(true)
        if options.positive is not None:
            positive = list(self.labels).index(options.positive)
            threshold = _DECIDED if options.threshold is None else options.threshold
            yes = probabilities[:, positive] >= threshold
            others = np.where(order[:, 0] == positive, order[:, 1], order[:, 0])
            label = np.where(yes, positive, others)
            both = int((yes & (true == positive)).sum())
            found["decided_accuracy"] = int((label == true).sum()), len(true)
            found["decided_precision"] = both, int(yes.sum())
            found["decided_recall"] = both, int((true == positive).sum())
        elif options.threshold is not None:
            covered = probabilities.max(axis=-1) >= options.threshold
            right = covered & (order[:, 0] == true)
            found["coverage"] = int(covered.sum()), len(true)
            found["covered_accuracy"] = int(right.sum()), int(covered.sum())
        return found

    @classmethod
    def chosen(cls, answer: dict[str, Any], options: AnswerOptions) -> dict[str, Any]:
        """Applies the options to an answer: selects the label, and keeps at most `top_k` classes.

        Without a positive class, the label is None if its probability is below the threshold.
        """
        if not options.given:
            return answer
        ranked, best = answer["probabilities"], answer["label"]
        _check_positive(options, list(ranked))
        label, shown = best, answer["text"].removeprefix(best)
        if options.positive is not None:
            threshold = _DECIDED if options.threshold is None else options.threshold
            if ranked[options.positive] >= threshold:
                label = options.positive
            elif best == options.positive:
                label = [*ranked][1]
        elif options.threshold is not None and ranked[best] < options.threshold:
            label = None
        if options.top_k is not None:
            ranked = dict([*ranked.items()][: options.top_k])
            shown = "  " + _ranked_line(ranked)
        text = f"{_NO_LABEL if label is None else label}{shown}"
        return {**answer, "label": label, "probabilities": ranked, "text": text}

    @classmethod
    def rows(cls, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns one table row for an answer, with the probability of the label as `confidence`.

        If the label is None, `confidence` is the probability of the most probable class.
        """
        ranked, label = answer["probabilities"], answer["label"]
        confidence = ranked.get(label, max(ranked.values())) if ranked else None
        rest = {key: answer[key] for key in answer if key not in ("input", "text", "label")}
        return [{"label": label, "confidence": confidence, **rest}]


# Default threshold for the probability of the positive class.
_DECIDED = 0.5
# Text printed for an input without a label.
_NO_LABEL = "(uncertain)"


def _check_positive(options: AnswerOptions, labels: Sequence[str]) -> None:
    if options.positive is not None and options.positive not in labels:
        raise UserError(
            f"--positive: got {options.positive!r}, expected one of the classes "
            f"{join_names(sorted(labels))}"
        )


def _ranked_line(ranked: dict[str, float], shown: int | None = None) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in list(ranked.items())[:shown])


def check_class_weights(
    model: ClassWeightsConfig, labels: np.ndarray, names: Sequence[str]
) -> None:
    """Checks that the class weights in a model config fit the classes of the data.

    Args:
      model: config of the model.
      labels: int [n], classes of the training examples.
      names: names of the classes.

    Raises:
      UserError: the number of weights differs from the number of classes, or a weight names an
        unknown class.
    """
    try:
        model.weights(labels, names)
    except ValueError as error:
        raise UserError(f"config.model.{error}") from None


def predicted_classes(outputs: Arrays) -> np.ndarray:
    """Returns the most probable class of each example, int [n]."""
    return np.argmax(outputs["probabilities"], axis=-1)


def classes_by_probability(
    raw: Sequence[str], probabilities: np.ndarray, labels: Sequence[str], shown: int | None = None
) -> list[dict[str, Any]]:
    """Converts class probabilities to an answer for each input.

    Args:
      raw: inputs.
      probabilities: class probabilities, [inputs, C].
      labels: names of the classes.
      shown: number of classes in the printed text; None for all.

    Returns:
      For each input, a JSON object with "input"; "label", the most probable class; "probabilities"
      by class name, in descending order; and "text", the line to print.
    """
    answers = []
    for source, row in zip(raw, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        ranked = {labels[index]: round(float(row[index]), 4) for index in order}
        label = labels[order[0]]
        answer = {"input": source, "label": label, "probabilities": ranked}
        answers.append({**answer, "text": f"{label}  {_ranked_line(ranked, shown)}"})
    return answers


class ClassificationExplainer(Explainer):
    """Explains the log-odds of the predicted class."""

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns "label", the predicted class, int [1]."""
        return {"label": predicted_classes(outputs)}

    def described(self, subject: Subject, **parts: Any) -> Description:
        """Returns the description of an example, with its predicted and true class.

        Args:
          subject: the example.
          **parts: the fields of `Description` that this method does not compute.
        """
        labels, probabilities = self.task.labels, subject.outputs["probabilities"][0]
        best, target = int(np.argmax(probabilities)), None
        if subject.index is not None:
            target = labels[self.task.dataset.splits[subject.split].labels[subject.index]]
        return Description(
            prediction=labels[best],
            explained=f"log-odds of {labels[best]}",
            target=target,
            confidence=float(probabilities[best]),
            correct=None if target is None else target == labels[best],
            **parts,
        )
