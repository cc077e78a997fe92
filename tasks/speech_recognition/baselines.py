"""Baselines of speech recognition: SVMs on cepstra for digits, PocketSphinx for English."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tasks.common.audio.features import LogMelConfig, log_mel
from tasks.common.audio.files import resample, to_pcm
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.metrics.error_rates import text_errors, transcript_metrics
from tasks.speech_recognition.data import SpeechData

_COEFFICIENTS, _PARTS = 20, 10
# Single digits: frames that are this many decibels or more below the loudest frame are silent.
_SILENCE = 30.0
# Strings of digits: candidates for this threshold in decibels; shortest silence between two words,
# in frames; shortest word, in frames; and maximum number of training strings.
_SILENCES, _GAP, _WORD, _STRINGS = (15.0, 20.0, 25.0, 30.0, 35.0, 40.0), 4, 8, 1000
# Sample rate of PocketSphinx' model.
_SPHINX_RATE = 16000


def mfcc_svm(speech: SpeechData, config: LogMelConfig) -> dict[str, Any]:
    """Evaluates an SVM with a radial kernel on the cepstra of trimmed clips.

    Each clip is divided into ten segments, and the inputs are the mean cepstra of each segment. C
    and gamma are selected by cross-validation on the training split.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

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
    return _scored(test.texts, written)


def cut_and_classify(speech: SpeechData, config: LogMelConfig) -> dict[str, Any]:
    """Evaluates an SVM that classifies each segment between silences as one word.

    A training recording is used only if it has as many segments as words. The threshold below which
    a frame is silence is chosen to maximize the number of such recordings.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

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
    return _scored([test.texts[index] for index in chosen], written)


def pocketsphinx(speech: SpeechData, rate: int) -> dict[str, Any]:
    """Evaluates PocketSphinx (Huggins-Daines et al. 2006) with its pretrained English model.

    The hidden Markov models and trigrams of PocketSphinx are not fitted to the data.

    Args:
      speech: data set; only the test split is used.
      rate: sample rate of the recordings in hertz.
    """
    from pocketsphinx import Decoder

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
    return _scored([test.texts[index] for index in spoken], written)


def _scored(said: Sequence[str], written: Sequence[str]) -> dict[str, Any]:
    """Returns error rates, and the errors of each transcript as "example_scores"."""
    metrics = transcript_metrics(said, written)
    found = {name: metrics[name] for name in ("wer", "cer", "exact_match")}
    return {**found, "example_scores": text_errors(said, written)}


def _features(
    clips: TranscriptionExamples, chosen: Iterable[int], config: LogMelConfig
) -> Iterator[np.ndarray]:
    """Yields log-mel features [frames, bands] of the clips with the indices `chosen`."""
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
    """Returns the energy of each frame in decibels."""
    return 10 / np.log(10) * np.log(np.exp(features).sum(axis=1))


def _loud(features: np.ndarray) -> np.ndarray:
    """Removes the silent frames at both ends of a clip."""
    loudness = _loudness(features)
    loud = np.flatnonzero(loudness > loudness.max() - _SILENCE)
    return features[loud[0] : loud[-1] + 1]


def _cut(features: np.ndarray, silence: float) -> list[np.ndarray]:
    """Returns the segments between silences, without those too short for a word."""
    loudness = _loudness(features)
    loud = np.flatnonzero(loudness > loudness.max() - silence)
    pieces = np.split(loud, np.flatnonzero(np.diff(loud) > _GAP) + 1)
    ends = [(frames[0], frames[-1] + 1) for frames in pieces]
    return [features[low:high] for low, high in ends if high - low >= _WORD]


def _cepstra(features: np.ndarray) -> np.ndarray:
    """Returns the mean cepstra of ten segments of a clip, [segments · coefficients]."""
    from scipy.fft import dct

    cepstra = dct(features, norm="ortho", axis=1)[:, :_COEFFICIENTS]
    # Each segment has at least one frame, so segments of short clips share frames.
    edges = np.linspace(0, len(cepstra), _PARTS + 1)
    parts = [
        cepstra[int(low) : max(int(np.ceil(high)), int(low) + 1)].mean(axis=0)
        for low, high in itertools.pairwise(edges)
    ]
    return np.concatenate(parts)
