"""Processor of speech recognition: converts audio files to features, and units to transcripts.

B batch, P samples, S frames, F mel bands.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.audio.features import log_mel
from tasks.common.audio.files import SUFFIXES
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.speech_recognition.data import DataConfig, read_clip
from tasks.task import ArraySpec, ProcessingSteps
from tasks.transcription import TranscriptionProcessor

# Approximate maximum number of training clips for the feature statistics, and the batch size of
# that computation.
_SCALE_CLIPS, _SCALE_BATCH = 500, 32
# Peak of a normalized clip, and lower bound of the divisor, which is the peak before normalization.
_PEAK, _LEAST_PEAK = 0.5, 1e-3

Change = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class SpeechProcessor(TranscriptionProcessor):
    """Processor that converts audio files to samples and features, and units to transcripts.

    Attributes:
      mean, deviation: mean and standard deviation of the training features, [F] each.
    """

    mean: np.ndarray
    deviation: np.ndarray

    field = "samples"
    input_spec = ArraySpec(("batch", "length"), "int16", 0)
    input_kind = "a sound file"
    input_suffixes = SUFFIXES

    def read(self, path: str) -> np.ndarray:
        """Reads the samples of an audio file; see `read_clip`."""
        return read_clip(path, self.data)

    def steps(self) -> ProcessingSteps:
        """Returns the processing steps of exports, which read sound files and decode texts."""
        file, rate = "tokenizer.json", self.data.features.sample_rate
        sound = {"rate": rate, "seconds": self.data.max_seconds, "trim": self.data.trim}
        return ProcessingSteps(
            "sound",
            [
                {"op": "read_sound", "to": "samples", **sound},
                {"op": "length", "of": "samples", "to": "length"},
            ],
            [{"op": "transcript", "file": file}],
            {file: self.tokenizer.to_json()},
            ["soundfile", "soxr", *self.tokenizer.libraries],
        )

    def export_sizes(self) -> list[dict[str, int]]:
        """Returns the exported clip lengths in samples.

        These are the length of the longest clip, and a third, a ninth and a twenty-seventh of it.
        Of the shorter lengths, those below one second are omitted."""
        config, model = self.data.features, self.model
        longest = math.ceil(config.sample_rate * self.data.max_seconds)
        if model.encoder != "pyramid":
            # The longest clip whose frames, subsampled by 4, are no more than `max_length`.
            most = 4 * model.max_length - 1
            longest = min(
                longest, config.samples_of(config.window) + most * config.samples_of(config.hop)
            )
        shorter = [longest // 3**power for power in (3, 2, 1)]
        return [{"length": n} for n in [*(n for n in shorter if n >= config.sample_rate), longest]]

    def features(
        self, samples: jax.Array, lengths: jax.Array, change: Change | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Computes standardized features [B, S, F] and the numbers of frames [B].

        Args:
          samples: audio samples in [-1, 1], float [B, P].
          lengths: numbers of samples [B].
          change: augmentation function, applied to the log-mel features before normalization; None
            for no augmentation.
        """
        features, frames = normalized_log_mel(samples, lengths, self.data, change)
        real = jnp.arange(features.shape[1]) < frames[:, None]
        return jnp.where(real[..., None], (features - self.mean) / self.deviation, 0.0), frames


def normalized_log_mel(
    samples: jax.Array, lengths: jax.Array, data: DataConfig, change: Change | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes log-mel features, normalized for each clip if `data.normalised` is set.

    In that case clips are scaled to the same peak and dynamic range, and the mean of each mel band
    is 0.

    Args:
      samples: audio samples in [-1, 1], float [B, P].
      lengths: numbers of samples [B].
      data: config of the data set.
      change: augmentation function, applied to the log-mel features before the mean is subtracted;
        None for no augmentation.

    Returns:
      Features [B, S, F], and numbers of frames [B].
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


def fit_scale(part: TranscriptionExamples, data: DataConfig) -> dict[str, np.ndarray]:
    """Computes mean and standard deviation [F] of the features, from a sample of the clips."""
    step = max(len(part) // _SCALE_CLIPS, 1)
    chosen = [part[index]["samples"] for index in range(0, len(part), step)]
    width = max(len(samples) for samples in chosen)

    @jax.jit
    def features(x: np.ndarray, lengths: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return normalized_log_mel(x, lengths, data)

    sums, count = np.zeros((2, data.features.bands)), 0
    for start in range(0, len(chosen), _SCALE_BATCH):
        padded = np.zeros((_SCALE_BATCH, width), np.float32)
        lengths = np.zeros(_SCALE_BATCH, np.int32)
        for row, samples in enumerate(chosen[start : start + _SCALE_BATCH]):
            padded[row, : len(samples)], lengths[row] = samples / 32768, len(samples)
        found, frames = features(padded, lengths)
        for row, size in zip(np.asarray(found, np.float64), np.asarray(frames), strict=True):
            sums += row[:size].sum(axis=0), np.square(row[:size]).sum(axis=0)
            count += int(size)
    mean, square = sums / max(count, 1)
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-4))
    return {"mean": mean.astype(np.float32), "deviation": deviation.astype(np.float32)}
