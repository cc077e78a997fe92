"""Definitions of the built-in data sets of parallel texts."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping
from pathlib import Path

from tasks.common.data.builders import DatasetDefinition, features_of
from tasks.common.data.sources import url_source
from tasks.translation import bible


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A built-in data set of sentences with their translations.

    Attributes:
      definition: definition of the data set; examples have an id and a text for each language.
      languages: two-letter codes of the languages.
    """

    definition: DatasetDefinition
    languages: tuple[str, ...]


# ---------------------------------------------------------------------- Multi30k

_MULTI30K_ADDRESS = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
)
_MULTI30K_FILES = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
_MULTI30K_HASHES = {
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
}


def _multi30k(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    def lines(stem: str, language: str) -> list[str]:
        content = gzip.decompress(files[f"multi30k/{stem}.{language}.gz"].read_bytes())
        return [line.strip() for line in content.decode("utf-8").rstrip("\n").split("\n")]

    return {
        split: [
            {"id": f"{split}-{index}", "en": english, "de": german}
            for index, (english, german) in enumerate(
                zip(lines(stem, "en"), lines(stem, "de"), strict=True)
            )
        ]
        for split, stem in _MULTI30K_FILES.items()
    }


MULTI30K = Parallel(
    DatasetDefinition(
        name="multi30k",
        version="1.0.0",
        features=features_of(id=str, en=str, de=str),
        sources=tuple(
            url_source(f"multi30k/{file}", digest, _MULTI30K_ADDRESS, file)
            for file, digest in _MULTI30K_HASHES.items()
        ),
        generate=_multi30k,
        counts={"train": 29_000, "validation": 1_014, "test": 1_000},
        description="Captions of Flickr images in English and their translations into German "
        "(Elliott et al. 2016), raw, in the given splits; test is test_2016_flickr.",
        license="research, non-commercial",
    ),
    ("en", "de"),
)

# ---------------------------------------------------------------------- the Bible

BIBLE_EN_ES = Parallel(
    DatasetDefinition(
        name="bible_en_es",
        version="1.0.0",
        features=features_of(id=str, en=str, es=str),
        sources=(bible.ENGLISH, bible.SPANISH),
        generate=bible.generate,
        counts={"train": 27_688, "validation": 1_146, "test": 2_189},
        description="Verses of the World English Bible and of Reina-Valera 1909, for each book, "
        "chapter and verse that both have; pairs with a ratio of lengths above 2.2 "
        "are left out. Split by book: validation is Ruth, Esther, Daniel, Romans and James; test "
        "is Judges, Ecclesiastes, Jonah, Acts and Hebrews; train is all others. Books quote each "
        "other: 42 test verses have a near-duplicate in train (`near_duplicates` on the English).",
        license="public domain",
    ),
    ("en", "es"),
)

DATA_SETS: dict[str, Parallel] = {
    parallel.definition.name: parallel for parallel in (MULTI30K, BIBLE_EN_ES)
}
