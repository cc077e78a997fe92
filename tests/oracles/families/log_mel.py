"""Log-mel features compared with librosa's."""

import numpy as np

from tasks.common.audio.features import LogMelConfig, log_mel

PACKAGES = ("torch", "librosa")
P = 1200
CASES = ("log_mel", "log_mel_other_sizes")
CONFIGS = {
    "log_mel": LogMelConfig(),
    "log_mel_other_sizes": LogMelConfig(
        sample_rate=16000, window=25.0, hop=7.5, bands=23, lowest=0.0, floor=1e-10
    ),
}


def inputs(case: str) -> dict[str, np.ndarray]:
    """Returns a falling tone with noise."""
    rng, t = np.random.RandomState(CASES.index(case)), np.arange(P)
    tone = np.sin(2 * np.pi * (0.02 * t + 1e-4 * t**2))
    return {"samples": (0.3 * tone + 0.01 * rng.normal(size=P)).astype(np.float32)}


def ours(case: str) -> dict[str, np.ndarray]:
    """Computes the features with this repository."""
    samples = inputs(case)["samples"][None]
    features, frames = log_mel(samples, np.array([P]), CONFIGS[case])
    return {"features": np.asarray(features[0]), "frames": np.asarray(frames)}


def theirs(case: str) -> dict[str, np.ndarray]:
    """Computes the same with librosa."""
    import librosa

    config = CONFIGS[case]
    # librosa lays a window in the middle of its transform, which shifts phases alone.
    window = config.samples_of(config.window)
    padding = config.fft_size - window
    samples = np.pad(inputs(case)["samples"], (padding // 2, padding - padding // 2))
    energies = librosa.feature.melspectrogram(
        y=samples,
        sr=config.sample_rate,
        n_fft=config.fft_size,
        hop_length=config.samples_of(config.hop),
        win_length=window,
        window="hann",
        center=False,
        power=2.0,
        n_mels=config.bands,
        fmin=config.lowest,
    )
    features = np.log(np.maximum(energies, config.floor)).T
    return {"features": features, "frames": np.array([len(features)])}
