"""Text classification, with one class per text.

B batch, T tokens of a text, L layers, N heads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.classification import ClassificationTask, check_class_weights, classes_by_probability
from tasks.common.backbones import recurrent, transformer
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import bucket_lengths
from tasks.common.data.splits import SplitSummary, class_indices
from tasks.common.data.summary import Columns, excerpt
from tasks.common.errors import UserError, check_max_length
from tasks.common.text.tokenizer import CLS, LAST, PAD, SPECIAL, UNKNOWN, Tokenizer
from tasks.figures import AttendedText, ConfusionMatrix, Figure, SplitResults
from tasks.task import (
    Arrays,
    ArraySpec,
    Axes,
    Batch,
    Pretrained,
    ProcessingSteps,
    Processor,
    Task,
)
from tasks.text_classification import baselines
from tasks.text_classification import model as models
from tasks.text_classification.data import DataConfig, Split, TextData, load
from tasks.text_classification.explainer import TextExplainer
from tasks.text_classification.figures import token_weights
from tasks.text_classification.finetuning import InitialWeights, initial_weights_from
from tasks.text_classification.user_files import OWN_DATA, read_labelled

# Batches are padded to these quantiles of the training lengths; each length is compiled once.
_BUCKET_QUANTILES = (0.5, 0.8, 0.95, 1.0)


class TextExamples:
    """Tokenized texts with or without labels, in the form of `tasks.common.data.pipeline`."""

    padded = {"tokens": PAD}  # noqa: RUF012 - part of a protocol

    def __init__(
        self,
        tokens: Sequence[np.ndarray],
        labels: np.ndarray | None,
        whole: np.ndarray | None = None,
    ):
        """Initializes examples.

        Args:
          tokens: token ids of each text, at least one.
          labels: class of each text, if known.
          whole: number of tokens of each text before truncation; None if no text was truncated.
        """
        self._tokens, self._labels = tokens, labels
        self.lengths = np.array([len(ids) for ids in tokens], np.int32)
        self.whole = self.lengths if whole is None else whole

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def unknown(self) -> np.ndarray:
        """Indices of the texts without a known token, int [n]."""
        known = [np.any((ids != UNKNOWN) & (ids != CLS)) for ids in self._tokens]
        return np.flatnonzero(~np.array(known, bool))

    @property
    def unknown_tokens(self) -> float:
        """Fraction of the tokens that the tokenizer does not know."""
        return float(np.mean(np.concatenate(self._tokens) == UNKNOWN))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {"tokens": self._tokens[index], "length": self.lengths[index]}
        if self._labels is not None:
            row["label"] = self._labels[index]
        return row


@dataclasses.dataclass(frozen=True)
class TextProcessor(Processor):
    """Processor that converts texts to token ids, and probabilities to labels.

    Attributes:
      labels: names of the classes.
      buckets: lengths to which batches are padded, ascending.
      tokenizer: tokenizer fitted on the training split, or taken from the pretrained run.
    """

    labels: Sequence[str]
    buckets: Sequence[int]
    tokenizer: Tokenizer

    @property
    def input_column(self) -> str:
        """Column of the texts."""
        return self.data.text_column

    def encode(self, raw: Sequence[str]) -> TextExamples:
        """Tokenizes texts; a text without a known word becomes a single unknown token."""
        return TextExamples(self.tokenizer.encode_batch(raw), None)

    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns label and class probabilities of each text, most probable class first."""
        return classes_by_probability(raw, outputs["probabilities"], self.labels)

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of "tokens" and "length"."""
        return {
            "tokens": ArraySpec(("batch", "length"), "int32", PAD),
            "length": ArraySpec(("batch",), "int32"),
        }

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which tokenize texts and rank classes."""
        file = "tokenizer.json"
        return ProcessingSteps(
            "text",
            [
                {"op": "tokenize", "file": file, "to": "tokens"},
                {"op": "length", "of": "tokens", "to": "length"},
            ],
            [{"op": "rank_labels", "labels": list(self.labels), "shown": None}],
            {file: self.tokenizer.to_json()},
            self.tokenizer.libraries,
        )


