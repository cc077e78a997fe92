"""Definitions of the built-in data sets of recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tasks.common.data.builders import DatasetDefinition, features_of
from tasks.speech_recognition.datasets import prompts, spoken_digits


def _features(**others: type) -> Callable[[], Mapping[str, Any]]:
    """Returns the features of a recording: id, samples, and the given others."""

    return features_of(id=str, samples=((None,), np.int16), **others)


SPOKEN_DIGITS = DatasetDefinition(
    name="spoken_digits",
    version="1.0.0",
    features=_features(digit=int, take=int),
    sources=(spoken_digits.SOURCE,),
    generate=spoken_digits.generate,
    counts=dict.fromkeys(spoken_digits.SPEAKERS, 500),
    description="The Free Spoken Digit Dataset (Jackson et al. 2018): the digits 0 to 9, spoken 50 "
    "times each by six speakers, 8 kHz, a split for each speaker. The task's config assigns them "
    "to train, validation and test.",
    license="CC BY-SA 4.0",
)

_COUNTS = {"en": (433, 60, 54), "es": (382, 44, 49), "fr": (397, 61, 47)}


def _prompts(language: str) -> DatasetDefinition:
    return DatasetDefinition(
        name=f"prompts_{language}",
        version="1.0.0",
        features=_features(text=str),
        sources=prompts.SOURCES[language],
        generate=prompts.generate(language),
        counts=dict(zip(("train", "validation", "test"), _COUNTS[language], strict=True)),
        description=f"{prompts.LANGUAGES[language]} prompts of a telephone exchange (Asterisk's "
        "core sounds), by one speaker, 8 kHz, with transcripts in lower case, without "
        "punctuation. Split by the hash of the text modulo 10: 0 is test, 1 is validation; "
        "near-duplicates are in the same split.",
        license="CC BY-SA 3.0",
    )


PROMPTS = {f"prompts_{language}": _prompts(language) for language in prompts.LANGUAGES}
NAMES = ("spoken_digits", "spoken_digit_strings", *PROMPTS)
