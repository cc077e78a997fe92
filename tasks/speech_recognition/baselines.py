"""What a few lines get of spoken digits, and an older recogniser of English prompts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tasks.common.audio.features import LogMelConfig, log_mel
from tasks.common.audio.files import resample, to_pcm
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.metrics.error_rates import transcript_metrics
from tasks.speech_recognition.data import SpeechData

_COEFFICIENTS, _PARTS = 20, 10
# Decibels below the loudest frame at which silence begins.
_SILENCE = 30.0
# Of strings: decibels that are tried, shortest silence and shortest word in frames, and how many
# strings of train a classifier is fitted on.
_SILENCES, _GAP, _WORD, _STRINGS = (15.0, 20.0, 25.0, 30.0, 35.0, 40.0), 4, 8, 1000
# Samples a second of PocketSphinx' model.
_SPHINX_RATE = 16000


def mfcc_svm(speech: SpeechData, config: LogMelConfig) -> dict[str, float]:
    """A support vector machine with a radial kernel, on the cepstra of the clip without the silence
    at its ends, as means over ten parts of it; its C by cross-validation on train.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    began = time.monotonic()
    train, test = (speech.splits[split] for split in ("train", "test"))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SVC()),
        {"svc__C": [1.0, 10.0, 100.0], "svc__gamma": [0.3 / 200, 1 / 200, 3 / 200]},
        cv=5,
    )
    train_inputs, test_inputs = (
        np.stack(
            [_cepstra(_loud(features)) for features in _features(part, range(len(part)), config)]
        )
        for part in (train, test)
    )
    search.fit(train_inputs, train.texts)
    written = search.predict(test_inputs).tolist()
    return _scored(test.texts, written, began)


def cut_and_classify(speech: SpeechData, config: LogMelConfig) -> dict[str, float]:
    """Of strings: what stands between silences is taken for a word each, and classified as by
    `mfcc_svm`; fitted on the strings of train that have as many pieces as words, at the threshold
    of silence that makes these the most.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    began = time.monotonic()
    train, test = (speech.splits[split] for split in ("train", "test"))
    said = [text.split() for text in train.texts[:_STRINGS]]
    heard = list(_features(train, range(len(said)), config))

    def fitting(silence: float) -> list[tuple[list[np.ndarray], list[str]]]:
        cut = [_cut(features, silence) for features in heard]
        pairs = zip(cut, said, strict=True)
        return [(pieces, words) for pieces, words in pairs if words and len(pieces) == len(words)]

    fits = {silence: fitting(silence) for silence in _SILENCES}
    silence, pairs = max(fits.items(), key=lambda fit: len(fit[1]))
    model = make_pipeline(StandardScaler(), SVC(C=10.0)).fit(
        np.stack([_cepstra(piece) for pieces, _ in pairs for piece in pieces]),
        [word for _, words in pairs for word in words],
    )
    chosen = np.flatnonzero(test.groups == 0)
    written = []
    for features in _features(test, chosen, config):
        pieces = _cut(features, silence)
        inputs = [_cepstra(piece) for piece in pieces]
        written.append(" ".join(model.predict(np.stack(inputs))) if pieces else "")
    return _scored([test.texts[index] for index in chosen], written, began)


def pocketsphinx(speech: SpeechData, rate: int) -> dict[str, float]:
    """PocketSphinx (Huggins-Daines et al. 2006) with the English model that it brings: hidden
    Markov models and trigrams, not fitted to the data.

    Args:
      speech: its test split is written down.
      rate: samples a second.
    """
    from pocketsphinx import Decoder

    began = time.monotonic()
    decoder = Decoder(samprate=_SPHINX_RATE, loglevel="FATAL")
    test, written = speech.splits["test"], []
    spoken = np.flatnonzero(test.groups == 0)
    for index in spoken:
        samples = test[index]["samples"].astype(np.float32) / 32768
        decoder.start_utt()
        decoder.process_raw(to_pcm(resample(samples, rate, _SPHINX_RATE)).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        written.append(found.hypstr if found else "")
    return _scored([test.texts[index] for index in spoken], written, began)


def _scored(said: Sequence[str], written: Sequence[str], began: float) -> dict[str, float]:
    """Metrics of what was written, and how long it took since a time of `time.monotonic`."""
    metrics = transcript_metrics(said, written)
    chosen = {name: metrics[name] for name in ("wer", "cer", "exact_match")}
    return chosen | {"seconds": round(time.monotonic() - began, 2)}


def _features(
    clips: TranscriptionExamples, chosen: Iterable[int], config: LogMelConfig
) -> Iterator[np.ndarray]:
    """Log-mel features [frames, F] of some clips."""
    import jax

    compute = jax.jit(lambda x, length: log_mel(x[None], length[None], config)[0][0])
    width = int(clips.lengths["samples"].max())
    for index in chosen:
        example = clips[index]
        padded = np.zeros(width, np.float32)
        padded[: len(example["samples"])] = example["samples"] / 32768
        features = np.asarray(compute(padded, np.int32(example["length"])))
        yield features[: config.frames(int(example["length"]))]


def _loudness(features: np.ndarray) -> np.ndarray:
    """Decibels of each frame."""
    return 10 / np.log(10) * np.log(np.exp(features).sum(axis=1))


def _loud(features: np.ndarray) -> np.ndarray:
    """Without the silence at the ends."""
    loudness = _loudness(features)
    loud = np.flatnonzero(loudness > loudness.max() - _SILENCE)
    return features[loud[0] : loud[-1] + 1]


def _cut(features: np.ndarray, silence: float) -> list[np.ndarray]:
    """What stands between silences, without what is too short for a word."""
    loudness = _loudness(features)
    loud = np.flatnonzero(loudness > loudness.max() - silence)
    pieces = np.split(loud, np.flatnonzero(np.diff(loud) > _GAP) + 1)
    ends = [(frames[0], frames[-1] + 1) for frames in pieces]
    return [features[low:high] for low, high in ends if high - low >= _WORD]


def _cepstra(features: np.ndarray) -> np.ndarray:
    """Means over ten parts: [parts · coefficients]."""
    from scipy.fft import dct

    cepstra = dct(features, norm="ortho", axis=1)[:, :_COEFFICIENTS]
    # Too short ones have parts of a frame that they share.
    edges = np.linspace(0, len(cepstra), _PARTS + 1)
    parts = [
        cepstra[int(low) : max(int(np.ceil(high)), int(low) + 1)].mean(axis=0)
        for low, high in itertools.pairwise(edges)
    ]
    return np.concatenate(parts)
