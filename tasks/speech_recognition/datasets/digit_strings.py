"""Recordings of single digits joined into strings.

P samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.configs import Config, NonNegativeFloat, PositiveInt


@dataclasses.dataclass(frozen=True)
class Strings(Config):
    """Composition of strings from recordings of single digits.

    Attributes:
      least, most: smallest and largest number of digits.
      pause: longest pause between two digits, in seconds; pauses at both ends are at most half as
        long.
      overlap: longest cross-fade of two digits, in seconds.
      gain: largest change of a recording's gain, in decibels.
    """

    least: PositiveInt = 3
    most: int = 7
    pause: NonNegativeFloat = 0.25
    overlap: NonNegativeFloat = 0.04
    gain: NonNegativeFloat = 3.0

    def __post_init__(self):
        super().__post_init__()
        self.expect("most", self.most >= self.least, f"at least least={self.least}")


class JoinedDigits:
    """Random strings of digits, each joined from the recordings of one speaker.

    Equal arguments give equal strings.

    Args:
      recordings: samples int16 [P] by speaker, digit and number of the recording.
      count: number of strings.
      config: composition of the strings.
      seed: seed of all random choices.
      rate: sample rate in hertz.

    Attributes:
      digits: digits of each string.
      speakers: speaker of each string.
      lengths: int [count], number of samples of each string.
    """

    def __init__(
        self,
        recordings: Mapping[str, Sequence[Sequence[np.ndarray]]],
        count: int,
        config: Strings,
        seed: Sequence[int],
        rate: int,
    ):
        self._recordings, self._plans = recordings, []
        self.digits: list[np.ndarray] = []
        self.speakers: list[str] = []
        lengths = []
        names = sorted(recordings)
        for index in range(count):
            rng = np.random.default_rng((*seed, index))
            speaker = names[index % len(names)]
            digits = rng.integers(0, 10, rng.integers(config.least, config.most + 1))
            takes = [rng.integers(len(recordings[speaker][digit])) for digit in digits]
            gaps = rng.uniform(-config.overlap, config.pause, len(digits) - 1)
            ends = rng.uniform(0, config.pause / 2, 2)
            gaps = np.round(rate * np.concatenate([ends[:1], gaps, ends[1:]])).astype(int)
            gains = 10 ** (rng.uniform(-config.gain, config.gain, len(digits)) / 20)
            sizes = [
                len(recordings[speaker][d][take]) for d, take in zip(digits, takes, strict=True)
            ]
            # Adjacent digits overlap by at most half of the shorter one.
            for i in range(1, len(digits)):
                gaps[i] = max(gaps[i], -(min(sizes[i - 1 : i + 1]) // 2))
            self._plans.append((takes, gaps, gains))
            self.digits.append(digits)
            self.speakers.append(speaker)
            lengths.append(sum(sizes) + gaps.sum())
        self.lengths = np.array(lengths, np.int32)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns the samples int16 [P] of a string."""
        takes, gaps, gains = self._plans[index]
        speaker = self._recordings[self.speakers[index]]
        result = np.zeros(self.lengths[index], np.float32)
        start = 0
        parts = [
            speaker[digit][take].astype(np.float32)
            for digit, take in zip(self.digits[index], takes, strict=True)
        ]
        for number, (part, gain) in enumerate(zip(parts, gains, strict=True)):
            start += gaps[number]
            part = gain * part
            for edge, gap in ((0, gaps[number]), (1, gaps[number + 1])):
                inner = 0 < number + edge < len(parts)
                if inner and gap < 0:
                    ramp = (np.arange(-gap, dtype=np.float32) + 0.5) / -gap
                    faded = slice(0, -gap) if edge == 0 else slice(len(part) + gap, None)
                    part[faded] *= ramp if edge == 0 else ramp[::-1]
            result[start : start + len(part)] += part
            start += len(part)
        return np.round(result).clip(-32768, 32767).astype(np.int16)
