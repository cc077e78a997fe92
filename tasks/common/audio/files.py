"""Reading of sound files to mono samples of one rate, resampling and trimming, on the host.

P samples, float32 in [-1, 1]."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tasks.common.audio import headers
from tasks.common.data.regular_files import expect_regular
from tasks.common.errors import UserError, warn_once

# Samples of which the loudness is one number when silence is taken off.
_TRIMMED = 256


# Frames that are decoded at a time, and from how many on a header does not know how many there are.
_BLOCK, _UNKNOWN_FRAMES = 1 << 16, 1 << 60


# Peak of the average, as a share of that of the channels, below which it is nothing but rounding.
_CANCELLED = 1e-3


_RATES = (1000, 1_000_000)


_EXPECTED_RATE = f"{_RATES[0]} to {_RATES[1]}"


_CONVERT = "convert it to WAV or FLAC, as by ffmpeg -i FILE out.wav"


def read_audio(source: str | Path | bytes, sample_rate: int, name: str = "") -> np.ndarray:
    """Samples of a sound file: any that libsndfile reads (WAV, FLAC, Ogg, MP3, ...) of any width,
    rate and number of channels, which are averaged.

    A recording that was written to a pipe, whose header does not say how long it is, is read to its
    end. Samples beyond ±1, which files of floating-point numbers may hold, are not clipped: the
    whole clip is divided by its peak, and a message says so once.

    Args:
      source: a path, or a file's bytes.
      sample_rate: to which it is resampled (soxr, its high quality).
      name: in messages, for bytes.

    Returns:
      float32 [P]; P is 0 for a file without samples.

    Raises:
      UserError: no such file, not sound, cut off, a rate that no recording has, or samples that are
        not finite.
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
        raise UserError(f"{name}: has a rate of {rate} samples a second, expected {_EXPECTED_RATE}")
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
        warn_once(f"{name}: has samples up to {peak:.5g}, beyond 1; divided by that")
        # A filter may go beyond what it is given.
        found = found / max(np.abs(found).max(initial=0.0), 1)
    return found


def _decoded(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Samples [P, channels] and their rate."""
    import soundfile

    class Forward(soundfile.SoundFile):
        """Never seeks, as reading does after each block: FLAC streams without a length cannot."""

        def seekable(self) -> bool:
            return False

    kind = headers.unsupported_kind(data)
    if kind is not None:
        raise UserError(f"{name}: is {kind}, which is not supported; {_CONVERT}")
    if headers.sample_rate(data) == 0:
        raise UserError(f"{name}: has a rate of 0 samples a second, expected {_EXPECTED_RATE}")
    missing = headers.missing_bytes(data)
    try:
        with Forward(io.BytesIO(data)) as sound:
            block = np.empty((_BLOCK, sound.channels), np.float32)
            blocks = []
            # Not all at once: a header may promise more than any memory holds.
            while count := sound.buffer_read_into(block, "float32"):
                blocks.append(block[:count].copy())
            expected, rate = sound.frames, sound.samplerate
    except (soundfile.LibsndfileError, ValueError, MemoryError) as error:
        if missing:
            raise _cut_off(name, missing, "bytes") from None
        said = getattr(error, "error_string", str(error)).strip(" .")
        raise UserError(f"{name}: not sound that can be read ({said}); {_CONVERT}") from None
    if missing:
        raise _cut_off(name, missing, "bytes")
    samples = np.concatenate([block[:0], *blocks])
    if len(samples) < expected < _UNKNOWN_FRAMES:
        raise _cut_off(name, expected - len(samples), "samples")
    return samples, rate


def _cut_off(name: str, count: int, unit: str) -> UserError:
    return UserError(f"{name}: cut off: {count} {unit} are missing that its header promises")


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] -> int16. What resampling puts beyond is clipped, never wrapped around."""
    return np.round(samples * 32768).clip(-32768, 32767).astype(np.int16)


def resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 [P] at another rate (soxr)."""
    if rate == sample_rate or not len(samples):
        return samples.astype(np.float32)
    import soxr

    return soxr.resample(samples, rate, sample_rate).astype(np.float32)


def trim_silence(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Samples [P] without what is quieter at their ends, by so many decibels, than the loudest
    frame; all of them for 0 decibels, or where all are alike.
    """
    if not decibels or not len(samples):
        return samples
    from librosa.effects import trim

    _, (start, end) = trim(
        samples.astype(np.float32), top_db=decibels, frame_length=_TRIMMED, hop_length=_TRIMMED // 4
    )
    return samples[start:end]


def _said(error: OSError | ValueError) -> str:
    # A path with a null byte gives ValueError.
    if isinstance(error, FileNotFoundError | ValueError):
        return "no such file"
    return str(error.strerror)
