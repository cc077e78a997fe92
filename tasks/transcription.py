"""Base classes of tasks that transcribe sound or images: data set, processor and task.

The units of a transcript are the tokens of its tokenizer: characters, subwords or words.

B batch, T units of a transcript, S encoded frames.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.transcriber import EncoderOutput, TranscriberConfig
from tasks.common.data import digests
from tasks.common.data.manifest_rows import ManifestColumns, find_labeled
from tasks.common.data.manifests import read_lines, summarize, warn_unknown
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import bucket_lengths
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.data.summary import excerpt
from tasks.common.data.transcribed import (
    TranscriptionExamples,
    encode_units,
    transcription_fingerprints,
)
from tasks.common.decoding.generate import DecodingConfig, DecodingResult, TokenDecoder
from tasks.common.errors import UserError, check_max_length
from tasks.common.losses import first_passes, repeat_examples
from tasks.common.metrics.error_rates import TRANSCRIPTS, text_errors, transcript_metrics
from tasks.common.text.tokenizer import PAD, Tokenizer
from tasks.figures import Alignment, Figure, SplitResults, Transcript
from tasks.task import (
    Arrays,
    ArraySpec,
    Axes,
    Batch,
    Columns,
    ExamplePrediction,
    Metric,
    Processor,
    Task,
)

# Quantiles of the input lengths that define the padded lengths of batches.
_BUCKET_QUANTILES = (0.25, 0.5, 0.8)

FAILURES = r"(repeats|skips|early_stops)(_long)?|hallucination_rate"
"""Metrics of decoding failures, for `Task.condition_metrics`."""


@dataclasses.dataclass(frozen=True)
class TranscriptionData(digests.Fingerprinted):
    """A data set of inputs with transcripts.

    Class attributes:
      unit: plural noun for the examples in messages.
      kind: plural noun for the inputs in the names of `parts`.

    Attributes:
      splits: examples by split name.
      tokenizer: tokenizer fitted on the training split.
      conditions: names of the test conditions, which are groups of the test split. Metrics with
        plain names are of the first condition; others are named <metric>_<condition>.
    """

    splits: Mapping[str, TranscriptionExamples]
    tokenizer: Tokenizer
    conditions: tuple[str, ...] = ("",)

    unit: ClassVar[str]
    kind: ClassVar[str]

    def summary(self) -> dict[str, SplitSummary]:
        """Returns the counts of each split."""
        texts = {split: part.texts for split, part in self.splits.items()}
        return summarize(texts, self.unit)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data, see `tasks.task.Task.fingerprints`."""
        return transcription_fingerprints(self.splits, self.tokenizer, self.kind)


