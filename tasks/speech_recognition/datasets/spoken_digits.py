"""The Free Spoken Digit Dataset (Jackson et al. 2018): 3,000 recordings of single digits."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.common.audio.files import read_audio, to_pcm
from tasks.common.data.fetchers import UrlFetcher
from tasks.common.data.sources import Source, zip_content

RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TAKES = 50
"""Number of recordings of each digit by each speaker."""

_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
_ADDRESS = f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/{_COMMIT}"
_FOLDER = "recordings/"


def _select(fetched: Path, output: Path) -> None:
    """Copies the recordings from the downloaded archive to `output`."""
    with zipfile.ZipFile(fetched) as given, zipfile.ZipFile(output, "w") as chosen:
        for name in sorted(given.namelist()):
            _, found, rest = name.partition(f"/{_FOLDER}")
            if found and rest.endswith(".wav"):
                chosen.writestr(_FOLDER + rest, given.read(name))


SOURCE = Source(
    "fsdd/recordings.zip",
    "b1a8d39ed1fb7556a9e693c2ad20871943179e119cd5a1d70df19431512a8635",
    (UrlFetcher(_ADDRESS, extract=_select, seconds=120.0),),
    content=zip_content(".wav"),
)


def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, object]]]:
    """Returns a split for each speaker, sorted by digit and number of the recording."""
    return {speaker: _recordings(files[SOURCE.name], speaker) for speaker in SPEAKERS}


def _recordings(path: Path, speaker: str) -> Iterator[dict[str, object]]:
    with zipfile.ZipFile(path) as archive:
        for digit in range(len(WORDS)):
            for take in range(TAKES):
                name = f"{digit}_{speaker}_{take}.wav"
                samples = read_audio(archive.read(_FOLDER + name), RATE, name)
                yield {
                    "id": name.removesuffix(".wav"),
                    "samples": to_pcm(samples),
                    "digit": digit,
                    "take": take,
                }
