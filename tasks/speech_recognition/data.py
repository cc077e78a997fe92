"""Recordings with transcripts in three splits: built-in data sets, or user files.

An example has the fields

    samples  int16 [P], mono, at the sample rate of config.data.features
    length   int32, number of samples without padding
    target   int32 [T], units of the transcript, then PAD; missing without a transcript

All samples are held in memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common.audio.augmentation import SoundAugmentation
from tasks.common.audio.features import LogMelConfig
from tasks.common.audio.files import read_audio, resample, to_pcm, trim_silence
from tasks.common.configs import Rate, known_names, within
from tasks.common.data import builders
from tasks.common.data.manifests import TranscribedConfig
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS
from tasks.common.data.transcribed import TranscriptionExamples, encode_units
from tasks.common.errors import UserError, warn_once
from tasks.common.text.config import LOSSY
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.speech_recognition.datasets import NAMES, PROMPTS, SPOKEN_DIGITS
from tasks.speech_recognition.datasets.digit_strings import JoinedDigits, Strings
from tasks.speech_recognition.datasets.spoken_digits import RATE, SPEAKERS, WORDS
from tasks.transcription import TranscriptionData

OFFICIAL = "official"
LONG, SILENCE = "long", "silence"
# Signal-to-noise ratios of the noisy copies of the test split, in decibels.
NOISES = (20, 10, 5, 0)
_Decibels = within("[0, inf)", "0 or more decibels")
_STREAMS = {"train": 0, "validation": 1, "test": 2, LONG: 3, SILENCE: 4, "noise": 5}


def _words() -> TextConfig:
    return TextConfig(tokenizer="word", min_count=1)


@dataclasses.dataclass(frozen=True)
class DataConfig(TranscribedConfig):
    """Config of the recordings, their features and the units of transcripts.

    Attributes:
      held_out: speaker of the test split of spoken_digits and spoken_digit_strings. The validation
        split has the recordings of the next speaker (spoken_digit_strings), or recordings 0 to 4 of
        each digit by the other speakers (spoken_digits). With "official", only for spoken_digits,
        test has recordings 0 to 4 of each digit by all speakers, and validation recordings 5 to 9.
      strings: composition of spoken_digit_strings.
      long_strings: composition of the test condition "long", whose strings are longer than any
        training string.
      silence: number of additional training examples without speech in spoken_digit_strings and
        prompts, as a fraction of the number of examples. They reduce hallucinations. User files
        with an empty text have the same effect.
      features: config of the log-mel features.
      normalised: whether each clip is scaled to the same peak, and the mean of each mel band is
        subtracted (Atal 1974). This removes the effects of microphone and room.
      dynamic_range: dynamic range of the features of a normalized clip in decibels. Lower energies
        are raised to this distance from the maximum, which hides background noise. 0 for no limit.
      trim: level in decibels below the loudest part of a recording; both ends are trimmed up to
        this level. 0 for no trimming.
      augmentation: config of the random augmentation in training.
      max_seconds: maximum duration of a user file in seconds; longer files raise an error.
      For the other attributes see `TranscribedConfig`.
    """

    built_in, unit = NAMES, "recordings"
    name: known_names(*NAMES) = "spoken_digit_strings"
    held_out: str = SPEAKERS[0]
    strings: Strings = dataclasses.field(default_factory=Strings)
    long_strings: Strings = dataclasses.field(default_factory=lambda: Strings(8, 12))
    silence: Rate = 0.02
    features: LogMelConfig = dataclasses.field(default_factory=LogMelConfig)
    normalised: bool = True
    dynamic_range: _Decibels = 0.0
    trim: _Decibels = 0.0
    augmentation: SoundAugmentation = dataclasses.field(default_factory=SoundAugmentation)
    text: TextConfig = dataclasses.field(default_factory=_words)
    max_seconds: float = 60.0

    def __post_init__(self):
        super().__post_init__()
        speakers = (*SPEAKERS, OFFICIAL) if self.name == "spoken_digits" else SPEAKERS
        self.expect("held_out", self.held_out in speakers, f"one of {', '.join(speakers)}")
        allowed = self.normalised or not self.dynamic_range
        self.expect("dynamic_range", allowed, "0, because `normalised` is False")
        self.expect("max_seconds", self.max_seconds > 0, "a number above 0")
        self.text.expect_defaults(LOSSY, "because output tokens are decoded to texts")
        if self.text.tokenizer == "wordpiece":
            expected = "'word', 'character' or 'bpe', because output tokens are decoded to texts"
            raise ValueError(f"text.tokenizer: got 'wordpiece', expected {expected}")


class SpeechData(TranscriptionData):
    """A data set of recordings with transcripts."""

    unit = kind = "recordings"


def load(config: DataConfig, paths: Paths) -> SpeechData:
    """Reads a data set; a built-in data set is prepared first if necessary.

    Raises:
      UserError: a file or source cannot be used.
    """
    if config.path is not None:
        return _user_data(config)
    if config.name in PROMPTS:
        return _prompts(config, paths)
    recordings = _recordings(config, paths)
    if config.name == "spoken_digits":
        return _single(config, recordings)
    return _strings(config, recordings)


def encoded(
    config: DataConfig, tokenizer: Tokenizer, sounds: Sequence[np.ndarray], texts: Sequence[str]
) -> TranscriptionExamples:
    """Returns examples of recordings `sounds`, with the units of their texts as targets."""
    return TranscriptionExamples.of_arrays("samples", sounds, tokenizer, texts)


def _prepared(samples: np.ndarray, config: DataConfig) -> np.ndarray:
    """Resamples a built-in recording to the rate of the features, and trims it."""
    rate = config.features.sample_rate
    if rate != RATE:
        samples = to_pcm(resample(samples / 32768, RATE, rate))
    return trim_silence(samples, config.trim)


def _recordings(config: DataConfig, paths: Paths) -> dict[str, list[list[np.ndarray]]]:
    """Returns the samples of the spoken digits by speaker, digit and number of the recording."""
    found = {}
    for speaker in SPEAKERS:
        source = builders.load(SPOKEN_DIGITS, speaker, paths)
        found[speaker] = [[] for _ in WORDS]
        for row in source.__getitems__(range(len(source))):
            found[speaker][int(row["digit"])].append(_prepared(row["samples"], config))
    return found


def _single(config: DataConfig, recordings: Mapping) -> SpeechData:
    """Returns the data set of single digits, sorted by speaker, digit and recording."""
    sounds: dict[str, list] = {split: [] for split in SPLITS}
    texts: dict[str, list] = {split: [] for split in SPLITS}
    for speaker in SPEAKERS:
        for digit, takes in enumerate(recordings[speaker]):
            for take, samples in enumerate(takes):
                split = _split_of(config.held_out, speaker, take)
                sounds[split].append(samples)
                texts[split].append(WORDS[digit])
    tokenizer = Tokenizer.fit(texts["train"], config.text)
    return SpeechData(
        {split: encoded(config, tokenizer, sounds[split], texts[split]) for split in SPLITS},
        tokenizer,
    )


def _split_of(held_out: str, speaker: str, take: int) -> str:
    if held_out == OFFICIAL:
        return "test" if take < 5 else "validation" if take < 10 else "train"
    if speaker == held_out:
        return "test"
    return "validation" if take < 5 else "train"


def speakers_of(held_out: str) -> dict[str, tuple[str, ...]]:
    """Returns the speakers of each split of spoken_digit_strings."""
    validation = SPEAKERS[(SPEAKERS.index(held_out) + 1) % len(SPEAKERS)]
    train = tuple(name for name in SPEAKERS if name not in (held_out, validation))
    return {"train": train, "validation": (validation,), "test": (held_out,)}


def _strings(config: DataConfig, recordings: Mapping) -> SpeechData:
    speakers = speakers_of(config.held_out)
    rate = config.features.sample_rate

    def joined(split: str, count: int, strings: Strings, stream: str) -> JoinedDigits:
        mine = {speaker: recordings[speaker] for speaker in speakers[split]}
        return JoinedDigits(mine, count, strings, (config.seed, _STREAMS[stream]), rate)

    quarter = config.test_size // 4
    train = joined("train", config.train_size, config.strings, "train")
    validation = joined("validation", config.validation_size, config.strings, "validation")
    test = joined("test", config.test_size, config.strings, "test")
    longer = joined("test", quarter, config.long_strings, LONG)
    tokenizer = Tokenizer.fit(_texts(train), config.text)
    silent = range(round(config.silence * config.train_size))
    spoken = {
        "train": [("", train, range(len(train)), None), (SILENCE, None, silent, None)],
        "validation": [("", validation, range(len(validation)), None)],
    }
    splits = {
        split: _conditions(
            parts, tokenizer, (config.seed, _STREAMS[split], _STREAMS[SILENCE]), rate
        )
        for split, parts in spoken.items()
    }
    conditions = [("", test, range(len(test)), None), (LONG, longer, range(quarter), None)]
    conditions += [(f"snr_{noise}", test, range(quarter), noise) for noise in NOISES]
    conditions += [(SILENCE, None, range(quarter), None)]
    splits["test"] = _conditions(conditions, tokenizer, (config.seed, _STREAMS["noise"]), rate)
    return SpeechData(splits, tokenizer, tuple(name for name, *_ in conditions))


def _texts(part: JoinedDigits) -> list[str]:
    return [" ".join(WORDS[digit] for digit in digits) for digits in part.digits]


def _conditions(
    conditions: Sequence, tokenizer: Tokenizer, seed: tuple, rate: int
) -> TranscriptionExamples:
    """Returns a split that consists of several conditions.

    Args:
      conditions: a tuple for each condition: its name; the strings, or None for noise without
        speech; the indices of the strings; and the signal-to-noise ratio in decibels, or None for
        no noise.
      tokenizer: tokenizer of the texts.
      seed: seed of the noise.
      rate: sample rate in hertz.
    """
    origins, texts, lengths, groups = [], [], [], []
    for group, (_, part, chosen, noise) in enumerate(conditions):
        spoken = _texts(part) if part is not None else None
        for index in chosen:
            origins.append((part, index, noise))
            texts.append(spoken[index] if spoken else "")
            lengths.append(part.lengths[index] if spoken else rate * (1 + index % 4))
            groups.append(group)

    def read(number: int) -> np.ndarray:
        part, index, noise = origins[number]
        rng = np.random.default_rng((*seed, number))
        if part is None:
            return _silence(index, lengths[number], rng)
        return part[index] if noise is None else add_noise(part[index], noise, rng)

    units = encode_units(tokenizer, texts)
    groups = np.array(groups, np.int32)
    return TranscriptionExamples("samples", read, lengths, units, texts, groups)


def _silence(index: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Returns samples without speech: zeros, or white noise of one of three levels."""
    loudness = (0, 3, 30, 300)[index % 4]
    return np.round(loudness * rng.normal(size=length)).astype(np.int16)


