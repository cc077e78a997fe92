"""What tasks share that write down what they hear or see: examples with texts, and the part of the
contract between an encoder and the error rates.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.backbones.transcriber import EncoderOutput, TranscriberConfig
from tasks.common.data import digests
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.decoding.generate import DecodingConfig, DecodingResult
from tasks.common.errors import UserError
from tasks.common.metrics.error_rates import text_errors, transcript_metrics
from tasks.common.text.tokenizer import PAD, Tokenizer
from tasks.figures import Alignment, Figure
from tasks.task import SPLITS, OldTask

# Below them batches are padded to the examples' quantiles.
_QUANTILES = (0.25, 0.5, 0.8)


FAILURES = r"(repeats|skips|early_stops)(_long)?|invention_rate"
"""Metrics of how decoders fail, for `Task.condition_metrics`."""


class TranscriptionTask(OldTask):
    """The contract from the encoder on. A subclass says how to encode a batch.

    Class attributes:
      field: of an example, what is read.
      words: whether the primary metric is of words, "wer", or of characters, "cer".
      multiple: of the lengths of what is read, to which batches are padded.

    Attributes:
      tokenizer: text to units and back.
      conditions: names of the groups of test: the first is what the metrics are about, the others
        stand beside as <metric>_<condition>.
    """

    field: str
    words: bool = True
    multiple: int = 8
    higher_is_better = False

    tokenizer: Tokenizer
    conditions: Sequence[str] = ("",)
    _splits: Mapping[str, TranscriptionExamples] | None = None

    @abc.abstractmethod
    def _encode(self, model: Any, batch: Mapping[str, Any], key: Any = None) -> EncoderOutput:
        """What the model's transcriber reads; with a key as in training."""

    @property
    @abc.abstractmethod
    def writer(self) -> TranscriberConfig:
        """The config of the transcriber."""

    def _adopt(self, splits: Mapping[str, TranscriptionExamples]) -> None:
        """Takes the splits, and holds their texts to what can be written.

        Raises:
          UserError: a text is longer.
        """
        for split in SPLITS:
            longest = int(splits[split].lengths["target"].max())
            if longest > self.writer.max_length:
                raise UserError(
                    f"config.model.transcriber.max_length: got {self.writer.max_length}, expected "
                    f"at least {longest}, the units of the longest text of {split}"
                )
        splits["validation"].greedy = True
        self._splits = splits

    def examples(self, split: str) -> TranscriptionExamples:
        """See `Task.examples`."""
        return self._splits[split]

    @property
    def buckets(self) -> Sequence[Mapping[str, int]] | None:
        """A few pairs of lengths that waste little padding; the last holds any."""
        if self._splits is None:
            return None
        lengths = {
            field: np.concatenate([part.lengths[field] for part in self._splits.values()])
            for field in (self.field, "target")
        }
        multiples = {self.field: self.multiple, "target": 4}
        chosen = [
            {
                field: -(-int(np.quantile(values, quantile)) // multiples[field]) * multiples[field]
                for field, values in lengths.items()
            }
            for quantile in (*_QUANTILES, 1.0)
        ]
        return [bucket for place, bucket in enumerate(chosen) if bucket not in chosen[:place]]

    # ------------------------------------------------------------------ model

    def loss(
        self, model: Any, batch: Mapping[str, Any], dropout_key: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Of a unit, with smoothed labels."""
        encoder_key, decoder_key = jax.random.split(dropout_key)
        found = self._encode(model, batch, encoder_key)
        losses = model.transcriber(
            found.memory, found.valid, found.final_state, batch["target"], dropout_key=decoder_key
        )
        weight = batch["weight"]
        units = jnp.maximum(jnp.sum(losses.num_units * weight), 1)
        parts = {
            "decoder_loss": jnp.sum(losses.decoder * weight) / units,
            "ctc_loss": jnp.sum(losses.ctc * weight) / units,
        }
        return jnp.sum(model.transcriber.joint(losses) * weight) / units, parts

    def batch_statistics(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Summed losses without smoothing, the number of units, and how many texts have no path in
        CTC.
        """
        found = self._encode(model, batch)
        losses = model.transcriber(
            found.memory, found.valid, found.final_state, batch["target"], smoothing=False
        )
        weight = batch["weight"]
        return {
            "loss": jnp.sum(model.transcriber.joint(losses) * weight),
            "units": jnp.sum(losses.num_units * weight),
            "without_path": jnp.sum(~losses.has_path * weight),
        }

    def outputs(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Units of the best transcript, [B, T], padded with 0, and its score [B]."""
        decoded = self._decode(model, batch)
        tokens, width = decoded.tokens[:, 0], self.writer.max_length + 1
        tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD)
        return {"tokens": tokens, "score": decoded.scores[:, 0]}

    def attention(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What each step of the decoder looked at, [B, T, S]: the mean over heads and layers."""
        if not self.writer.aligns:
            return {}
        weights = self._decode(model, batch, return_weights=True).extras["alignment"][:, 0]
        if weights.ndim > 3:
            weights = jnp.mean(weights, axis=tuple(range(2, weights.ndim - 1)))
        return {"alignment": weights}

    def _decode(self, model: Any, batch: Mapping[str, Any], **options: Any) -> DecodingResult:
        found = self._encode(model, batch)
        if "greedy" in batch:
            options["decoding"] = DecodingConfig()
        return model.transcriber.transcribe(found.memory, found.valid, found.final_state, **options)

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """See `transcript_metrics`; of test's other conditions `<metric>_<condition>`. `loss` is of
        a unit, over all conditions.
        """
        metrics = {
            "loss": float(statistics["loss"]) / float(statistics["units"]),
            "without_path": float(statistics["without_path"]),
        }
        for number, name in enumerate(self.conditions if split == "test" else ("",)):
            said, written = self._pairs(outputs, split, number)
            found = transcript_metrics(said, written, words=self.words)
            found = {key: value for key, value in found.items() if np.isfinite(value)}
            # Where nobody says anything there is one figure, which needs no other name.
            alone = set(found) == {"invention_rate"}
            metrics |= {f"{key}_{name}" if name and not alone else key: found[key] for key in found}
        return metrics

    def example_ids(self, split: str) -> np.ndarray:
        """Of the first condition: an example is known by its settings, its place and its text, for
        how it is read (sample rate, size) depends on the config.
        """
        part = self._splits[split]
        chosen = np.flatnonzero(part.groups == 0)
        settings = sorted(self.settings.items())
        return digests.ids([settings] * len(chosen), chosen, [part.texts[i] for i in chosen])

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """Errors of each text of the first condition over their mean length; the mean is the
        primary metric.
        """
        errors = text_errors(*self._pairs(outputs, split, 0), words=self.words)
        return errors.astype(np.float32)

    def _pairs(
        self, outputs: Mapping[str, np.ndarray], split: str, group: int
    ) -> tuple[list[str], list[str]]:
        """What was said and what was written in one condition."""
        part, written = self._splits[split], self._written(outputs)
        chosen = np.flatnonzero(part.groups == group)
        return [part.texts[i] for i in chosen], [written[i] for i in chosen]

    def _written(self, outputs: Mapping[str, np.ndarray]) -> list[str]:
        size = self.tokenizer.size
        return [
            self.tokenizer.decode([token for token in tokens if PAD < token < size])
            for tokens in outputs["tokens"]
        ]

    def _pieces(self, tokens: np.ndarray) -> list[str]:
        """What each step wrote."""
        return [
            "end" if token >= self.tokenizer.size else self.tokenizer.decode([token]).strip() or "·"
            for token in map(int, tokens)
            if token != PAD
        ]

    @abc.abstractmethod
    def _read_from(self, example: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
        """An example as a picture from left to right, and names of what the encoder makes of it."""

    def _alignments(
        self,
        examples: TranscriptionExamples,
        captions: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """What the steps of the first transcripts looked at, as many as there are weights of."""
        drawn: list[Figure] = []
        for index, weights in enumerate(attention.get("alignment", ())):
            steps = self._pieces(outputs["tokens"][index])
            picture, places = self._read_from(examples[index])
            shown = weights[: len(steps), : len(places)]
            drawn.append(Alignment(captions[index], shown, steps, places, over=picture))
        return drawn

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """What the steps of the first transcripts looked at."""
        part, written = self._splits[split], self._written(outputs)
        captions = [f"{said}\n{wrote}" for said, wrote in zip(part.texts, written, strict=True)]
        return self._alignments(part, captions, outputs, attention)

    def pictures(
        self,
        raw: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[list[Figure]]:
        """Of each input what the steps of its transcript looked at.

        Raises:
          UserError: CTC writes alone.
        """
        if not self.writer.aligns:
            raise UserError(
                "--figures: CTC writes alone in this run; an alignment is drawn of a decoder with "
                "attention"
            )
        captions = self._written(outputs)
        return [[each] for each in self._alignments(self.inputs(raw), captions, outputs, attention)]

    @property
    def input_column(self) -> str:
        """The paths of a manifest."""
        return "path"

    def table_input(self, value: str, folder: Path) -> str:
        """Paths are relative to the manifest's folder."""
        return str(folder / Path(value).expanduser())

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """What was written of each, and its log-probability."""
        return [
            {"input": path, "output": text, "score": round(float(score), 4), "text": text}
            for path, text, score in zip(raw, self._written(outputs), outputs["score"], strict=True)
        ]
