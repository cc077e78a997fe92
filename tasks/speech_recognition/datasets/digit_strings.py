"""Recordings of single digits joined into strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Strings:
    """How recordings of single digits are joined into strings.

    Attributes:
      least, most: digits of a string.
      pause: longest pause between two, in seconds; half as much again stands at either end.
      overlap: most that one fades into the next, in seconds.
      gain: largest change of a recording's loudness, in decibels.
    """

    least: int = 3
    most: int = 7
    pause: float = 0.25
    overlap: float = 0.04
    gain: float = 3.0

    def __post_init__(self):
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least must be in [1, most], got {self.least} and {self.most}")
        for name in ("pause", "overlap", "gain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class JoinedDigits:
    """Strings of one or more speakers' recordings, each string of one speaker: a pure function of
    the seed.

    Args:
      recordings: by speaker, digit and take: int16 [P].
      count: strings.
      config: see `Strings`.
      seed: of the choices.
      rate: samples a second.

    Attributes:
      digits: of each string.
      speakers: of each string.
      lengths: int [count], samples.
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
            # Two neighbours overlap by half of the shorter at most.
            for place in range(1, len(digits)):
                gaps[place] = max(gaps[place], -(min(sizes[place - 1 : place + 1]) // 2))
            self._plans.append((takes, gaps, gains))
            self.digits.append(digits)
            self.speakers.append(speaker)
            lengths.append(sum(sizes) + gaps.sum())
        self.lengths = np.array(lengths, np.int32)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> np.ndarray:
        """Samples int16 [P] of one string."""
        takes, gaps, gains = self._plans[index]
        speaker = self._recordings[self.speakers[index]]
        result = np.zeros(self.lengths[index], np.float32)
        place = 0
        parts = [
            speaker[digit][take].astype(np.float32)
            for digit, take in zip(self.digits[index], takes, strict=True)
        ]
        for number, (part, gain) in enumerate(zip(parts, gains, strict=True)):
            place += gaps[number]
            part = gain * part
            for edge, gap in ((0, gaps[number]), (1, gaps[number + 1])):
                inner = 0 < number + edge < len(parts)
                if inner and gap < 0:
                    ramp = (np.arange(-gap, dtype=np.float32) + 0.5) / -gap
                    faded = slice(0, -gap) if edge == 0 else slice(len(part) + gap, None)
                    part[faded] *= ramp if edge == 0 else ramp[::-1]
            result[place : place + len(part)] += part
            place += len(part)
        return np.round(result).clip(-32768, 32767).astype(np.int16)