def add_noise(samples: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """Adds white noise to int16 samples.

    Args:
      samples: samples of a clip.
      decibels: signal-to-noise ratio in decibels.
      rng: random generator of the noise.
    """
    level = np.sqrt(np.square(samples.astype(np.float64)).mean()) * 10 ** (-decibels / 20)
    changed = samples + level * rng.normal(size=len(samples))
    return np.round(changed).clip(-32768, 32767).astype(np.int16)


def _prompts(config: DataConfig, paths: Paths) -> SpeechData:
    definition = PROMPTS[config.name]
    rows = dict(builders.read_splits(definition, paths))
    texts = {split: [row["text"].decode() for row in rows[split]] for split in SPLITS}
    tokenizer = Tokenizer.fit(texts["train"], config.text)
    rate, splits = config.features.sample_rate, {}
    for split in SPLITS:
        sounds = [_prepared(row["samples"], config) for row in rows[split]]
        silent = {"train": config.silence, "test": 0.25}.get(split, 0.0)
        count = math.ceil(silent * len(sounds))
        rng = np.random.default_rng((config.seed, _STREAMS[split], _STREAMS[SILENCE]))
        groups = np.repeat([0, 1 if split == "test" else 0], [len(sounds), count])
        sounds += [_silence(index, rate * (1 + index % 4), rng) for index in range(count)]
        said = texts[split] + [""] * count
        splits[split] = TranscriptionExamples.of_arrays(
            "samples", sounds, tokenizer, said, groups.astype(np.int32)
        )
    return SpeechData(splits, tokenizer, ("", SILENCE))


def _user_data(config: DataConfig) -> SpeechData:
    silent: list[str] = []

    def read(path: Path) -> np.ndarray:
        samples = read_clip(path, config)
        if not samples.any():
            silent.append(str(path))
        return samples

    data = SpeechData(*config.user_examples(read, "samples"))
    _name_silent(config.path, silent, sum(map(len, data.splits.values())))
    return data


def _name_silent(path: str, silent: Sequence[str], count: int) -> None:
    """Warns about silent recordings, in which every sample is 0.

    Raises:
      UserError: all recordings are silent.
    """
    if silent and len(silent) == count:
        raise UserError(
            f"{path}: all {count} recordings are silent (every sample is 0); check the files"
        )
    if silent:
        warn_once(
            f"{path}: {len(silent)} recordings are silent, such as {silent[0]}: every sample is 0"
        )


def read_clip(source: str | Path | bytes, config: DataConfig, name: str = "") -> np.ndarray:
    """Reads samples int16 [P] of a sound file, at the sample rate of the features.

    Args:
      source: path or content of the file.
      config: config of the data set.
      name: name of the file in messages; by default the path.

    Raises:
      UserError: the file cannot be read, has no samples, or is longer than max_seconds.
    """
    rate = config.features.sample_rate
    samples = read_audio(source, rate, name)
    if not len(samples):
        raise UserError(f"{name or source}: got no samples at {rate} Hz, expected a recording")
    if len(samples) > rate * config.max_seconds:
        raise UserError(
            f"{name or source}: got {len(samples) / rate:.1f} s, expected at most "
            f"config.data.max_seconds={config.max_seconds:g}; cut the recording"
        )
    return trim_silence(to_pcm(samples), config.trim)
