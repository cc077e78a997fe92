"""What a few lines get of spoken digits, and an older recogniser of English prompts."""

from __future__ import annotations

import itertools
import time

import numpy as np

from tasks.common.audio import LogMelConfig, log_mel, resampled, to_pcm
from tasks.common.transcription import TranscribedExamples
from tasks.common.transcripts import transcript_metrics
from tasks.speech_recognition.data import SpeechData

_COEFFICIENTS, _PARTS = 20, 10
# Decibels below the loudest frame at which silence begins.
_SILENCE = 30.0
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
    search.fit(_cepstra(train, config), train.texts)
    written = search.predict(_cepstra(test, config)).tolist()
    metrics = transcript_metrics(test.texts, written)
    chosen = {name: metrics[name] for name in ("wer", "cer", "exact_match")}
    return chosen | {"seconds": round(time.monotonic() - began, 2)}


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
    for index in range(len(test)):
        samples = test[index]["samples"].astype(np.float32) / 32768
        decoder.start_utt()
        decoder.process_raw(to_pcm(resampled(samples, rate, _SPHINX_RATE)).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        written.append(found.hypstr if found else "")
    metrics = transcript_metrics(test.texts, written)
    chosen = {name: metrics[name] for name in ("wer", "cer", "exact_match")}
    return chosen | {"seconds": round(time.monotonic() - began, 2)}


def _cepstra(clips: TranscribedExamples, config: LogMelConfig) -> np.ndarray:
    """[n, parts · coefficients]."""
    import jax
    from scipy.fft import dct

    compute = jax.jit(lambda x, length: log_mel(x[None], length[None], config)[0][0])
    width, rows = int(clips.lengths["samples"].max()), []
    for index in range(len(clips)):
        example = clips[index]
        padded = np.zeros(width, np.float32)
        padded[: len(example["samples"])] = example["samples"] / 32768
        features = np.asarray(compute(padded, np.int32(example["length"])))
        features = features[: config.frames(int(example["length"]))]
        loudness = 10 / np.log(10) * np.log(np.exp(features).sum(axis=1))
        loud = np.flatnonzero(loudness > loudness.max() - _SILENCE)
        features = features[loud[0] : loud[-1] + 1]
        cepstra = dct(features, norm="ortho", axis=1)[:, :_COEFFICIENTS]
        # Too short ones have parts of a frame that they share.
        edges = np.linspace(0, len(cepstra), _PARTS + 1)
        parts = [
            cepstra[int(low) : max(int(np.ceil(high)), int(low) + 1)].mean(axis=0)
            for low, high in itertools.pairwise(edges)
        ]
        rows.append(np.concatenate(parts))
    return np.stack(rows)
