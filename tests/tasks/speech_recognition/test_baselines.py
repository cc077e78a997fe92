"""Cheap recognisers, on words that are tones and on silence."""

import numpy as np

from tasks.common.audio import LogMelConfig
from tasks.common.text import TextEncoder
from tasks.speech_recognition import baselines
from tasks.speech_recognition.data import DataConfig, SpeechData, encoded
from tests.tasks.speech_recognition.test_task import HERTZ, spoken

CONFIG = DataConfig()


def speech(sounds, texts):
    encoder = TextEncoder.fit(texts, CONFIG.text)
    part = encoded(CONFIG, encoder, sounds, texts)
    return SpeechData({"train": part, "validation": part, "test": part}, encoder)


def test_svm_tells_tones_apart():
    rng = np.random.default_rng(0)
    texts = [*HERTZ] * 10
    found = baselines.mfcc_svm(
        speech([spoken([word], rng) for word in texts], texts), LogMelConfig()
    )
    assert found["wer"] == 0
    assert found["exact_match"] == 1


def test_pocketsphinx_hears_no_words_that_nobody_said():
    found = baselines.pocketsphinx(
        speech([np.zeros(8000, np.int16)] * 2, ["hello there"] * 2), 8000
    )
    assert found["wer"] == 1
    assert found["exact_match"] == 0
