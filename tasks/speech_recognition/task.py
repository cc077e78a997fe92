"""Speech recognition: the task contract over `data.py` and `model.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.audio import augment_samples, log_mel, spec_augment
from tasks.common.augmentation import example_keys
from tasks.common.backbones import recurrent, transformer
from tasks.common.decoding import Decoded, DecodingConfig
from tasks.common.errors import UserError
from tasks.common.paths import Paths
from tasks.common.text import PAD, TextEncoder
from tasks.common.transcripts import transcript_metrics, word_errors
from tasks.figures import Alignment, Curves, Figure
from tasks.speech_recognition import baselines
from tasks.speech_recognition.clips import Clips
from tasks.speech_recognition.data import NOISES, DataConfig, SpeechData, load, read_clip
from tasks.speech_recognition.model import MODEL_CONFIGS, SpeechConfig, SpeechRecognizer
from tasks.task import Task

# Clips of train by which features are standardised.
_MEASURED = 500
# Below them batches are padded to the clips' quantiles.
_QUANTILES = (0.25, 0.5, 0.8)


class SpeechRecognition(Task):
    """Samples -> words."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "wer"
    higher_is_better = False
    table_metrics = ("wer", "cer", "exact_match", "loss")
    sharding_rules = (*transformer.SHARDING_RULES, *recurrent.SHARDING_RULES)

    def __init__(
        self,
        data: DataConfig,
        model: SpeechConfig,
        encoder: TextEncoder,
        scale: tuple[np.ndarray, np.ndarray],
        speech: SpeechData | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          encoder: words to units.
          scale: mean and deviation of the features of train, [F] each.
          speech: the splits; None where only predictions are wanted.
        """
        self.data, self.model, self.encoder, self._scale = data, model, encoder, scale
        self._speech = speech
        self._buckets = None if speech is None else _buckets(speech)

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: SpeechConfig, paths: Paths) -> SpeechRecognition:
        """See `Task.prepare`."""
        speech = load(data, paths)
        speech.splits["validation"].greedy = True
        for split in ("train", "validation", "test"):
            longest = int(speech.splits[split].lengths["target"].max())
            if longest > model.transcriber.max_length:
                raise UserError(
                    f"config.model.transcriber.max_length: got {model.transcriber.max_length}, "
                    f"expected at least {longest}, the units of the longest text of {split}"
                )
        return cls(data, model, speech.encoder, _scale(speech.splits["train"], data), speech)

    @classmethod
    def restore(
        cls, data: DataConfig, model: SpeechConfig, assets: Mapping[str, Any]
    ) -> SpeechRecognition:
        """See `Task.restore`."""
        scale = tuple(np.asarray(assets[name], np.float32) for name in ("mean", "deviation"))
        return cls(data, model, TextEncoder.from_json(assets["encoder"]), scale)

    def assets(self) -> dict[str, Any]:
        """The tokenizer, and by what features are standardised."""
        mean, deviation = ([round(float(x), 5) for x in row] for row in self._scale)
        return {"encoder": self.encoder.to_json(), "mean": mean, "deviation": deviation}

    @property
    def fingerprint(self) -> str:
        """Of sound, texts and splits."""
        return self._speech.fingerprint

    @property
    def settings(self) -> dict[str, Any]:
        """The speaker who is not in train."""
        own = self.data.path is not None or self.data.name.startswith("prompts")
        return {} if own else {"held_out": self.data.held_out}

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> Clips:
        """See `Task.examples`."""
        return self._speech.splits[split]

    @property
    def buckets(self) -> Sequence[Mapping[str, int]] | None:
        """See `Task.buckets`."""
        return self._buckets

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> SpeechRecognizer:
        """See `Task.build_model`."""
        return SpeechRecognizer(self.model, self.data.features, self.encoder.size, rngs=rngs)

    def loss(
        self, model: SpeechRecognizer, batch: Mapping[str, Any], dropout_key: Any
    ) -> tuple[Any, dict]:
        """Of a unit: of what is heard when speed, loudness, noise and masks have changed it."""
        augment_key, masks_key, encoder_key, decoder_key = jax.random.split(dropout_key, 4)
        config = self.data.augmentation
        samples, lengths = augment_samples(
            _unit(batch["samples"]), batch["length"], example_keys(augment_key, batch["id"]), config
        )
        features, frames = self._features(samples, lengths)
        keys = example_keys(masks_key, batch["id"])
        features = spec_augment(features, frames, keys, config)
        found = model.encode(features, frames, encoder_key)
        losses = model.transcriber(
            found.memory, found.valid, found.last, batch["target"], dropout_key=decoder_key
        )
        weight = batch["weight"]
        units = jnp.maximum(jnp.sum(losses.units * weight), 1)
        parts = {
            "decoder_loss": jnp.sum(losses.decoder * weight) / units,
            "ctc_loss": jnp.sum(losses.ctc * weight) / units,
        }
        return jnp.sum(model.transcriber.joint(losses) * weight) / units, parts

    def batch_statistics(self, model: SpeechRecognizer, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Summed losses without smoothing, and the number of units."""
        found = self._encoded(model, batch)
        losses = model.transcriber(
            found.memory, found.valid, found.last, batch["target"], smoothing=False
        )
        weight = batch["weight"]
        return {
            "loss": jnp.sum(model.transcriber.joint(losses) * weight),
            "units": jnp.sum(losses.units * weight),
            "without_path": jnp.sum(~losses.possible * weight),
        }

    def outputs(self, model: SpeechRecognizer, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Units of the best transcript, [B, T], padded with 0, and its score [B]."""
        decoded = self._decode(model, batch)
        tokens = decoded.tokens[:, 0]
        width = self.model.transcriber.max_length + 1
        tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD)
        return {"tokens": tokens, "score": decoded.scores[:, 0]}

    def attention(self, model: SpeechRecognizer, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What each step of the decoder looked at, over the frames, and the log-mel features."""
        if not self.model.transcriber.aligns:
            return {}
        decoded = self._decode(model, batch, return_weights=True)
        features, frames = self._features(_unit(batch["samples"]), batch["length"])
        weights = decoded.extras["alignment"][:, 0]
        if weights.ndim > 3:
            weights = jnp.mean(weights, axis=tuple(range(2, weights.ndim - 1)))
        return {"alignment": weights, "features": features, "frames": frames}

    def _encoded(self, model: SpeechRecognizer, batch: Mapping[str, Any]):
        features, frames = self._features(_unit(batch["samples"]), batch["length"])
        return model.encode(features, frames)

    def _features(self, samples: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        features, frames = log_mel(samples, lengths, self.data.features)
        mean, deviation = self._scale
        real = jnp.arange(features.shape[1]) < frames[:, None]
        return jnp.where(real[..., None], (features - mean) / deviation, 0.0), frames

    def _decode(self, model: SpeechRecognizer, batch: Mapping[str, Any], **options: Any) -> Decoded:
        found = self._encoded(model, batch)
        if "greedy" in batch:
            options["decoding"] = DecodingConfig()
        return model.transcriber.transcribe(found.memory, found.valid, found.last, **options)

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """See `transcript_metrics`; of test's other conditions `wer_<condition>`, and how decoders
        fail there. `loss` is of a unit, over all conditions.
        """
        units = float(statistics["units"])
        metrics = {"loss": float(statistics["loss"]) / units}
        metrics["without_path"] = float(statistics["without_path"])
        written, clips = self._written(outputs), self._speech.splits[split]
        for number, name in enumerate(self._conditions(split)):
            chosen = np.flatnonzero(clips.groups == number)
            found = transcript_metrics(
                [clips.texts[i] for i in chosen], [written[i] for i in chosen]
            )
            found = {key: value for key, value in found.items() if np.isfinite(value)}
            metrics |= {f"{key}_{name}" if name else key: found[key] for key in found}
        if "invention_rate_silence" in metrics:
            metrics["invention_rate"] = metrics.pop("invention_rate_silence")
        return metrics

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """Errors of each text of the first condition over the mean number of words."""
        chosen = np.flatnonzero(self._speech.splits[split].groups == 0)
        written, clips = self._written(outputs), self._speech.splits[split]
        return word_errors([clips.texts[i] for i in chosen], [written[i] for i in chosen]).astype(
            np.float32
        )

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """WER against noise, and what the steps of the first transcripts looked at."""
        drawn: list[Figure] = []
        metrics = self.finalize(statistics, outputs, split)
        if f"wer_snr_{NOISES[0]}" in metrics:
            rates = [metrics[f"wer_snr_{noise}"] for noise in NOISES]
            drawn.append(
                Curves("WER against noise", "signal-to-noise ratio, dB", {"WER": (NOISES, rates)})
            )
        texts = self._speech.splits[split].texts
        for index, weights in enumerate(attention.get("alignment", ())):
            drawn.append(
                self._alignment(
                    f"{texts[index]}\n{self._written(outputs)[index]}",
                    outputs["tokens"][index],
                    weights,
                    int(attention["frames"][index]),
                )
            )
        return drawn

    def _alignment(
        self, caption: str, tokens: np.ndarray, weights: np.ndarray, frames: int
    ) -> Alignment:
        steps = [int(token) for token in tokens if token != PAD]
        seen = self.model.frames(frames)
        second = seen / max(frames * self.data.features.hop / 1000, 1e-9)
        labels = [
            "" if i % max(round(second / 2), 1) else f"{i / second:.1f} s" for i in range(seen)
        ]
        return Alignment(
            caption,
            weights[: len(steps), :seen],
            [self._piece(token) for token in steps],
            labels,
        )

    def baselines(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Of single digits, an SVM on MFCC."""
        if self.data.name != "spoken_digits" or self.data.path is not None:
            return {}
        return {"mfcc_svm": lambda: baselines.mfcc_svm(self._speech, self.data.features)}

    def _conditions(self, split: str) -> Sequence[str]:
        return self._speech.conditions if split == "test" else ("",)

    def _written(self, outputs: Mapping[str, np.ndarray]) -> list[str]:
        size = self.encoder.size
        return [
            self.encoder.decode([token for token in tokens if PAD < token < size])
            for tokens in outputs["tokens"]
        ]

    def _piece(self, token: int) -> str:
        if token >= self.encoder.size:
            return "end"
        return self.encoder.decode([token]).strip() or "·"

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> Clips:
        """Paths of sound files."""
        sounds = []
        for path in raw:
            try:
                sounds.append(read_clip(path.strip(), self.data))
            except UserError as error:
                raise UserError(f"input {path!r}: {error}; give the path of a sound file") from None
        return Clips(sounds.__getitem__, [len(sound) for sound in sounds])

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """What was written of each sound, and its log-probability."""
        return [
            {"input": path, "output": text, "score": round(float(score), 4), "text": text}
            for path, text, score in zip(raw, self._written(outputs), outputs["score"], strict=True)
        ]


def _unit(samples: jax.Array) -> jax.Array:
    """int16 -> [-1, 1]."""
    return samples.astype(jnp.float32) / 32768


def _scale(clips: Clips, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the features of some clips of train, [F] each."""
    step = max(len(clips) // _MEASURED, 1)
    chosen = [clips[index]["samples"] for index in range(0, len(clips), step)]
    width = max(len(samples) for samples in chosen)
    features = jax.jit(lambda x, lengths: log_mel(x, lengths, data.features))
    sums, count = np.zeros((2, data.features.bands)), 0
    for start in range(0, len(chosen), 32):
        part = chosen[start : start + 32]
        padded = np.zeros((32, width), np.float32)
        lengths = np.zeros(32, np.int32)
        for row, samples in enumerate(part):
            padded[row, : len(samples)], lengths[row] = samples / 32768, len(samples)
        found, frames = features(padded, lengths)
        for row, size in zip(np.asarray(found, np.float64), np.asarray(frames), strict=True):
            sums += row[:size].sum(axis=0), np.square(row[:size]).sum(axis=0)
            count += int(size)
    mean, square = sums / max(count, 1)
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-4))
    return mean.astype(np.float32), deviation.astype(np.float32)


def _buckets(speech: SpeechData) -> list[dict[str, int]]:
    """A few pairs of lengths that waste little padding; the last holds any."""
    lengths = {
        field: np.concatenate([clips.lengths[field] for clips in speech.splits.values()])
        for field in ("samples", "target")
    }
    multiples = {"samples": 800, "target": 4}

    def up(field: str, value: float) -> int:
        return -(-int(value) // multiples[field]) * multiples[field]

    chosen = [
        {field: up(field, np.quantile(lengths[field], quantile)) for field in lengths}
        for quantile in (*_QUANTILES, 1.0)
    ]
    return [bucket for place, bucket in enumerate(chosen) if bucket not in chosen[:place]]


TASK = SpeechRecognition
