"""Sound with its words in three splits: the project's data sets, or a person's own recordings.

An example has the fields

    samples  int16 [P], mono, at the rate of config.data.features
    length   int32, how many of them are real
    target   int32 [T], units of what is said, PAD after them; left out where nobody knows it

All samples are held in memory, two bytes each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common.audio.augmentation import SoundAugmentation
from tasks.common.audio.features import LogMelConfig
from tasks.common.audio.files import read_audio, resample, to_pcm, trim_silence
from tasks.common.data import builders, digests
from tasks.common.data.manifests import BY_TEXT, check_split_by, summarize, user_examples
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.data.transcribed import (
    TranscriptionExamples,
    encode_units,
    transcription_fingerprints,
)
from tasks.common.data.user_files import LATER, results_name
from tasks.common.errors import UserError, warn_once
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.speech_recognition.datasets import NAMES, PROMPTS, SPOKEN_DIGITS
from tasks.speech_recognition.datasets.digit_strings import JoinedDigits, Strings
from tasks.speech_recognition.datasets.spoken_digits import RATE, SPEAKERS, WORDS

OFFICIAL = "official"
LONG, SILENCE = "long", "silence"
# Signal-to-noise ratios of the noisy copies of test, in decibels.
NOISES = (20, 10, 5, 0)
clips = functools.partial(TranscriptionExamples, "samples")
"""read, lengths, targets, texts, groups -> examples of sound."""
_STREAMS = {"train": 0, "validation": 1, "test": 2, LONG: 3, SILENCE: 4, "noise": 5}


def _words() -> TextConfig:
    return TextConfig(tokenizer="word", min_count=1)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which recordings, and how sound becomes features and words become units.

    Attributes:
      name: one of the project's data sets. With path it only names the results, and is own_<its
        name> unless something else is given.
      path: own recordings: a manifest with the columns path and text (CSV or TSV), or with such
        JSON objects (.jsonl); or three with commas between, called train, validation and test. A
        split that is missing is a tenth of train, see `split_by`.
      held_out: of spoken digits and strings, the speaker of test. Of strings the speaker after
        that one is validation; of single digits validation is takes 0 to 4 of the others.
        "official", for single digits: test is takes 0 to 4 of all speakers, who are in train too,
        and validation takes 5 to 9.
      strings: of spoken_digit_strings: how they are joined.
      long_strings: of its second test, of strings that are longer than any in train.
      silence: further examples of train, of strings and prompts, in which nobody speaks, as a
        share: what has never heard nothing takes it for something. (Of own recordings those do
        whose text is empty.)
      train_size, validation_size, test_size: strings of each split. The second test, and each of
        its noisy copies, have a quarter of test_size.
      seed: of the strings.
      features: see `LogMelConfig`.
      normalised: whether each clip is brought to the same peak, and its own mean is taken off each
        band (Atal 1974): what a microphone, a distance and a room do to all of it.
      dynamic_range: of a normalised clip, energies this many decibels below the loudest, and all
        quieter ones, are alike: a room's and a microphone's own noise say nothing. 0: all differ.
      trim: silence at the ends of each recording, which is taken off: what is quieter than the
        loudest part by more decibels than this. 0: nothing is.
      augmentation: changes at random in training.
      text: units: tokenizer "word", "character" or "bpe".
      max_seconds: longest sound: longer own recordings are named, and refused in predictions.
      split_by: own recordings that have it in common are in one split: "text": those of one text;
        "file": equal files; or a column of the manifest, such as speaker, of which the largest
        value is train and others fill a tenth of test and of validation. For splits that have no
        manifest of their own. With few distinct texts, such as commands, "text" cannot split.
      skip_broken: leave out own recordings that cannot be used, and name them.
    """

    name: str = "spoken_digit_strings"
    path: str | None = None
    held_out: str = SPEAKERS[0]
    strings: Strings = dataclasses.field(default_factory=Strings)
    long_strings: Strings = dataclasses.field(default_factory=lambda: Strings(8, 12))
    silence: float = 0.02
    train_size: int = 8000
    validation_size: int = 300
    test_size: int = 600
    seed: int = 0
    features: LogMelConfig = dataclasses.field(default_factory=LogMelConfig)
    normalised: bool = True
    dynamic_range: float = 0.0
    trim: float = 0.0
    augmentation: SoundAugmentation = dataclasses.field(default_factory=SoundAugmentation)
    text: TextConfig = dataclasses.field(default_factory=_words)
    max_seconds: float = 60.0
    split_by: str = dataclasses.field(default=BY_TEXT, metadata=LATER)
    skip_broken: bool = False

    def __post_init__(self):
        name = results_name(self.name, NAMES, self.path, "; path takes your own recordings")
        object.__setattr__(self, "name", name)
        check_split_by(self.split_by, self.path)
        speakers = (*SPEAKERS, OFFICIAL) if self.name == "spoken_digits" else SPEAKERS
        if self.held_out not in speakers:
            expected = ", ".join(speakers)
            raise ValueError(f"held_out must be one of {expected}, got {self.held_out!r}")
        for field in ("train_size", "validation_size", "test_size"):
            if getattr(self, field) < 4:
                raise ValueError(f"{field} must be at least 4, got {getattr(self, field)}")
        if not 0 <= self.silence < 1:
            raise ValueError(f"silence must be in [0, 1), got {self.silence}")
        for field in ("dynamic_range", "trim"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field} must be 0 or more decibels, got {getattr(self, field)}")
        if self.dynamic_range and not self.normalised:
            raise ValueError("dynamic_range is of normalised clips: set normalised, or it to 0")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0, got {self.max_seconds}")
        if self.text.tokenizer == "wordpiece" or self.text.unique or self.text.ngrams > 1:
            raise ValueError("text must give back what was said: tokenizer word, character or bpe")
        if self.text.stem is not None or self.text.character_ngrams:
            raise ValueError("text must give back what was said: no stem, no character_ngrams")


