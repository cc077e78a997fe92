"""The Bible by verse, in English and Spanish, from two SWORD modules packaged by Debian."""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tasks.common.data.debian import members
from tasks.common.data.fetchers import AptPackage
from tasks.common.data.sources import Source

# OSIS elements whose content is not part of the verse, and elements within a sentence, whose tags
# are removed without a space.
_ASIDE = r"note|title|speaker|catchWord|rdg"
_WITHIN = r"w|seg|q|transChange|name"
# Books of several genres that have few parallel passages in other books.
SPLITS = {
    "validation": ("Ruth", "Esth", "Dan", "Rom", "Jas"),
    "test": ("Judg", "Eccl", "Jonah", "Acts", "Heb"),
}
# Maximum ratio of the lengths of a pair. A larger ratio suggests that the numbering of verses
# differs, so that one verse contains two verses of the other language.
_MAX_LENGTH_RATIO = 2.2


def _verses_of(module: str, versification: str) -> Callable[[Path, Path], None]:
    """Returns a function that writes a module's verses to a TSV file: BOOK, CHAPTER:VERSE, text."""

    def extract(fetched: Path, output: Path) -> None:
        files = {
            name.rsplit("/", 1)[1]: content
            for name, content in members(fetched.read_bytes())
            if f"/ztext/{module}/" in name
        }
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            for testament in ("ot", "nt"):
                texts = _texts(*(files[f"{testament}.{kind}"] for kind in ("bzs", "bzv", "bzz")))
                for (book, place), text in _numbered(texts, versification, testament):
                    file.write(f"{book}\t{place}\t{plain(text)}\n")

    return extract


def _texts(blocks: bytes, verses: bytes, compressed: bytes) -> list[str]:
    """Reads all entries of a testament, including headings, from its zText files."""
    books = [
        zlib.decompress(compressed[start : start + size])
        for start, size, _ in struct.iter_unpack("<III", blocks)
    ]
    places = struct.iter_unpack("<IIH", verses)
    return [books[block][start : start + size].decode() for block, start, size in places]


def _numbered(
    texts: list[str], versification: str, testament: str
) -> Iterator[tuple[tuple[str, str], str]]:
    """Yields (book, "CHAPTER:VERSE") and the text of each verse of a testament.

    Entries also contain headings: two before the testament, and one before each book and chapter.
    """
    from pysword.canons import canons

    entries = iter(texts[2:])
    for _, book, _, chapters in canons[versification][testament]:
        next(entries, "")
        for chapter, length in enumerate(chapters, 1):
            next(entries, "")
            for verse in range(1, length + 1):
                yield (book, f"{chapter}:{verse}"), next(entries, "")


def plain(text: str) -> str:
    """Removes OSIS markup, notes and headings from the text of a verse."""
    text = re.sub(rf"<({_ASIDE})\b[^>]*/>", " ", text)
    text = re.sub(rf"<({_ASIDE})\b.*?</\1>", " ", text)
    text = re.sub(rf"</?({_WITHIN})\b[^>]*>", "", text)
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([,.;:!?)’”])", r"\1", text)


ENGLISH = Source(
    name="bible_en_es/world_english_bible.tsv",
    sha256="949b1a9299e0a524f60113e37510e2a2622e856d302dd2c8a1a32d5bcc931075",
    fetchers=(
        AptPackage(
            "sword-text-web",
            "426.0-1",
            "sword-text-web_426.0-1_all.deb",
            extract=_verses_of("engWEB2015eb", "nrsva"),
        ),
    ),
)
SPANISH = Source(
    name="bible_en_es/reina_valera_1909.tsv",
    sha256="aa58c1ffba5ebe2fc65f18d4fe1e79205f7e6c650f25556a7d41a846e2e7ad62",
    fetchers=(
        AptPackage(
            "sword-text-sparv",
            "2.60-1",
            "sword-text-sparv_2.60-1_all.deb",
            extract=_verses_of("spaRV1909eb", "kjv"),
        ),
    ),
)


def generate(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    """Returns pairs of verses in both languages with similar lengths, split by book."""
    english, spanish = (_read(files[source.name]) for source in (ENGLISH, SPANISH))
    split_of = {book: split for split, books in SPLITS.items() for book in books}
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for (book, place), left in english.items():
        right = spanish.get((book, place), "")
        if (
            left
            and right
            and max(len(left), len(right)) <= _MAX_LENGTH_RATIO * min(len(left), len(right))
        ):
            row = {"id": f"{book} {place}", "en": left, "es": right}
            splits[split_of.get(book, "train")].append(row)
    return splits


def _read(file: Path) -> dict[tuple[str, str], str]:
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    return {(book, place): text for book, place, text in rows}
