"""Sound: files read to samples of one rate, and log-mel features of them under jit.

B batch, P samples, S frames, F mel bands. Samples are float32 in [-1, 1], mono.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from tasks.common import sound_headers
from tasks.common.errors import UserError
from tasks.common.regular_files import expect_regular

Array = jax.Array

# Of the curve of an equalizer.
_KNOTS = 6
# Samples of which the loudness is one number when silence is taken off.
_TRIMMED = 256
# Frames that are decoded at a time, and from how many on a header does not know how many there are.
_BLOCK, _UNKNOWN_FRAMES = 1 << 16, 1 << 60
# Peak of the average, as a share of that of the channels, below which it is nothing but rounding.
_CANCELLED = 1e-3
_RATES = (1000, 1_000_000)
_EXPECTED_RATE = f"{_RATES[0]} to {_RATES[1]}"
_CONVERT = "convert it to WAV or FLAC, as by ffmpeg -i FILE out.wav"


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """Log energies in bands of the mel scale (Davis & Mermelstein 1980; Slaney's scale).

    Attributes:
      sample_rate: samples a second.
      window, hop: length of a frame and from one to the next, in milliseconds.
      bands: F.
      lowest: Hz at which the first band begins; the last ends at half the sample rate.
      floor: energies below count as this much: what a microphone's own noise has.
    """

    sample_rate: int = 8000
    window: float = 32.0
    hop: float = 10.0
    bands: int = 40
    lowest: float = 60.0
    floor: float = 1e-6

    def __post_init__(self):
        for name in ("sample_rate", "window", "hop", "bands", "floor"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.lowest < self.sample_rate / 2:
            raise ValueError(
                f"lowest must be in [0, {self.sample_rate / 2:g}), half the sample rate, got "
                f"{self.lowest}"
            )
        if self.samples_of(self.window) < 2 or self.samples_of(self.hop) < 1:
            raise ValueError(f"window and hop must hold samples, got {self.window} and {self.hop}")
        if not self.filters().any(axis=1).all():
            raise ValueError(
                f"bands must be fewer: of {self.bands} some hold none of the "
                f"{self.fft_size // 2 + 1} frequencies of a window of {self.window:g} ms"
            )

    def samples_of(self, milliseconds: float) -> int:
        """Samples in so many milliseconds."""
        return round(self.sample_rate * milliseconds / 1000)

    @property
    def fft_size(self) -> int:
        """A power of two that holds a window."""
        return 1 << (self.samples_of(self.window) - 1).bit_length()

    def filters(self) -> np.ndarray:
        """float32 [F, fft_size / 2 + 1], triangles of area 1 (librosa.filters.mel)."""
        return _filters(self.sample_rate, self.fft_size, self.bands, self.lowest)

    def frames(self, samples: Array | int) -> Array | int:
        """Frames of so many samples: as many windows as begin before the last is full, and one at
        least where there is any sample.
        """
        window, hop = self.samples_of(self.window), self.samples_of(self.hop)
        most = np.maximum if isinstance(samples, int | np.ndarray) else jnp.maximum
        return (samples > 0) * (1 + most(samples - window, 0) // hop)


@functools.cache
def _filters(sample_rate: int, fft_size: int, bands: int, lowest: float) -> np.ndarray:
    import warnings

    from librosa.filters import mel

    with warnings.catch_warnings():
        # Empty filters are an error of ours.
        warnings.simplefilter("ignore")
        return mel(sr=sample_rate, n_fft=fft_size, n_mels=bands, fmin=lowest)


def log_mel(samples: Array, lengths: Array, config: LogMelConfig) -> tuple[Array, Array]:
    """Features of a padded batch.

        X_s = FFT(hann ⊙ x_{s·hop ... s·hop + window}),   features_s = log max(M |X_s|², floor)

    Args:
      samples: [B, P]; what stands at padding changes nothing.
      lengths: int [B], samples of each.
      config: see `LogMelConfig`.

    Returns:
      float32 [B, S, F], 0 beyond the last frame of each, and the numbers of frames int [B].

    Raises:
      ValueError: shapes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("samples", samples, "B P", sizes)
    shapes.expect("lengths", lengths, "B", sizes)
    window, hop = config.samples_of(config.window), config.samples_of(config.hop)
    most = int(config.frames(max(samples.shape[1], 1)))
    samples = jnp.where(jnp.arange(samples.shape[1]) < lengths[:, None], samples, 0.0)
    needed = (most - 1) * hop + window
    samples = jnp.pad(samples, ((0, 0), (0, max(needed - samples.shape[1], 0))))
    places = hop * np.arange(most)[:, None] + np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(samples[:, places] * hann.astype(np.float32), n=config.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energies = jnp.einsum(
        "BSK,FK->BSF", power, config.filters(), precision=jax.lax.Precision.HIGHEST
    )
    frames = config.frames(lengths)
    real = jnp.arange(most) < frames[:, None]
    return jnp.where(real[..., None], jnp.log(jnp.maximum(energies, config.floor)), 0.0), frames


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
    except OSError as error:
        raise UserError(f"{name}: {_said(error)}") from None
    if not data:
        raise UserError(f"{name}: the file is empty")
    samples, rate = _decoded(sound_headers.with_true_sizes(data), name)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UserError(f"{name}: has a rate of {rate} samples a second, expected {_EXPECTED_RATE}")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(f"{name}: has samples that are not finite")
    if np.abs(mono).max(initial=0.0) < _CANCELLED * np.abs(samples).max(initial=0.0):
        _warn(f"{name}: its channels cancel each other, so that nothing is heard; keep one of them")
    peak = float(np.abs(mono).max(initial=0.0))
    found = resampled(mono / np.float32(peak) if peak > 1 else mono, rate, sample_rate)
    if peak > 1:
        _warn(f"{name}: has samples up to {peak:.5g}, beyond 1; divided by that")
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

    kind = sound_headers.unsupported_kind(data)
    if kind is not None:
        raise UserError(f"{name}: is {kind}, which is not supported; {_CONVERT}")
    if sound_headers.sample_rate(data) == 0:
        raise UserError(f"{name}: has a rate of 0 samples a second, expected {_EXPECTED_RATE}")
    missing = sound_headers.missing_bytes(data)
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


@functools.cache
def _warn(message: str) -> None:
    """Says something on standard error, once."""
    print(message, file=sys.stderr)


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] -> int16. What resampling puts beyond is clipped, never wrapped around."""
    return np.round(samples * 32768).clip(-32768, 32767).astype(np.int16)


def resampled(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 [P] at another rate (soxr)."""
    if rate == sample_rate or not len(samples):
        return samples.astype(np.float32)
    import soxr

    return soxr.resample(samples, rate, sample_rate).astype(np.float32)


def trimmed(samples: np.ndarray, decibels: float) -> np.ndarray:
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


def _said(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)


@dataclasses.dataclass(frozen=True)
class SoundAugmentation:
    """How training examples are changed, under jit, by a key for each.

    Attributes:
      speed: largest change of speed (and pitch), as a share: 0.1 is 0.9 to 1.1 (Ko et al. 2015).
      gain: largest change of loudness, in decibels.
      noise: least and most signal-to-noise ratio of white noise, in decibels; none if empty.
      warp: largest stretch of the bands, as a share: throats of other lengths (Jaitly & Hinton
        2013, "Vocal Tract Length Perturbation").
      equalizer: deviation, in decibels, of a random curve over the bands: other microphones.
      time_masks, time_width: how many stretches of frames are blanked, and of at most how many
        (SpecAugment, Park et al. 2019).
      band_masks, band_width: the same of bands.
    """

    speed: float = 0.0
    gain: float = 0.0
    noise: tuple[float, ...] = ()
    warp: float = 0.0
    equalizer: float = 0.0
    time_masks: int = 0
    time_width: int = 10
    band_masks: int = 0
    band_width: int = 8

    def __post_init__(self):
        if not 0 <= self.speed < 0.5:
            raise ValueError(f"speed must be in [0, 0.5), got {self.speed}")
        if not 0 <= self.gain < 60:
            raise ValueError(f"gain must be in [0, 60), got {self.gain}")
        if len(self.noise) not in (0, 2) or list(self.noise) != sorted(self.noise):
            raise ValueError(f"noise must be the least and the most decibels, got {self.noise}")
        if not 0 <= self.warp < 0.5:
            raise ValueError(f"warp must be in [0, 0.5), got {self.warp}")
        for name in ("equalizer", "time_masks", "band_masks"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("time_width", "band_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def augment_samples(
    samples: Array, lengths: Array, keys: Array, config: SoundAugmentation
) -> tuple[Array, Array]:
    """Speed, loudness and noise, of each example by its key.

    Args:
      samples: [B, P].
      lengths: int [B].
      keys: [B].
      config: what to change.

    Returns:
      Samples [B, P'] with P' = P / (1 - speed), and the new lengths.
    """

    def one(x: Array, length: Array, key: Array) -> tuple[Array, Array]:
        fast, loud, signal, white = jax.random.split(key, 4)
        most = math.ceil(len(x) / (1 - config.speed))
        rate = jax.random.uniform(fast, minval=1 - config.speed, maxval=1 + config.speed)
        if config.speed:
            # Between neighbours; a search for them, as in jnp.interp, costs more than the network.
            places = jnp.arange(most) * rate
            whole = jnp.floor(places).astype(jnp.int32)
            padded = jnp.pad(x, (0, 1))
            left, right = (padded.at[whole + i].get(mode="fill", fill_value=0) for i in (0, 1))
            x = left + (places - whole) * (right - left)
            length = jnp.minimum(jnp.ceil(length / rate).astype(length.dtype), most)
        if config.gain:
            x = x * 10 ** (jax.random.uniform(loud, minval=-config.gain, maxval=config.gain) / 20)
        if config.noise:
            least, largest = config.noise
            decibels = jax.random.uniform(signal, minval=least, maxval=largest)
            x = with_noise(x, length, decibels, white)
        return x, length

    return jax.vmap(one)(samples, lengths, keys)


def with_noise(samples: Array, length: Array, decibels: Array | float, key: Array) -> Array:
    """Samples [P] with white noise at a signal-to-noise ratio in decibels; silence stays so."""
    real = jnp.arange(len(samples)) < length
    power = jnp.sum(jnp.where(real, jnp.square(samples), 0.0)) / jnp.maximum(length, 1)
    level = jnp.sqrt(power) * 10 ** (-decibels / 20)
    return samples + jnp.where(real, level * jax.random.normal(key, samples.shape), 0.0)


def augment_bands(features: Array, keys: Array, config: SoundAugmentation) -> Array:
    """Another throat and another microphone, for each example by its key.

        y_sf = x_s,(f · a) + e_f,      a in 1 ± warp, e a line between random knots

    Args:
      features: x, logarithms of energies, [B, S, F]; the last band stands for those beyond.
      keys: [B].
      config: what to change.
    """

    def one(x: Array, key: Array) -> Array:
        throat, microphone = jax.random.split(key)
        F = x.shape[-1]
        if config.warp:
            stretch = jax.random.uniform(throat, minval=1 - config.warp, maxval=1 + config.warp)
            places = jnp.minimum(jnp.arange(F) * stretch, F - 1)
            low = jnp.minimum(places.astype(jnp.int32), F - 2)
            x = x[:, low] + (places - low) * (x[:, low + 1] - x[:, low])
        if config.equalizer:
            knots = config.equalizer * math.log(10) / 10 * jax.random.normal(microphone, (_KNOTS,))
            x = x + jnp.interp(jnp.linspace(0, _KNOTS - 1, F), jnp.arange(_KNOTS), knots)
        return x

    return jax.vmap(one)(features, keys) if config.warp or config.equalizer else features


def spec_augment(features: Array, frames: Array, keys: Array, config: SoundAugmentation) -> Array:
    """Blanks stretches of frames and of bands with the example's mean (Park et al. 2019).

    Args:
      features: [B, S, F].
      frames: int [B], real ones.
      keys: [B].
      config: how many and how wide.
    """
    if not (config.time_masks or config.band_masks):
        return features

    def stretch(key: Array, size: Array | int, length: int, width: int) -> Array:
        """bool [length]: a random stretch of up to `width` within the first `size`."""
        begin, wide = jax.random.split(key)
        wide = jax.random.randint(wide, (), 0, width + 1)
        start = jax.random.randint(begin, (), 0, jnp.maximum(size - wide, 0) + 1)
        places = jnp.arange(length)
        return (places >= start) & (places < start + wide)

    def one(x: Array, size: Array, key: Array) -> Array:
        S, F = x.shape
        real = jnp.arange(S) < size
        mean = jnp.sum(x * real[:, None]) / jnp.maximum(size * F, 1)
        for number in range(config.time_masks + config.band_masks):
            mine = jax.random.fold_in(key, number)
            if number < config.time_masks:
                hidden = stretch(mine, size, S, config.time_width)[:, None]
            else:
                hidden = stretch(mine, F, F, config.band_width)[None]
            x = jnp.where(hidden & real[:, None], mean, x)
        return x

    return jax.vmap(one)(features, frames, keys)