@dataclasses.dataclass(frozen=True)
class SpeechData:
    """A data set.

    Attributes:
      splits: by name.
      tokenizer: words to units and back, fitted on train.
      conditions: names of the groups of test: the first is what the metrics are about, the others
        stand beside.
    """

    splits: Mapping[str, TranscriptionExamples]
    tokenizer: Tokenizer
    conditions: tuple[str, ...] = ("",)

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split."""
        texts = {split: part.texts for split, part in self.splits.items()}
        return summarize(texts, "recordings")

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        return transcription_fingerprints(self.splits, self.tokenizer, "recordings")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return digests.joined(self.parts)


def load(config: DataConfig, paths: Paths) -> SpeechData:
    """Reads a data set, preparing one of the project's own first when it is not.

    Raises:
      UserError: what is wrong with a file or a source.
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
    config: DataConfig,
    tokenizer: Tokenizer,
    sounds: Sequence[np.ndarray],
    texts: Sequence[str],
) -> TranscriptionExamples:
    """Sounds that are in memory, with their units."""
    return clips(
        sounds.__getitem__, [len(sound) for sound in sounds], encode_units(tokenizer, texts), texts
    )


def _prepared(samples: np.ndarray, config: DataConfig) -> np.ndarray:
    """A recording of the project's at the rate of the features, without its silent ends."""
    rate = config.features.sample_rate
    if rate != RATE:
        samples = to_pcm(resample(samples / 32768, RATE, rate))
    return trim_silence(samples, config.trim)


def _recordings(config: DataConfig, paths: Paths) -> dict[str, list[list[np.ndarray]]]:
    """Samples by speaker, digit and take."""
    builders.prepare(SPOKEN_DIGITS, paths)
    found = {}
    for speaker in SPEAKERS:
        source = builders.load(SPOKEN_DIGITS, speaker, paths)
        found[speaker] = [[] for _ in WORDS]
        for row in source.__getitems__(range(len(source))):
            found[speaker][int(row["digit"])].append(_prepared(row["samples"], config))
    return found


def _single(config: DataConfig, recordings: Mapping) -> SpeechData:
    """Recordings of one digit each, in the order of speaker, digit and take."""
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
    """Speakers of each split of the strings."""
    place = SPEAKERS.index(held_out)
    validation = SPEAKERS[(place + 1) % len(SPEAKERS)]
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
    tokenizer = Tokenizer.fit(_said(train), config.text)
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


def _said(part: JoinedDigits) -> list[str]:
    return [" ".join(WORDS[digit] for digit in digits) for digits in part.digits]


