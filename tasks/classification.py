"""Base class of classification tasks: loss, evaluation and metrics computed from logits."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.losses import cross_entropy
from tasks.common.metrics.classification import classification_metrics
from tasks.task import Arrays, Batch, ExamplePrediction, Task


class ClassificationTask(Task):
    """A task with one class per example; subclasses only define `logits`.

    The processor has the attribute `labels`, the names of the classes; each split of the data set
    has the attribute `labels`, int [n]. A batch contains "label", int [B].
    """

    primary_metric = "accuracy"
    table_metrics = ("accuracy", "macro_f1", "mcc")

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes."""
        return self.processor.labels

    @abc.abstractmethod
    def logits(self, model: Any, batch: Batch, dropout_key: Any = None) -> Any:
        """Returns logits [B, classes]; if a random key is given, with dropout as in training."""

    def loss(self, model: Any, batch: Batch, dropout_key: Any) -> tuple[Any, dict]:
        """Computes the cross-entropy loss, and the accuracy under dropout as a training metric."""
        logits, weight = self.logits(model, batch, dropout_key), batch["weight"]
        total = jnp.maximum(jnp.sum(weight), 1.0)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        losses = cross_entropy(logits, batch["label"])
        accuracy = jnp.sum(correct * weight) / total
        return jnp.sum(losses * weight) / total, {"accuracy": accuracy}

    def evaluate(self, model: Any, batch: Batch) -> tuple[dict, dict]:
        """Sums cross-entropy, example weights and confusion counts [true, predicted class]."""
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
        """Returns probabilities [B, classes]."""
        return {"probabilities": jax.nn.softmax(self.logits(model, inputs), axis=-1)}

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the loss and `classification_metrics`."""
        loss = float(statistics["loss"] / statistics["weight"])
        return {"loss": loss, **self.scores(predicted_classes(outputs), split)}

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns 1 for each correctly classified example, else 0."""
        correct = predicted_classes(outputs) == self.dataset.splits[split].labels
        return correct.astype(np.float32)

    def inputs(self, split: str) -> Sequence[str | None]:
        """Returns the inputs of a split as texts; by default there are none."""
        return [None] * len(self.dataset.splits[split].labels)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns true and predicted class, and the probability of the predicted class."""
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

    def scores(self, predicted: np.ndarray, split: str) -> dict[str, float]:
        """Returns `classification_metrics` of predicted classes, int [n], on a split."""
        return classification_metrics(self.dataset.splits[split].labels, predicted, self.labels)


def predicted_classes(outputs: Arrays) -> np.ndarray:
    """Returns the most probable class of each example, int [n]."""
    return np.argmax(outputs["probabilities"], axis=-1)


def classes_by_probability(
    raw: Sequence[str], probabilities: np.ndarray, labels: Sequence[str], shown: int | None = None
) -> list[dict[str, Any]]:
    """Returns a prediction with class probabilities for each input.

    Args:
      raw: inputs.
      probabilities: class probabilities, [inputs, classes].
      labels: names of the classes.
      shown: number of classes in the printed text; None for all.

    Returns:
      JSON objects with "input", "label", "probabilities" in descending order, and "text".
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
