"""Speech recognition: the task contract over `data.py` and `model.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.audio.augmentation import augment_samples, perturb_bands, spec_augment
from tasks.common.audio.features import log_mel
from tasks.common.backbones import recurrent, transformer
from tasks.common.backbones.transcriber import EncoderOutput, TranscriberConfig
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.errors import UserError
from tasks.common.keys import example_keys
from tasks.common.text.tokenizer import Tokenizer
from tasks.figures import Curves, Figure
from tasks.speech_recognition import baselines
from tasks.speech_recognition.data import (
    NOISES,
    OFFICIAL,
    DataConfig,
    SpeechData,
    clips,
    load,
    read_clip,
)
from tasks.speech_recognition.model import MODEL_CONFIGS, SpeechConfig, SpeechRecognizer
from tasks.transcription import FAILURES, TranscriptionTask

# Clips of train by which features are standardised, and how many at once.
_MEASURED, _TOGETHER = 500, 32
# Largest sample of a normalised clip, and the least that is made so large.
_PEAK, _LEAST_PEAK = 0.5, 1e-3


class SpeechRecognition(TranscriptionTask):
    """Samples -> words."""

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "wer"
    table_metrics = ("wer", "cer", "exact_match", "loss")
    condition_metrics = rf"wer_(long|snr_\d+)|{FAILURES}"
    averaged_over = "held_out"
    sharding_rules = (*transformer.SHARDING_RULES, *recurrent.SHARDING_RULES)
    field, multiple = "samples", 800

    def __init__(
        self,
        data: DataConfig,
        model: SpeechConfig,
        tokenizer: Tokenizer,
        scale: tuple[np.ndarray, np.ndarray],
        speech: SpeechData | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          tokenizer: words to units.
          scale: mean and deviation of the features of train, [F] each.
          speech: the splits; None where only predictions are wanted.
        """
        if model.chunk and data.normalised:
            raise UserError(
                "config.data.normalised: with config.model.chunk the encoder runs while someone "
                "speaks, when peak and mean of the clip are not known; set it to False"
            )
        self.data, self.model, self.tokenizer, self._scale = data, model, tokenizer, scale
        self._speech = speech
        if speech is not None:
            self.conditions = speech.conditions
            self._adopt(speech.splits)

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: SpeechConfig, paths: Paths) -> SpeechRecognition:
        """See `Task.prepare`."""
        speech = load(data, paths)
        return cls(data, model, speech.tokenizer, _scale(speech.splits["train"], data), speech)

    @classmethod
    def restore(
        cls, data: DataConfig, model: SpeechConfig, assets: Mapping[str, Any]
    ) -> SpeechRecognition:
        """See `Task.restore`."""
        scale = tuple(np.asarray(assets[name], np.float32) for name in ("mean", "deviation"))
        return cls(data, model, Tokenizer.from_json(assets["tokenizer"]), scale)

    def assets(self) -> dict[str, Any]:
        """The tokenizer, and by what features are standardised."""
        mean, deviation = ([round(float(x), 5) for x in row] for row in self._scale)
        return {"tokenizer": self.tokenizer.to_json(), "mean": mean, "deviation": deviation}

    @property
    def fingerprint(self) -> str:
        """Of sound, texts and splits."""
        return self._speech.fingerprint

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split, and those without a text."""
        return self._speech.summary()

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._speech.parts

    @property
    def settings(self) -> dict[str, Any]:
        """The speaker who is not in train, or, of the data set's own split, that all are."""
        own = self.data.path is not None or self.data.name.startswith("prompts")
        if own:
            return {}
        held_out = self.data.held_out
        return {"speakers": "in_train"} if held_out == OFFICIAL else {"held_out": held_out}

    # ------------------------------------------------------------------ model

    @property
    def writer(self) -> TranscriberConfig:
        """See `TranscriptionTask`."""
        return self.model.transcriber

    def build_model(self, rngs: nnx.Rngs) -> SpeechRecognizer:
        """See `Task.build_model`."""
        return SpeechRecognizer(self.model, self.data.features, self.tokenizer.size, rngs=rngs)

    def _encode(
        self, model: SpeechRecognizer, batch: Mapping[str, Any], key: Any = None
    ) -> EncoderOutput:
        """In training of sound whose speed, loudness, noise and features have been changed."""
        samples = batch["samples"].astype(jnp.float32) / 32768
        lengths, config = batch["length"], self.data.augmentation
        if key is None:
            return model.encode(*self._features(samples, lengths))
        *keys, key = jax.random.split(key, 4)
        sound, bands, hidden = (example_keys(each, batch["id"]) for each in keys)
        samples, lengths = augment_samples(samples, lengths, sound, config)
        features, frames = self._features(
            samples, lengths, lambda features: perturb_bands(features, bands, config)
        )
        features = spec_augment(features, frames, hidden, config)
        return model.encode(features, frames, key)

    def _features(
        self,
        samples: jax.Array,
        lengths: jax.Array,
        change: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Standardised features of samples, and the numbers of frames; changed before that."""
        features, frames = _log_mel(samples, lengths, self.data, change)
        mean, deviation = self._scale
        real = jnp.arange(features.shape[1]) < frames[:, None]
        return jnp.where(real[..., None], (features - mean) / deviation, 0.0), frames

    # ------------------------------------------------------------------ on the host

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
        return drawn + super().figures(statistics, outputs, split, attention)

    def _read_from(self, example: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
        """See `TranscriptionTask`: log-mel features, high tones above, and times."""
        samples = example["samples"][None].astype(np.float32) / 32768
        features, _ = self._features(jnp.asarray(samples), example["length"][None])
        return np.asarray(features[0]).T[::-1], self._times(int(example["length"]))

    def _times(self, samples: int) -> list[str]:
        """Of each of the encoder's frames, every half second, when it is."""
        frames = self.data.features.frames(samples)
        seen = self.model.frames(frames)
        second = seen / max(frames * self.data.features.hop / 1000, 1e-9)
        every = max(round(second / 2), 1)
        return ["" if frame % every else f"{frame / second:.1f} s" for frame in range(seen)]

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Of digits an SVM on MFCC, of English prompts PocketSphinx."""
        speech, features = self._speech, self.data.features
        if self.data.path is not None:
            return {}
        if self.data.name == "spoken_digits":
            return {"mfcc_svm": lambda: baselines.mfcc_svm(speech, features)}
        if self.data.name == "spoken_digit_strings":
            return {"cut_and_classify": lambda: baselines.cut_and_classify(speech, features)}
        if self.data.name == "prompts_en":
            return {"pocketsphinx": lambda: baselines.pocketsphinx(speech, features.sample_rate)}
        return {}

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> TranscriptionExamples:
        """Paths of sound files."""
        sounds = []
        for path in raw:
            try:
                sounds.append(read_clip(path.strip(), self.data))
            except UserError as error:
                raise UserError(f"input {path!r}: {error}; give the path of a sound file") from None
        return clips(sounds.__getitem__, [len(sound) for sound in sounds])


def _log_mel(
    samples: jax.Array,
    lengths: jax.Array,
    data: DataConfig,
    change: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Features of samples [B, P], [B, S, F], and the numbers of frames [B]: changed, and where
    clips are normalised, of the same peak, of one dynamic range, and without their mean.
    """
    if data.normalised:
        real = jnp.arange(samples.shape[1]) < lengths[:, None]
        peak = jnp.max(jnp.where(real, jnp.abs(samples), 0.0), axis=1, keepdims=True)
        samples = samples * _PEAK / jnp.maximum(peak, _LEAST_PEAK)
    features, frames = log_mel(samples, lengths, data.features)
    features = features if change is None else change(features)
    if not data.normalised:
        return features, frames
    real = (jnp.arange(features.shape[1]) < frames[:, None])[..., None]
    if data.dynamic_range:
        loudest = jnp.max(features, axis=(1, 2), keepdims=True, where=real, initial=-jnp.inf)
        features = jnp.maximum(features, loudest - data.dynamic_range * math.log(10) / 10)
    count = jnp.maximum(frames, 1)[:, None, None]
    mean = jnp.sum(jnp.where(real, features, 0.0), axis=1, keepdims=True) / count
    return jnp.where(real, features - mean, 0.0), frames


def _scale(part: TranscriptionExamples, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the features of some clips of train, [F] each."""
    step = max(len(part) // _MEASURED, 1)
    chosen = [part[index]["samples"] for index in range(0, len(part), step)]
    width = max(len(samples) for samples in chosen)

    @jax.jit
    def features(x: np.ndarray, lengths: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return _log_mel(x, lengths, data)

    sums, count = np.zeros((2, data.features.bands)), 0
    for start in range(0, len(chosen), _TOGETHER):
        padded = np.zeros((_TOGETHER, width), np.float32)
        lengths = np.zeros(_TOGETHER, np.int32)
        for row, samples in enumerate(chosen[start : start + _TOGETHER]):
            padded[row, : len(samples)], lengths[row] = samples / 32768, len(samples)
        found, frames = features(padded, lengths)
        for row, size in zip(np.asarray(found, np.float64), np.asarray(frames), strict=True):
            sums += row[:size].sum(axis=0), np.square(row[:size]).sum(axis=0)
            count += int(size)
    mean, square = sums / max(count, 1)
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-4))
    return mean.astype(np.float32), deviation.astype(np.float32)


TASK = SpeechRecognition
