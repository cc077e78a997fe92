"""Log-mel features of audio, computed under jit.

Samples are float32 in [-1, 1], mono. In shapes, B is the batch size, P the number of samples, S the
number of frames, and F the number of mel bands.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from attention.sharding import over_examples
from tasks.common.configs import Config, NonNegativeFloat, PositiveFloat, PositiveInt

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LogMelConfig(Config):
    """Config of log-mel features (Davis & Mermelstein 1980), with Slaney's mel scale.

    Attributes:
      sample_rate: samples per second.
      window, hop: length of a frame and distance between frames, in milliseconds.
      bands: number of bands F.
      lowest: lower end of the first band in Hz; the last band ends at half the sample rate.
      floor: minimum energy, about the energy of microphone noise.
    """

    sample_rate: PositiveInt = 8000
    window: PositiveFloat = 32.0
    hop: PositiveFloat = 10.0
    bands: PositiveInt = 40
    lowest: NonNegativeFloat = 60.0
    floor: PositiveFloat = 1e-6

    def __post_init__(self):
        super().__post_init__()
        nyquist = self.sample_rate / 2
        self.expect("lowest", self.lowest < nyquist, f"a number in [0, {nyquist:g})")
        self.expect("window", self.samples_of(self.window) >= 2, "at least 2 samples")
        self.expect("hop", self.samples_of(self.hop) >= 1, "at least 1 sample")
        fit = self.filters().any(axis=1).all()
        frequencies = f"the {self.fft_size // 2 + 1} frequencies of a window of {self.window:g} ms"
        self.expect("bands", fit, f"fewer, such that each band contains one of {frequencies}")

    def samples_of(self, milliseconds: float) -> int:
        """Returns the number of samples in a duration given in milliseconds."""
        return round(self.sample_rate * milliseconds / 1000)

    @property
    def fft_size(self) -> int:
        """FFT size: the smallest power of two that is not below the window length."""
        return 1 << (self.samples_of(self.window) - 1).bit_length()

    def filters(self) -> np.ndarray:
        """Returns the triangular filters of `librosa.filters.mel`, [F, fft_size / 2 + 1].

        Each filter has an area of 1.
        """
        return _filters(self.sample_rate, self.fft_size, self.bands, self.lowest)

    def frames(self, samples: Array | int) -> Array | int:
        """Returns the number of frames of a recording, which is the number of its full windows.

        A recording that is shorter than a window has one frame. A recording without samples has
        none.

        Args:
          samples: number of samples, or an array of such numbers.
        """
        window, hop = self.samples_of(self.window), self.samples_of(self.hop)
        most = np.maximum if isinstance(samples, int | np.ndarray) else jnp.maximum
        return (samples > 0) * (1 + most(samples - window, 0) // hop)


@functools.cache
def _filters(sample_rate: int, fft_size: int, bands: int, lowest: float) -> np.ndarray:
    import warnings

    from librosa.filters import mel

    with warnings.catch_warnings():
        # librosa's warning about empty filters is not needed, as LogMelConfig rejects such filters.
        warnings.simplefilter("ignore")
        return mel(sr=sample_rate, n_fft=fft_size, n_mels=bands, fmin=lowest)


def log_mel(samples: Array, lengths: Array, config: LogMelConfig) -> tuple[Array, Array]:
    """Computes the features of a padded batch.

        X_s = FFT(hann ⊙ x_{s·hop ... s·hop + window - 1}),   features_s = log max(M |X_s|², floor)

    where M has the mel filters, `LogMelConfig.filters`, as its rows.

    Args:
      samples: x, [B, P]; padding is ignored.
      lengths: number of samples of each example, int [B].
      config: parameters of the features.

    Returns:
      The features, float32 [B, S, F], which are 0 after the last frame of each example; and the
      number of frames of each example, int [B].

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
    # Computed by JAX, because a NumPy array would be a large constant in the compiled program.
    indices = hop * jnp.arange(most)[:, None] + jnp.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    windows = samples[:, indices] * hann.astype(np.float32)
    spectrum = over_examples(lambda rows: jnp.fft.rfft(rows, n=config.fft_size), windows)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energies = jnp.einsum(
        "BSK,FK->BSF", power, config.filters(), precision=jax.lax.Precision.HIGHEST
    )
    frames = config.frames(lengths)
    real = jnp.arange(most) < frames[:, None]
    return jnp.where(real[..., None], jnp.log(jnp.maximum(energies, config.floor)), 0.0), frames