def _conditions(
    conditions: Sequence, tokenizer: Tokenizer, seed: tuple, rate: int
) -> TranscriptionExamples:
    """One split of several conditions: as they are, with noise, or noise alone."""
    places, texts, lengths, groups = [], [], [], []
    for group, (_, part, chosen, noise) in enumerate(conditions):
        said = _said(part) if part is not None else None
        for index in chosen:
            places.append((part, index, noise))
            texts.append(said[index] if said else "")
            lengths.append(part.lengths[index] if said else rate * (1 + index % 4))
            groups.append(group)

    def read(number: int) -> np.ndarray:
        part, index, noise = places[number]
        rng = np.random.default_rng((*seed, number))
        if part is None:
            return _nothing(index, lengths[number], rng)
        samples = part[index]
        if noise is None:
            return samples
        return noisy(samples, noise, rng)

    return clips(read, lengths, encode_units(tokenizer, texts), texts, np.array(groups, np.int32))


def _nothing(index: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Nobody speaks: from nothing at all to what a bad line has."""
    loudness = (0, 3, 30, 300)[index % 4]
    return np.round(loudness * rng.normal(size=length)).astype(np.int16)


def noisy(samples: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """int16 samples with white noise at a signal-to-noise ratio."""
    level = np.sqrt(np.square(samples.astype(np.float64)).mean()) * 10 ** (-decibels / 20)
    changed = samples + level * rng.normal(size=len(samples))
    return np.round(changed).clip(-32768, 32767).astype(np.int16)


def _prompts(config: DataConfig, paths: Paths) -> SpeechData:
    definition = PROMPTS[config.name]
    builders.prepare(definition, paths)
    rows = {}
    for split in SPLITS:
        source = builders.load(definition, split, paths)
        rows[split] = list(source.__getitems__(range(len(source))))
    texts = {split: [row["text"].decode() for row in rows[split]] for split in SPLITS}
    tokenizer = Tokenizer.fit(texts["train"], config.text)
    rate, splits = config.features.sample_rate, {}
    for split in SPLITS:
        sounds = [_prepared(row["samples"], config) for row in rows[split]]
        silent = {"train": config.silence, "test": 0.25}.get(split, 0.0)
        count = math.ceil(silent * len(sounds))
        rng = np.random.default_rng((config.seed, _STREAMS[split], _STREAMS[SILENCE]))
        groups = np.repeat([0, 1 if split == "test" else 0], [len(sounds), count])
        sounds += [_nothing(index, rate * (1 + index % 4), rng) for index in range(count)]
        splits[split] = clips(
            sounds.__getitem__,
            [len(sound) for sound in sounds],
            encode_units(tokenizer, said := texts[split] + [""] * count),
            said,
            groups.astype(np.int32),
        )
    return SpeechData(splits, tokenizer, ("", SILENCE))


def _user_data(config: DataConfig) -> SpeechData:
    silent: list[str] = []

    def read(path: Path) -> np.ndarray:
        samples = read_clip(path, config)
        if not samples.any():
            silent.append(str(path))
        return samples

    data = SpeechData(
        *user_examples(
            config.path,
            read,
            config.text,
            "samples",
            config.skip_broken,
            config.split_by,
            "recordings",
        )
    )
    _name_silent(config.path, silent, sum(map(len, data.splits.values())))
    return data


def _name_silent(path: str, silent: Sequence[str], count: int) -> None:
    """Names recordings in which every sample is 0; refuses data in which all are."""
    if silent and len(silent) == count:
        raise UserError(f"{path}: all {count} recordings are silent: every sample is 0")
    if silent:
        warn_once(
            f"{path}: {len(silent)} recordings are silent, such as {silent[0]}: every sample is 0"
        )


def read_clip(source: str | Path | bytes, config: DataConfig, name: str = "") -> np.ndarray:
    """Samples int16 [P] of a sound file, at the rate of the features.

    Raises:
      UserError: it cannot be read, has no samples, or is longer than max_seconds.
    """
    rate = config.features.sample_rate
    samples = read_audio(source, rate, name)
    if not len(samples):
        raise UserError(f"{name or source}: has no samples; record it again, or leave it out")
    if len(samples) > rate * config.max_seconds:
        raise UserError(
            f"{name or source}: lasts {len(samples) / rate:.1f} s, longer than "
            f"config.data.max_seconds={config.max_seconds:g}"
        )
    return trim_silence(to_pcm(samples), config.trim)
