"""Reading, resampling and trimming of audio files on the host.

Audio is an array of P mono samples, float32 in [-1, 1]."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tasks.common.audio import headers
from tasks.common.data.regular_files import expect_regular
from tasks.common.errors import UserError, warn_once

# Number of samples in each frame for which `trim_silence` measures the loudness.
_TRIMMED = 256
# Number of frames that are decoded at a time. If the number of frames in a header is at least
# `_UNKNOWN_FRAMES`, it is a placeholder for an unknown length.
_BLOCK, _UNKNOWN_FRAMES = 1 << 16, 1 << 60
# If the peak of the average of the channels, divided by the peak of the channels, is below this
# number, the average consists of rounding errors only.
_CANCELLED = 1e-3
_RATES = (1000, 1_000_000)
_EXPECTED_RATE = f"{_RATES[0]} to {_RATES[1]}"
# Extensions of audio files; case is ignored.
SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf"),
)
_CONVERT = "convert it to WAV or FLAC, as by ffmpeg -i FILE out.wav"


def read_audio(source: str | Path | bytes, sample_rate: int, name: str = "") -> np.ndarray:
    """Reads a sound file of any format that libsndfile supports (WAV, FLAC, Ogg, MP3, ...).

    Channels are averaged. A recording from a pipe, whose header has no length, is read to its end.
    If samples of a floating-point file exceed ±1, the clip is divided by its peak, with a warning.

    Args:
      source: a path, or a file's bytes.
      sample_rate: sample rate of the result, to which audio is resampled by soxr (high quality).
      name: name of the file in messages, if `source` is bytes.

    Returns:
      float32 [P]; P is 0 for a file without samples.

    Raises:
      UserError: the file is missing, is not audio or is truncated, the sample rate is implausible,
        or samples are not finite.
    """
    name = name or str(source)
    if not isinstance(source, bytes):
        expect_regular(source, name)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: {_said(error)}") from None
    if not data:
        raise UserError(f"{name}: the file is empty")
    samples, rate = _decoded(headers.with_true_sizes(data), name)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UserError(
            f"{name}: has a rate of {rate} samples per second, expected {_EXPECTED_RATE}"
        )
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(f"{name}: has samples that are not finite")
    if np.abs(mono).max(initial=0.0) < _CANCELLED * np.abs(samples).max(initial=0.0):
        warn_once(
            f"{name}: its channels cancel each other, so the result is silent; keep one channel"
        )
    peak = float(np.abs(mono).max(initial=0.0))
    found = resample(mono / np.float32(peak) if peak > 1 else mono, rate, sample_rate)
    if peak > 1:
        warn_once(
            f"{name}: has samples up to {peak:.5g}, beyond 1; all samples are divided by this peak"
        )
        # The resampling filter may overshoot.
        found = found / max(np.abs(found).max(initial=0.0), 1)
    return found


def _decoded(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes the content of an audio file.

    Returns:
      The samples, float32 [P, channels], and the sample rate.
    """
    import soundfile

    class Forward(soundfile.SoundFile):
        """A SoundFile that never seeks, since that fails for FLAC streams of unknown length."""

        def seekable(self) -> bool:
            return False

    kind = headers.unsupported_kind(data)
    if kind is not None:
        raise UserError(f"{name}: is {kind}, which is not supported; {_CONVERT}")
    if headers.sample_rate(data) == 0:
        raise UserError(f"{name}: has a rate of 0 samples per second, expected {_EXPECTED_RATE}")
    missing = headers.missing_bytes(data)
    try:
        with Forward(io.BytesIO(data)) as sound:
            block = np.empty((_BLOCK, sound.channels), np.float32)
            blocks = []
            # Decoded in blocks, because the header may give a length that exceeds the memory.
            while count := sound.buffer_read_into(block, "float32"):
                blocks.append(block[:count].copy())
            expected, rate = sound.frames, sound.samplerate
    except (soundfile.LibsndfileError, ValueError, MemoryError) as error:
        if missing:
            raise _cut_off(name, missing, "bytes") from None
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise UserError(f"{name}: not a readable audio file ({reason}); {_CONVERT}") from None
    if missing:
        raise _cut_off(name, missing, "bytes")
    samples = np.concatenate([block[:0], *blocks])
    if len(samples) < expected < _UNKNOWN_FRAMES:
        raise _cut_off(name, expected - len(samples), "samples")
    return samples, rate


def _cut_off(name: str, count: int, unit: str) -> UserError:
    return UserError(f"{name}: is truncated: {count} {unit} are missing according to its header")


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """Converts float32 samples in [-1, 1] to int16, clipping overshoots of resampling."""
    return np.round(samples * 32768).clip(-32768, 32767).astype(np.int16)


def resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Resamples samples, float32 [P], from the sample rate `rate` to `sample_rate` (by soxr)."""
    if rate == sample_rate or not len(samples):
        return samples.astype(np.float32)
    import soxr

    return soxr.resample(samples, rate, sample_rate).astype(np.float32)


def trim_silence(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Removes silence at the beginning and the end of a recording.

    Args:
      samples: [P].
      decibels: frames that are quieter than the loudest frame by more than this value count as
        silence; 0 removes nothing.
    """
    if not decibels or not len(samples):
        return samples
    from librosa.effects import trim

    _, (start, end) = trim(
        samples.astype(np.float32), top_db=decibels, frame_length=_TRIMMED, hop_length=_TRIMMED // 4
    )
    return samples[start:end]


def _said(error: OSError | ValueError) -> str:
    # A path with a null byte causes a ValueError.
    if isinstance(error, FileNotFoundError | ValueError):
        return "no such file"
    return str(error.strerror)
