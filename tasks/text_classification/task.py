"""Text classification: the task contract over `data.py` and `model.py`."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks.classification import classes_by_probability
from tasks.common.backbones import recurrent, transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.common.metrics.classification import classification_metrics
from tasks.common.text.tokenizer import CLS, PAD, UNKNOWN, Tokenizer
from tasks.figures import AttendedText, ConfusionMatrix, Figure
from tasks.task import OldTask, Pretrained
from tasks.text_classification import baselines as linear
from tasks.text_classification import model as models
from tasks.text_classification.data import DataConfig, TextData, load
from tasks.text_classification.finetuning import Start, start_from

# Quantiles of the train lengths at which texts are padded; compiled once each.
_BUCKET_QUANTILES = (0.5, 0.8, 0.95, 1.0)


class TextExamples:
    """Encoded texts with or without labels, as `tasks.common.data.pipeline` reads them."""

    padded = {"tokens": PAD}  # noqa: RUF012 - part of a protocol

    def __init__(self, tokens: Sequence[np.ndarray], labels: np.ndarray | None):
        """Args: ids of each text, not empty; class of each text."""
        self._tokens, self._labels = tokens, labels
        self.lengths = np.array([len(ids) for ids in tokens], np.int32)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def unknown(self) -> np.ndarray:
        """int [any], indices of the texts without a known token."""
        known = [np.any((ids != UNKNOWN) & (ids != CLS)) for ids in self._tokens]
        return np.flatnonzero(~np.array(known, bool))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {"tokens": self._tokens[index], "length": self.lengths[index]}
        if self._labels is not None:
            row["label"] = self._labels[index]
        return row


class TextClassification(OldTask):
    """Texts to one class each."""

    data_config = DataConfig
    model_configs = models.MODEL_CONFIGS
    primary_metric = "accuracy"
    table_metrics = ("accuracy", "macro_f1", "mcc")
    baseline_version = 2
    sharding_rules = transformer.SHARDING_RULES + recurrent.SHARDING_RULES

    def __init__(
        self,
        data: DataConfig,
        model: Any,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        buckets: Sequence[int],
        texts: TextData | None = None,
        start: Start | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data: data config.
          model: one of MODEL_CONFIGS.
          tokenizer: fitted on the train split.
          labels: names of the classes.
          buckets: lengths to which batches are padded.
          texts: the splits; None where only predictions are wanted.
          start: weights to start from; None: at random, or other weights take their place.
        """
        self.data, self.model, self.tokenizer = data, model, tokenizer
        self.labels, self._buckets, self._texts = list(labels), list(buckets), texts
        self._start = start

    @classmethod
    def prepare(
        cls,
        data: DataConfig,
        model: Any,
        paths: Paths,
        pretrained: Pretrained | None = None,
        assets: Mapping[str, Any] | None = None,
    ) -> TextClassification:
        """See `Task.prepare`."""
        _check_lengths(data, model)
        start, tokenizer = None, None
        if assets is not None:
            tokenizer = Tokenizer.from_json(assets["tokenizer"])
        elif pretrained is not None:
            start, tokenizer = start_from(pretrained, data.text, model)
        texts = load(data, paths)
        if tokenizer is None:
            train = texts.splits["train"].texts
            tokenizer = Tokenizer.fit(train, data.text, cache_dir=paths.cache_dir)
        task = cls(data, model, tokenizer, texts.label_names, (), texts, start)
        train = task.examples("train")
        if len(train.unknown) == len(train):
            raise UserError(
                f"config.data: the tokenizer knows no token of any of {len(train):,} texts of the "
                "train split; lower config.data.text.min_count, or set "
                "config.data.text.tokenizer to bpe"
            )
        task._buckets = _buckets(train.lengths, data.text.max_length)
        return task

    @classmethod
    def restore(cls, data: DataConfig, model: Any, assets: Mapping[str, Any]) -> TextClassification:
        """See `Task.restore`."""
        tokenizer = Tokenizer.from_json(assets["tokenizer"])
        return cls(data, model, tokenizer, assets["labels"], assets["buckets"])

    def assets(self) -> dict[str, Any]:
        """Labels, buckets and tokenizer."""
        return {
            "labels": self.labels,
            "buckets": self._buckets,
            "tokenizer": self.tokenizer.to_json(),
        }

    @property
    def fingerprint(self) -> str:
        """Of the texts and labels."""
        return self._texts.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._texts.parts

    # ------------------------------------------------------------------ data

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def examples(self, split: str) -> TextExamples:
        """See `Task.examples`; encoded once, in memory."""
        part = self._texts.splits[split]
        return TextExamples(self.tokenizer.encode_batch(part.texts), part.labels)

    def summary(self) -> dict[str, SplitSummary]:
        """Texts by class, and those of which the tokenizer knows nothing."""
        found = {}
        for split, counts in self._texts.summary().items():
            examples, limit = self.examples(split), self.data.text.max_length
            unknown, cut = len(examples.unknown), int((examples.lengths >= limit).sum())
            notes = [f"{unknown:,} texts without a known token"] * bool(unknown)
            notes += [f"{cut:,} texts fill max_length={limit}, the rest of them is cut"] * bool(cut)
            found[split] = dataclasses.replace(counts, note="; ".join(notes))
        return found

    @property
    def buckets(self) -> Sequence[int]:
        """See `Task.buckets`."""
        return self._buckets

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: Any) -> Any:
        """See `Task.build_model`."""
        prior = self._prior() if self.model.prior == "naive_bayes" else None
        return models.build(
            self.model,
            self.tokenizer.size,
            len(self.labels),
            prior=prior,
            start=self._start,
            rngs=rngs,
        )

    def _prior(self) -> np.ndarray:
        columns = 1 if len(self.labels) == 2 else len(self.labels)
        size = getattr(self.model, "embedding_size", None) or self.model.model_size
        if columns > size:
            raise UserError(
                f"config.model.embedding_size must be at least {columns}, the number of classes, "
                f"for prior='naive_bayes', got {size}"
            )
        if self._texts is None:
            # Restored weights take its place.
            return np.zeros((self.tokenizer.size, columns), np.float32)
        return self._log_count_ratio

    @functools.cached_property
    def _log_count_ratio(self) -> np.ndarray:
        return naive_bayes_prior(
            [row["tokens"] for row in self.examples("train")],
            self._texts.splits["train"].labels,
            self.tokenizer.size,
            len(self.labels),
        )

    def loss(self, model: Any, batch: Mapping[str, Any], dropout_key: Any) -> tuple[Any, dict]:
        """Cross-entropy, and the accuracy under dropout."""
        logits = model(batch["tokens"], batch["length"], dropout_key=dropout_key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        weight = batch["weight"]
        total = jnp.maximum(jnp.sum(weight), 1.0)
        right = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        return jnp.sum(losses * weight) / total, {"accuracy": jnp.sum(right * weight) / total}

    def batch_statistics(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Summed cross-entropy, number of texts, confusion counts [true, predicted]."""
        logits = model(batch["tokens"], batch["length"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        classes, real = len(self.labels), batch["weight"] > 0
        pair = batch["label"] * classes + jnp.argmax(logits, axis=-1)
        counts = jnp.zeros(classes * classes, jnp.int32).at[pair].add(real.astype(jnp.int32))
        return {
            "loss": jnp.sum(losses * batch["weight"]),
            "weight": jnp.sum(batch["weight"]),
            "confusion": counts.reshape(classes, classes),
        }

    def outputs(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Probabilities [B, classes]."""
        logits = model(batch["tokens"], batch["length"])
        return {"probabilities": jax.nn.softmax(logits, axis=-1)}

    def attention(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of the pool [B, heads, T], none for the mean, and of the encoder's layers
        [B, L, N, T, T].
        """
        return model(batch["tokens"], batch["length"], return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """Loss, and the metrics of `tasks.common.metrics.classification`."""
        predictions = np.argmax(outputs["probabilities"], axis=-1)
        metrics = classification_metrics(self._texts.splits[split].labels, predictions, self.labels)
        return {"loss": float(statistics["loss"] / statistics["weight"]), **metrics}

    def example_ids(self, split: str) -> np.ndarray:
        """Of texts and the names of their classes."""
        part = self._texts.splits[split]
        return digests.ids(part.texts, [self.labels[label] for label in part.labels])

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """1 where the class is right."""
        predictions = np.argmax(outputs["probabilities"], axis=-1)
        return (predictions == self._texts.splits[split].labels).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """Confusion matrix, and what was attended in the first texts."""
        part = self._texts.splits[split]
        drawn: list[Figure] = [
            ConfusionMatrix("confusion matrix", statistics["confusion"], self.labels)
        ]
        lengths = self.examples(split).lengths
        has_cls = getattr(self.model, "pooling", "") == "cls"
        weights = attended(attention, has_cls=has_cls, lengths=lengths)
        for index in range(len(weights)):
            length = lengths[index]
            words, shares = self.tokenizer.weights_per_word(
                part.texts[index], weights[index][:length]
            )
            probabilities = outputs["probabilities"][index]
            best = int(np.argmax(probabilities))
            drawn.append(
                AttendedText(
                    f"predicted {self.labels[best]} ({probabilities[best]:.2f}), "
                    f"true {self.labels[part.labels[index]]}",
                    words,
                    shares,
                )
            )
        return drawn

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """TF-IDF with a linear SVC, and NB-SVM, fitted on the same train split."""
        return {
            "tfidf_linear_svc": lambda: self._baseline(linear.tfidf_linear_svc),
            "nb_svm": lambda: self._baseline(linear.nb_svm),
        }

    def _baseline(self, fit: Callable) -> dict[str, float]:
        began = time.monotonic()
        train, test = self._texts.splits["train"], self._texts.splits["test"]
        predictions = fit(train.texts, train.labels)(test.texts)
        metrics = classification_metrics(test.labels, predictions, self.labels)
        return {**metrics, "seconds": round(time.monotonic() - began, 2)}

    # ------------------------------------------------------------------ predict

    @property
    def input_column(self) -> str:
        """The column of the texts."""
        return self.data.text_column

    def inputs(self, raw: Sequence[str]) -> TextExamples:
        """Any texts; one without a known word is a single unknown token."""
        return TextExamples(self.tokenizer.encode_batch(raw), None)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """Label and probabilities, the most probable first."""
        return classes_by_probability(raw, outputs["probabilities"], self.labels)


def attended(
    attention: Mapping[str, np.ndarray], has_cls: bool, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Returns one weight for each token: that of the pool, or of the last layer if the pool chooses
    nothing.

    Args:
      attention: as `TextClassification.attention` returns it.
      has_cls: a classification token comes first. The weights are those of its row, without itself.
      lengths: int [at least examples], tokens of each text. Without a classification token, the
        weights are the mean over the rows of these tokens; over all rows if None.

    Returns:
      [examples, T], not negative; no examples if nothing has weights.
    """
    if "pool" in attention:
        return attention["pool"].mean(axis=1)
    if "encoder" not in attention:
        return np.zeros((0, 0), np.float32)
    # Some mixers subtract: what counts of a weight is its size.
    last = np.abs(attention["encoder"][:, -1]).mean(axis=1)
    if has_cls:
        return last[:, 0, 1:]
    if lengths is None:
        return last.mean(axis=1)
    real = np.arange(last.shape[1]) < lengths[: len(last), None]
    return np.einsum("bts,bt->bs", last, real / real.sum(axis=1, keepdims=True))


def naive_bayes_prior(
    tokens: Sequence[np.ndarray], labels: np.ndarray, vocabulary: int, classes: int
) -> np.ndarray:
    """Log-count ratio of each id for each class against the rest; see `baselines.nb_svm`.

    Args:
      tokens: ids of each text; one that a text repeats counts once.
      labels: [texts] class of each.
      vocabulary: number of ids.
      classes: number of classes.

    Returns:
      float32 [vocabulary, classes]; for two classes [vocabulary, 1], that of class 1.
    """
    from scipy.sparse import csr_matrix

    unique = [np.unique(ids) for ids in tokens]
    starts = np.cumsum([0, *(len(ids) for ids in unique)])
    columns = np.concatenate(unique)
    present = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(unique), vocabulary))
    targets = [1] if classes == 2 else range(classes)
    ratios = [linear.log_count_ratio(present, labels == target) for target in targets]
    prior = np.stack(ratios, axis=1).astype(np.float32)
    prior[PAD] = 0
    return prior


def _check_lengths(data: DataConfig, model: Any) -> None:
    longest = getattr(model, "max_length", None)
    room = data.text.max_length + (getattr(model, "pooling", "") == "cls")
    if longest is not None and longest < room:
        raise UserError(
            f"config.model.max_length must be at least {room}, as config.data.text.max_length "
            f"asks, got {longest}"
        )


def _buckets(lengths: np.ndarray, longest: int) -> list[int]:
    """A few lengths, multiples of 8, that waste little padding; the last holds any text."""
    chosen = {
        min(-(-int(np.quantile(lengths, quantile)) // 8) * 8, longest)
        for quantile in _BUCKET_QUANTILES
    }
    return sorted(chosen | {longest})


TASK = TextClassification
