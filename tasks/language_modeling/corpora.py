"""Built-in texts without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tasks.common.data.builders import DatasetDefinition, features_of
from tasks.common.data.debian import member_of
from tasks.common.data.fetchers import AptPackage
from tasks.common.data.sources import Source, url_source
from tasks.language_modeling.rpackage import vectors

_FILE = "tinyshakespeare/input.txt"


def _generate(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    text = files[_FILE].read_text(encoding="utf-8")
    first, last = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    return {"train": [{"text": first}], "validation": [{"text": last}], "test": [{"text": last}]}


TINY_SHAKESPEARE = DatasetDefinition(
    name="tiny_shakespeare",
    version="1.0.0",
    features=features_of(text=str),
    sources=(
        url_source(
            _FILE,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            "https://raw.githubusercontent.com/karpathy/char-rnn/",
            "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        ),
    ),
    generate=_generate,
    counts={"train": 1, "validation": 1, "test": 1},
    description="40,000 lines of Shakespeare's plays (Karpathy 2015), 1,115,394 characters. The "
    "first nine tenths are train, the last tenth is validation, as in published results. Test is "
    "the same text as validation, so the tested checkpoint was selected on the test text.",
    license="public domain",
)

_NOVELS = "janeausten/novels.txt"
_DATABASE = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
# Indices of the six novels in the package, which stores them in the order of their titles.
_BOOKS = {"train": (0, 1, 4, 5), "validation": (2,), "test": (3,)}


def _unpack(fetched: Path, output: Path) -> None:
    """Writes the novels of the package to a text file, separated by form feeds."""
    database = member_of(fetched.read_bytes(), _DATABASE)
    output.write_bytes("\f".join("\n".join(lines) for lines in vectors(database)).encode())


def _generate_novels(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    novels = files[_NOVELS].read_bytes().decode().split("\f")
    return {
        split: [{"text": "\n\n".join(novels[book] for book in books)}]
        for split, books in _BOOKS.items()
    }


JANEAUSTEN = DatasetDefinition(
    name="janeausten",
    version="1.0.0",
    features=features_of(text=str),
    sources=(
        Source(
            _NOVELS,
            "c4572e8622f440069b39e0c183cc43579a25689e3714bdfa23290716a8a2bc5f",
            (
                AptPackage(
                    "r-cran-janeaustenr",
                    "1.0.0-1",
                    "r-cran-janeaustenr_1.0.0-1_all.deb",
                    extract=_unpack,
                ),
            ),
        ),
    ),
    generate=_generate_novels,
    counts={"train": 1, "validation": 1, "test": 1},
    description="The six novels of Jane Austen, from Project Gutenberg by way of the R package "
    "janeaustenr. Split by book: Northanger Abbey is validation, Persuasion is test.",
    license="public domain",
)

CORPORA: dict[str, DatasetDefinition] = {
    definition.name: definition for definition in (TINY_SHAKESPEARE, JANEAUSTEN)
}