class TextClassification(ClassificationTask):
    """Classification of texts into one class each."""

    data_config = DataConfig
    model_configs = models.MODEL_CONFIGS
    processor_type = TextProcessor
    own_data = OWN_DATA
    baseline_version = 3
    sharding_rules = transformer.SHARDING_RULES + recurrent.SHARDING_RULES
    # Initial parameters; None if random or replaced by those of a checkpoint.
    _initial: InitialWeights | None = None

    @classmethod
    def prepare(
        cls,
        data: DataConfig,
        model: Any,
        paths: Paths,
        pretrained: Pretrained | None = None,
        **options: Any,
    ) -> TextClassification:
        """Prepares the task. A pretrained run provides the tokenizer and initial parameters."""
        initial = None
        if pretrained is not None:
            initial, options["tokenizer"] = initial_weights_from(pretrained, data.text, model)
        task = super().prepare(data, model, paths, **options)
        task._initial = initial
        return task

    @classmethod
    def check(cls, data: DataConfig, model: Any) -> None:
        """Checks that the model has positions for the longest text."""
        longest = getattr(model, "max_length", None)
        needed = data.text.max_length + models.tokens_around(model)
        check_max_length(longest, needed, "which config.data.text.max_length requires")

    load = staticmethod(load)

    @classmethod
    def fit(
        cls,
        dataset: TextData,
        data: DataConfig,
        model: Any,
        paths: Paths,
        tokenizer: Tokenizer | None = None,
        assets: Mapping[str, Any] | None = None,
    ) -> TextProcessor:
        """Fits the lengths of the buckets and, unless a tokenizer is given, the tokenizer.

        Raises:
          UserError: no training text has a known token.
        """
        check_class_weights(model, dataset.splits["train"].labels, dataset.label_names)
        texts = dataset.splits["train"].texts
        if assets is not None:
            tokenizer = Tokenizer.from_json(assets["tokenizer"])
        if tokenizer is None:
            tokenizer = Tokenizer.fit(texts, data.text, cache_dir=paths.cache_dir)
        train = TextExamples(tokenizer.encode_batch(texts), None)
        if len(train.unknown) == len(train):
            raise UserError(
                f"config.data: the tokenizer knows no token of any of {len(train):,} texts of the "
                "train split; lower config.data.text.min_count, or set "
                "config.data.text.tokenizer to bpe"
            )
        buckets = bucket_lengths(train.lengths, _BUCKET_QUANTILES, 8, data.text.max_length)
        return TextProcessor(data, model, list(dataset.label_names), buckets, tokenizer)

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a table with the text and label columns of the run."""
        columns = self.data.text_column, self.data.label_column
        texts, labels, ids, _ = read_labelled(file, *columns, trained=True)
        places = [f"line {identity.rpartition(':')[2]}" for identity in ids]
        split = Split(texts, class_indices(file, labels, places, self.labels), ids)
        return self._with_dataset(TextData(self.data.name, {"test": split}, list(self.labels)))

    # ------------------------------------------------------------------ data

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def examples(self, split: str) -> TextExamples:
        """Returns the encoded texts of a split."""
        part = self.dataset.splits[split]
        tokens, whole = self.processor.tokenizer.encode_counted(part.texts)
        return TextExamples(tokens, part.labels, whole)

    def summary(self) -> dict[str, SplitSummary]:
        """Counts texts by class, and texts without known tokens."""
        found = {}
        for split, counts in self.dataset.summary().items():
            unknown = len(self.examples(split).unknown)
            note = f"{unknown:,} texts without a known token" if unknown else ""
            found[split] = dataclasses.replace(counts, note=note)
        return found

    def columns(self, split: str) -> Columns:
        """Returns the texts for the data summary, with the classes as labels."""
        part, examples = self.dataset.splits[split], self.examples(split)
        return Columns(
            len(part),
            lambda index: (part.texts[index], int(part.labels[index])),
            name=lambda index: excerpt(part.texts[index]),
            sizes={"tokens": examples.whole},
            limits={"tokens": self.data.text.max_length},
            limit_key="config.data.text.max_length",
            unknown={"tokens": examples.unknown_tokens},
        )

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each example a hash of its text and its class name."""
        part = self.dataset.splits[split]
        return digests.ids(part.texts, [self.labels[label] for label in part.labels])

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: Any) -> Any:
        """Returns the model, with the prior or the pretrained parameters of its config."""
        prior = None if self.model.prior == "none" else self._prior()
        return models.build(
            self.model,
            self.processor.tokenizer.size,
            len(self.labels),
            prior=prior,
            start=self._initial,
            rngs=rngs,
        )

    def _prior(self) -> np.ndarray:
        columns = 1 if len(self.labels) == 2 else len(self.labels)
        size = models.embedding_size(self.model)
        if columns > size:
            raise UserError(
                f"config.model.embedding_size: got {size}, expected at least {columns}, the number "
                f"of classes, for prior={self.model.prior!r}"
            )
        if self.dataset is None:
            # Without data no prior can be fitted; the parameters of a checkpoint replace the zeros.
            return np.zeros((self.processor.tokenizer.size, columns), np.float32)
        return self._fitted_prior

    @functools.cached_property
    def _fitted_prior(self) -> np.ndarray:
        return baselines.PRIORS[self.model.prior](
            [row["tokens"] for row in self.examples("train")],
            self.dataset.splits["train"].labels,
            self.processor.tokenizer.size,
            len(self.labels),
        )

    def logits(self, model: Any, batch: Batch, dropout_key: Any = None) -> Any:
        """Computes the logits [B, classes] of a batch; with a dropout key, in training mode."""
        return model(batch["tokens"], batch["length"], dropout_key=dropout_key)

    def attention(self, model: Any, inputs: Batch) -> dict[str, Any]:
        """Returns the weights "pool" [B, heads, T] and "encoder" [B, L, N, T, T].

        "pool" is missing for the pool "mean", "encoder" for models without attention layers.
        """
        return model(inputs["tokens"], inputs["length"], return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def inputs(self, split: str) -> Sequence[str]:
        """Returns the texts of a split."""
        return self.dataset.splits[split].texts

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the tokens of the text as labels."""
        tokens = self.processor.tokenizer.tokens(raw)
        around = models.tokens_around(self.model)
        encoded = [*[SPECIAL[CLS]] * (around > 0), *tokens, *[LAST[-1]] * (around > 1)]
        return {
            "pool": {"head": None, "token": tokens},
            "encoder": {"layer": None, "head": None, "query": encoded, "key": encoded},
        }

    def explainer(self) -> TextExplainer:
        """Returns the explainer, which attributes predictions to tokens."""
        return TextExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns figures of the confusion matrix and of the attention over the shown texts.

        For a model without attention weights, the texts are shown without weights.
        """
        part, chosen = self.dataset.splits[results.split], results.indices
        drawn: list[Figure] = [
            ConfusionMatrix("confusion matrix", results.statistics["confusion"], self.labels)
        ]
        texts = [part.texts[index] for index in chosen]
        lengths = self.examples(results.split).lengths[chosen]
        probabilities = results.outputs["probabilities"][chosen]
        attended = self._attended(texts, lengths, probabilities, results.attention)
        for example, (caption, words, weights) in zip(results.shown, attended, strict=True):
            true = self.labels[part.labels[example.index]]
            caption = f"{results.caption(example)}: {caption}, true {true}"
            drawn.append(AttendedText(caption, words, weights))
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Returns the attention over the words of each text; none if the model has no weights."""
        if not {"pool", "encoder"} & set(attention):
            return [[] for _ in raw]
        lengths = self.processor.encode(raw).lengths
        attended = self._attended(raw, lengths, outputs["probabilities"], attention)
        return [[AttendedText(*found)] for found in attended]

    def _attended(
        self,
        texts: Sequence[str],
        lengths: np.ndarray,
        probabilities: np.ndarray,
        attention: Arrays,
    ) -> Iterator[tuple[str, Sequence[str], np.ndarray]]:
        """Yields the caption, the words and their weights of each text.

        The weights are 0 for a model without attention weights.
        """
        has_cls = models.tokens_around(self.model) > 0
        rows = token_weights(attention, has_cls=has_cls, lengths=lengths)
        for index, (text, row) in enumerate(zip(texts, probabilities, strict=True)):
            length = lengths[index]
            weights = rows[index][:length] if len(rows) else np.zeros(length, np.float32)
            words, weights = self.processor.tokenizer.weights_per_word(text, weights)
            best = int(np.argmax(row))
            yield f"predicted {self.labels[best]} ({row[best]:.2f})", words, weights

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baselines: TF-IDF with a linear SVM, and NB-SVM."""
        train, test = (self.dataset.splits[split] for split in ("train", "test"))
        fits = {"tfidf_linear_svc": baselines.tfidf_linear_svc, "nb_svm": baselines.nb_svm}
        return {
            name: lambda fit=fit: self.baseline_metrics(fit(train.texts, train.labels)(test.texts))
            for name, fit in fits.items()
        }


TASK = TextClassification
