"""Telephone prompts with transcripts (Asterisk's core sounds), with one speaker per language."""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from tasks.common.audio.files import read_audio, to_pcm
from tasks.common.data.debian import members
from tasks.common.data.deduplication import duplicate_group_hashes
from tasks.common.data.fetchers import AptPackage
from tasks.common.data.sources import Source

RATE = 8000
LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French"}
DIGITS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "es": ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
    "fr": ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"],
}

_VERSION = "1.6.1-1"
_PACKAGES = {
    "en-wav": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "es-wav": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "es": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    "fr-wav": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "fr": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
}


def _source(kind: str) -> Source:
    package = f"asterisk-core-sounds-{kind}"
    file = f"{package}_{_VERSION}_all.deb"
    return Source(
        f"asterisk/{file}", _PACKAGES[kind], (AptPackage(package, _VERSION, file, seconds=120.0),)
    )


SOURCES = {language: (_source(f"{language}-wav"), _source(language)) for language in LANGUAGES}


def normalize(text: str) -> str:
    """Normalizes a transcript to letters and apostrophes, in lower case, with single spaces."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    kept = (letter if letter.isalpha() or letter == "'" else " " for letter in text)
    return " ".join(word for word in "".join(kept).split() if word.strip("'"))


def transcripts(listing: str, language: str) -> dict[str, str]:
    """Reads transcripts from a list with lines `path: text`; single digits are spelled out.

    Three kinds of lines are omitted: sounds in brackets, such as tones; texts with other numbers,
    whose pronunciation is ambiguous; and empty texts.

    Returns:
      Transcripts by path.
    """
    found = {}
    for line in listing.splitlines():
        path, colon, text = line.partition(":")
        text = re.sub(r"\b\d\b", lambda digit: DIGITS[language][int(digit[0])], text.strip())
        if line.startswith(";") or not colon or text[:1] in ("[", "(", "<"):
            continue
        if not any(letter.isdigit() for letter in text) and normalize(text):
            found[path.strip()] = normalize(text)
    return found


def generate(language: str):
    """Returns a function that generates the splits; test and validation are a tenth each.

    The split of a prompt is selected by the hash of its text. Near-duplicates are in the same
    split, see `tasks.common.data.deduplication.duplicate_group_hashes`.
    """

    def splits(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, object]]]:
        sounds, notes = (files[source.name] for source in SOURCES[language])
        listed = next(
            gzip.decompress(data)
            for name, data in members(notes.read_bytes())
            if name.endswith(f"core-sounds-{language}.txt.gz")
        )
        texts = transcripts(listed.decode(), language)
        held_out = {0: "test", 1: "validation"}
        hashes = duplicate_group_hashes(list(texts.values()))
        split_of = {
            clip: held_out.get(number % 10, "train")
            for clip, number in zip(texts, hashes, strict=True)
        }
        return {
            split: _clips(sounds, {clip: texts[clip] for clip in texts if split_of[clip] == split})
            for split in ("train", "validation", "test")
        }

    return splits


def _clips(path: Path, texts: Mapping[str, str]) -> Iterator[dict[str, object]]:
    for name, data in sorted(members(path.read_bytes())):
        parts = PurePosixPath(name).parts
        if not name.endswith(".wav") or "sounds" not in parts:
            continue
        clip = "/".join(parts[parts.index("sounds") + 2 :]).removesuffix(".wav")
        if clip not in texts:
            continue
        samples = read_audio(data, RATE, clip)
        yield {"id": clip, "samples": to_pcm(samples), "text": texts[clip]}
