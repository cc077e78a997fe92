"""Baseline recognizers, tested on tones as words and on silence."""

import numpy as np

from tasks.common.audio.features import LogMelConfig
from tasks.common.text.tokenizer import Tokenizer
from tasks.speech_recognition import baselines
from tasks.speech_recognition.data import DataConfig, SpeechData, encoded
from tests.tasks.speech_recognition.test_task import HERTZ, spoken

CONFIG = DataConfig()


def speech(sounds, texts):
    tokenizer = Tokenizer.fit(texts, CONFIG.text)
    part = encoded(CONFIG, tokenizer, sounds, texts)
    return SpeechData({"train": part, "validation": part, "test": part}, tokenizer)


def test_svm_tells_tones_apart():
    rng = np.random.default_rng(0)
    texts = [*HERTZ] * 10
    found = baselines.mfcc_svm(
        speech([spoken([word], rng) for word in texts], texts), LogMelConfig()
    )
    assert found["wer"] == 0
    assert found["exact_match"] == 1


def test_strings_are_cut_where_nobody_speaks():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([*HERTZ], 3)) for _ in range(20)]
    pause = np.zeros(2000, np.int16)
    sounds = [
        np.concatenate([part for word in text.split() for part in (spoken([word], rng), pause)])
        for text in texts
    ]
    # A string without pauses, which cannot be segmented, and a silent one.
    sounds += [np.concatenate([spoken([word], rng)[400:1300] for word in HERTZ]), pause]
    found = baselines.cut_and_classify(
        speech(sounds, [*texts, " ".join(HERTZ), ""]), LogMelConfig()
    )
    missed = len(HERTZ)
    assert 0 < found["wer"] <= missed / (3 * len(texts) + missed)
    assert found["exact_match"] == 20 / 21


def test_pocketsphinx_hears_no_words_that_nobody_said():
    found = baselines.pocketsphinx(
        speech([np.zeros(8000, np.int16)] * 2, ["hello there"] * 2), 8000
    )
    assert found["wer"] == 1
    assert found["exact_match"] == 0