@dataclasses.dataclass(frozen=True)
class TranscriptionProcessor(Processor):
    """Base class of processors that read files to arrays, and convert unit ids to transcripts.

    Class attributes:
      field: name of the input array.
      input_spec: shape and dtype of the input array.
      input_kind: noun for an input file in messages.

    Attributes:
      tokenizer: tokenizer of the transcripts.
    """

    tokenizer: Tokenizer

    field: ClassVar[str]
    input_spec: ClassVar[ArraySpec]
    input_kind: ClassVar[str]

    @property
    def input_column(self) -> str:
        """Column of the paths of files."""
        return self.data.path_column

    @abc.abstractmethod
    def read(self, path: str) -> np.ndarray:
        """Returns the input array of a file.

        Raises:
          UserError: the file cannot be read, or the input is too long.
        """

    def signature(self) -> dict[str, ArraySpec]:
        """Returns descriptions of the two input arrays: the padded input and its length."""
        return {self.field: self.input_spec, "length": ArraySpec(("batch",), "int32")}

    def encode(self, raw: Sequence[str]) -> TranscriptionExamples:
        """Reads the files at the given paths."""
        arrays = []
        for path in raw:
            try:
                arrays.append(self.read(path.strip()))
            except UserError as error:
                message = f"input {path!r}: {error}; give the path of {self.input_kind}"
                raise UserError(message) from None
        return TranscriptionExamples(self.field, arrays.__getitem__, [len(x) for x in arrays])

    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns the transcript of each input and its log-probability."""
        rows = zip(raw, self.hypotheses(outputs), outputs["score"], strict=True)
        return [
            {"input": path, "output": text, "score": round(float(score), 4), "text": text}
            for path, text, score in rows
        ]

    def hypotheses(self, outputs: Arrays) -> list[str]:
        """Decodes outputs of `predict` to transcripts."""
        size = self.tokenizer.size
        return [
            self.tokenizer.decode([token for token in tokens if PAD < token < size])
            for tokens in outputs["tokens"]
        ]

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """Returns the text of each decoding step, for the axes of figures."""
        return [
            "end" if token >= self.tokenizer.size else self.tokenizer.decode([token]).strip() or "·"
            for token in map(int, tokens)
            if token != PAD
        ]


class TranscriptionTask(Task):
    """A task whose model has a `transcriber`; subclasses define the encoder by `encode`.

    Class attributes:
      word_level: whether the primary metric is "wer" instead of "cer".
      length_multiple: number that divides the lengths of padded inputs.
    """

    processor_type: ClassVar[type[TranscriptionProcessor]]
    metric_table: ClassVar[Mapping[str, Metric]] = TRANSCRIPTS
    word_level: ClassVar[bool] = True
    length_multiple: ClassVar[int] = 8
    higher_is_better = False
    decodes = True

    @property
    def decoder_config(self) -> TranscriberConfig:
        """Config of the transcriber."""
        return self.model.transcriber

    @abc.abstractmethod
    def encode(self, model: Any, batch: Batch, key: Any = None) -> EncoderOutput:
        """Returns the encoder output; if a random key is given, with dropout as in training."""

    @classmethod
    def fit(
        cls, dataset: TranscriptionData, data: Any, model: Any, paths: Paths, **fitted: Any
    ) -> TranscriptionProcessor:
        """Builds the processor with the tokenizer of the data set.

        Args:
          dataset, data, model, paths: as for `Task.fit`.
          **fitted: additional fields of the processor.

        Raises:
          UserError: a text is longer than the transcriber's `max_length`.
        """
        for split in SPLITS:
            longest = int(dataset.splits[split].lengths["target"].max())
            reason = f"the number of units of the longest text of {split}"
            key = "config.model.transcriber.max_length"
            check_max_length(model.transcriber.max_length, longest, reason, key)
        return cls.processor_type(data, model, dataset.tokenizer, **fitted)

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a manifest with paths and texts, or a folder of files with a text file for each.

        Words and characters that the tokenizer does not know count as errors of the model.
        """
        lines = find_labeled(file, ManifestColumns(self.data.path_column, self.data.text_column))
        texts, units = [line.text for line in lines], self.processor.tokenizer
        longest = max(map(len, encode_units(units.with_max_length(2**31 - 1), texts)))
        most = min(self.decoder_config.max_length, units.config.max_length)
        if longest > most:
            raise UserError(f"{file}: got a text of {longest} units, expected at most {most}")
        arrays = read_lines(file, lines, lambda path: self.processor.read(str(path)))
        warn_unknown(file, lines, units)
        part = TranscriptionExamples.of_arrays(self.processor.field, arrays, units, texts)
        names = [str(line.file) for line in lines]
        return self._with_dataset(TranscriptionData({"test": part}, units), names)

    @property
    def buckets(self) -> Sequence[Mapping[str, int]] | None:
        """Pairs of padded lengths (input, targets), ascending; the last one fits all examples.

        The result is None for a task without data, because the lengths are those of all splits and
        are not stored in the processor.
        """
        if self.dataset is None:
            return None
        multiples = {self.processor.field: self.length_multiple, "target": 4}
        parts = self.dataset.splits.values()
        lengths = {
            name: np.concatenate([part.lengths[name] for part in parts]) for name in multiples
        }
        return bucket_lengths(lengths, _BUCKET_QUANTILES, multiples)

    # ------------------------------------------------------------------ data

    @property
    def input_unit(self) -> tuple[str, float]:
        """Unit of the length of an input, and the length of one element of its array."""
        return "columns", 1.0

    def columns(self, split: str) -> Columns:
        """Returns columns whose rows are the examples with a text, which is the label of a row."""
        part, (unit, element) = self.dataset.splits[split], self.input_unit
        rows = np.flatnonzero(np.array([bool(text.strip()) for text in part.texts], bool))
        lengths = {unit: part.lengths[part.field] * element, "units": part.lengths["target"]}
        return Columns(
            len(rows),
            lambda index: (part[int(rows[index])][part.field], part.texts[rows[index]]),
            unit=self.dataset.unit,
            name=lambda index: f"that of {excerpt(part.texts[rows[index]])}",
            sizes=lengths,
            unknown={"units": part.unknown_units},
        )

    # ------------------------------------------------------------------ objective

    def loss(self, model: Any, batch: Batch, dropout_key: Any) -> tuple[Any, dict]:
        """Computes the label-smoothed loss per unit, and its terms as metrics.

        With `consistency`, the loss is the mean of two passes plus α/2 times their divergence.
        """
        alpha = self.decoder_config.consistency
        if alpha:
            batch = repeat_examples(batch)
        encoder_key, decoder_key = jax.random.split(dropout_key)
        found = self.encode(model, batch, encoder_key)
        losses = model.transcriber(
            found.memory,
            found.valid,
            found.final_state,
            batch["target"],
            dropout_key=decoder_key,
            pairs=bool(alpha),
        )
        weight = batch["weight"]
        units = jnp.maximum(jnp.sum(losses.num_units * weight), 1)
        parts = {
            "decoder_loss": jnp.sum(losses.decoder * weight) / units,
            "ctc_loss": jnp.sum(losses.ctc * weight) / units,
        }
        loss = jnp.sum(model.transcriber.joint(losses) * weight) / units
        if alpha:
            parts["divergence"] = jnp.sum(losses.divergence * first_passes(weight)) / (units / 2)
            loss = loss + alpha / 2 * parts["divergence"]
        return loss, parts

    def evaluate(self, model: Any, batch: Batch) -> tuple[dict, dict]:
        """Sums losses without label smoothing, and counts units and texts without a CTC path."""
        found = self.encode(model, batch)
        losses = model.transcriber(
            found.memory, found.valid, found.final_state, batch["target"], smoothing=False
        )
        weight = batch["weight"]
        statistics = {
            "loss": jnp.sum(model.transcriber.joint(losses) * weight),
            "units": jnp.sum(losses.num_units * weight),
            "ctc_infeasible": jnp.sum(~losses.has_path * weight),
        }
        return statistics, {}

    def predict(self, model: Any, inputs: Batch, *, fast: bool = False) -> dict:
        """Returns unit ids of the best transcript, [B, T] padded with 0, and its score, [B]."""
        decoded = self._decode(model, inputs, **{"decoding": DecodingConfig()} if fast else {})
        tokens, width = decoded.tokens[:, 0], self.decoder_config.max_length + 1
        tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD)
        return {"tokens": tokens, "score": decoded.scores[:, 0]}

    def decoder(self, model: Any, inputs: Batch) -> TokenDecoder | None:
        """Returns the attention decoder of the encoded inputs; None for a model with CTC alone."""
        if self.decoder_config.decoder == "none":
            return None
        found = self.encode(model, inputs)
        return model.transcriber.decoding(found.memory, found.valid, found.final_state)

    def attention(self, model: Any, inputs: Batch) -> dict[str, Any]:
        """Returns decoder attention weights [B, T, S], averaged over heads and layers."""
        if not self.decoder_config.aligns:
            return {}
        weights = self._decode(model, inputs, return_weights=True).extras["alignment"][:, 0]
        if weights.ndim > 3:
            weights = jnp.mean(weights, axis=tuple(range(2, weights.ndim - 1)))
        return {"alignment": weights}

    def _decode(self, model: Any, inputs: Batch, **options: Any) -> DecodingResult:
        found = self.encode(model, inputs)
        return model.transcriber.transcribe(found.memory, found.valid, found.final_state, **options)

    # ------------------------------------------------------------------ on the host

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Computes the metrics of `transcript_metrics`, and the loss per unit.

        Metrics of the first test condition have plain names, metrics of the other conditions are
        named <metric>_<condition>. `hallucination_rate`, which is only defined for a condition
        without speech, has no suffix. `loss` covers all conditions.
        """
        metrics = {
            "loss": float(statistics["loss"]) / float(statistics["units"]),
            "ctc_infeasible": float(statistics["ctc_infeasible"]),
        }
        for group, name in enumerate(self.dataset.conditions if split == "test" else ("",)):
            pair = self._references_and_hypotheses(outputs, split, group)
            found = transcript_metrics(*pair, words=self.word_level)
            found = {key: value for key, value in found.items() if np.isfinite(value)}
            # A condition without speech has only this metric, which keeps its plain name.
            alone = set(found) == {"hallucination_rate"}
            metrics |= {f"{key}_{name}" if name and not alone else key: found[key] for key in found}
        return metrics

    def scored_examples(self, split: str) -> np.ndarray:
        """Returns the indices of the examples of the first condition."""
        return np.flatnonzero(self.dataset.splits[split].groups == 0)

    def example_ids(self, split: str) -> np.ndarray:
        """Returns, for each example of the first condition, a hash of settings, index and text.

        The arrays are not hashed, because they depend on the config, such as the sample rate.
        """
        part = self.dataset.splits[split]
        chosen = np.flatnonzero(part.groups == 0)
        settings = sorted(self.settings.items())
        return digests.ids([settings] * len(chosen), chosen, [part.texts[i] for i in chosen])

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns the errors in each text of the first condition, divided by the mean length."""
        pair = self._references_and_hypotheses(outputs, split, 0)
        return text_errors(*pair, words=self.word_level).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns reference and hypothesis of each example of the first condition."""
        chosen = np.flatnonzero(self.dataset.splits[split].groups == 0)
        confidence = np.exp(outputs["score"][chosen])
        pair = self._references_and_hypotheses(outputs, split, 0)
        return [
            ExamplePrediction(None, reference, hypothesis, float(probability))
            for reference, hypothesis, probability in zip(*pair, confidence, strict=True)
        ]

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the units of the transcript, and the labels of the encoded frames."""
        steps = self.processor.pieces(outputs["tokens"][0])
        _, frames = self.input_image(self.processor.encode([raw])[0])
        return {"alignment": {"output": steps, "frame": frames}}

    def _references_and_hypotheses(
        self, outputs: Arrays, split: str, group: int
    ) -> tuple[list[str], list[str]]:
        """Returns the reference and hypothesis texts of one condition."""
        part, hypotheses = self.dataset.splits[split], self.processor.hypotheses(outputs)
        chosen = np.flatnonzero(part.groups == group)
        return [part.texts[i] for i in chosen], [hypotheses[i] for i in chosen]

    @abc.abstractmethod
    def input_image(self, example: Arrays) -> tuple[np.ndarray, list[str]]:
        """Returns an example as an image from left to right, and a label for each encoded frame."""

    def _alignments(
        self,
        examples: TranscriptionExamples | Sequence[Arrays],
        captions: Sequence[str],
        outputs: Arrays,
        attention: Arrays,
    ) -> list[Figure]:
        """Returns an alignment figure for each of the first examples that has attention weights."""
        drawn: list[Figure] = []
        for index, weights in enumerate(attention.get("alignment", ())):
            steps = self.processor.pieces(outputs["tokens"][index])
            image, labels = self.input_image(examples[index])
            shown = weights[: len(steps), : len(labels)]
            drawn.append(Alignment(captions[index], shown, steps, labels, over=image))
        return drawn

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns a transcript of each shown example, and its alignment if the model has one."""
        split, outputs, chosen = results.split, results.outputs, results.indices
        part, hypotheses = self.dataset.splits[split], self.processor.hypotheses(outputs)
        own = {"tokens": outputs["tokens"][chosen]}
        # These captions omit the texts, which the figures of the transcripts show.
        captions = [f"attention of {split} example {index}" for index in chosen]
        examples = [part[index] for index in chosen]
        alignments = self._alignments(examples, captions, own, results.attention)
        drawn: list[Figure] = []
        for row, example in enumerate(results.shown):
            aligned = alignments[row : row + 1]
            image = None if aligned else self.input_image(examples[row])[0]
            index = example.index
            texts = hypotheses[index], part.texts[index], "", image, self.word_level
            drawn += [Transcript(results.caption(example), *texts), *aligned]
        return drawn

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Returns an alignment figure for each input.

        Raises:
          UserError: the model has only a CTC output, which has no alignment.
        """
        if not self.decoder_config.aligns:
            raise UserError(
                "--figures: this run has only a CTC output, expected a decoder with attention; "
                "leave out the flag"
            )
        examples, captions = self.processor.encode(raw), self.processor.hypotheses(outputs)
        return [[each] for each in self._alignments(examples, captions, outputs, attention)]
