"""Base classes of tasks that transcribe sound or images: data set, processor and task.

The units of a transcript are the tokens of its tokenizer: characters, subwords or words.

In shapes, B is the batch size, T the number of units of a transcript, and S the number of encoded
frames.
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
      kind: plural noun for the inputs, used in the keys of `parts`.

    Attributes:
      splits: examples by split name.
      tokenizer: tokenizer fitted on the training split.
      conditions: names of the test conditions, which are groups of examples of the test split.
        Metrics of the first condition have plain names; those of the others are named
        <metric>_<condition>.
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
    """Base class of processors that read files as arrays and convert unit ids to transcripts.

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
        """Name of the column that contains the paths of the files."""
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
        """Reads the files at the given paths, and returns examples without transcripts."""
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
        """Converts the outputs of `predict` to transcripts, one text for each row."""
        size = self.tokenizer.size
        return [
            self.tokenizer.decode([token for token in tokens if PAD < token < size])
            for tokens in outputs["tokens"]
        ]

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """Returns a label of each decoded token, its text or "end", for the axes of figures."""
        return [
            "end" if token >= self.tokenizer.size else self.tokenizer.decode([token]).strip() or "·"
            for token in map(int, tokens)
            if token != PAD
        ]


class TranscriptionTask(Task):
    """A task whose model has a `transcriber`; subclasses define the encoder by `encode`.

    Class attributes:
      word_level: whether the primary metric is "wer" instead of "cer".
      length_multiple: divisor of all lengths to which inputs are padded.
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
        """Computes the encoder output of a batch.

        Args:
          model: model of the task.
          batch: arrays of the examples.
          key: random key of dropout in training; None for evaluation.
        """

    @classmethod
    def fit(
        cls, dataset: TranscriptionData, data: Any, model: Any, paths: Paths, **fitted: Any
    ) -> TranscriptionProcessor:
        """Returns a processor that uses the tokenizer of the data set.

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
        """Returns a copy of the task that has only a test split, with the examples of user files.

        The argument `file` is a manifest, which is a table of paths and texts, or a folder that has
        a text file with the transcript for each input file. Words and characters that the tokenizer
        does not know count as errors of the model.
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
        """Padded lengths of input and target, for each bucket, shortest first.

        The last bucket is long enough for all examples.

        The result is None for a task without data, because the padded lengths are computed from all
        splits and are not stored in the processor.
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
        """Unit in which input lengths are shown, and length of one array element in this unit."""
        return "columns", 1.0

    def columns(self, split: str) -> Columns:
        """Returns the columns of a split that are summarized before training.

        The rows are the examples whose text is not blank. The input of a row is the input array,
        and its label is the text.
        """
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

        If `TranscriberConfig.consistency` (α) is above 0, the model runs twice on each example,
        with different dropout masks. The loss is then the mean of the losses of the two passes,
        plus α/2 times the divergence of their predictions.
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
        """Computes the statistics of a batch; there are no outputs.

        The statistics are the sum of the losses without label smoothing, the number of units, and
        the number of texts that have no CTC path because their inputs have too few frames.
        """
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
        """Decodes the best transcript of each input.

        Returns:
          "tokens", unit ids padded with 0, int32 [B, T], where T is the transcriber's max_length
          plus 1; and "score", float32 [B].
        """
        decoded = self._decode(model, inputs, **{"decoding": DecodingConfig()} if fast else {})
        tokens, width = decoded.tokens[:, 0], self.decoder_config.max_length + 1
        tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD)
        return {"tokens": tokens, "score": decoded.scores[:, 0]}

    def decoder(self, model: Any, inputs: Batch) -> TokenDecoder | None:
        """Returns an autoregressive decoder that attends to the encoded inputs.

        The result is None for a model with CTC alone.
        """
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
        """Computes the metrics of `transcript_metrics`, and the loss per unit of the transcript.

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
            # In a condition without speech, only hallucination_rate is defined. It gets no suffix.
            alone = set(found) == {"hallucination_rate"}
            metrics |= {f"{key}_{name}" if name and not alone else key: found[key] for key in found}
        return metrics

    def scored_examples(self, split: str) -> np.ndarray:
        """Returns the indices of the examples of the first test condition."""
        return np.flatnonzero(self.dataset.splits[split].groups == 0)

    def example_ids(self, split: str) -> np.ndarray:
        """Returns an id for each example of the first test condition: a hash, uint64 [n].

        The hash is computed from the settings of the task, the index of the example and its text.
        The arrays are not hashed, because they depend on the config, such as the sample rate.
        """
        part = self.dataset.splits[split]
        chosen = np.flatnonzero(part.groups == 0)
        settings = sorted(self.settings.items())
        return digests.ids([settings] * len(chosen), chosen, [part.texts[i] for i in chosen])

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns a score for each example of the first test condition; see `text_errors`."""
        pair = self._references_and_hypotheses(outputs, split, 0)
        return text_errors(*pair, words=self.word_level).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns reference, hypothesis and confidence of each example of the first condition."""
        chosen = np.flatnonzero(self.dataset.splits[split].groups == 0)
        confidence = np.exp(outputs["score"][chosen])
        pair = self._references_and_hypotheses(outputs, split, 0)
        return [
            ExamplePrediction(None, reference, hypothesis, float(probability))
            for reference, hypothesis, probability in zip(*pair, confidence, strict=True)
        ]

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the axes "output", the decoded tokens, and "frame", the encoded frames."""
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
        """Returns an image of an example, and a label for each encoded frame.

        Time, or the direction of writing, goes from left to right in the image.
        """

    def _alignments(
        self,
        examples: TranscriptionExamples | Sequence[Arrays],
        captions: Sequence[str],
        outputs: Arrays,
        attention: Arrays,
    ) -> list[Figure]:
        """Returns an alignment figure for each row of the attention weights.

        Args:
          examples: examples of the rows, in the same order; further examples are ignored.
          captions: caption of each example.
          outputs: outputs of `predict` for the examples.
          attention: attention weights of the examples; may be empty.
        """
        drawn: list[Figure] = []
        for index, weights in enumerate(attention.get("alignment", ())):
            steps = self.processor.pieces(outputs["tokens"][index])
            image, labels = self.input_image(examples[index])
            shown = weights[: len(steps), : len(labels)]
            drawn.append(Alignment(captions[index], shown, steps, labels, over=image))
        return drawn

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns the transcript of each shown example, and its alignment if the model has one."""
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
