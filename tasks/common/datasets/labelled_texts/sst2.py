"""SST-2 (Socher 2013), with complete sentences only, two classes and the original splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tasks.common.data.builders import DatasetDefinition
from tasks.common.data.sources import url_source
from tasks.common.datasets.labelled_texts.base import example, text_features

_ADDRESS = (
    "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/"
    "457ffd83de90a9d6d472d8ffc31bbffe40a8b236/data/SST2/"
)
_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_HASHES = {
    "train.tsv": "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
    "dev.tsv": "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
    "test.tsv": "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
}
_LABELS = ("negative", "positive")


def _generate(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    splits = {}
    for split, file in _FILES.items():
        lines = files[f"sst2/{file}"].read_text(encoding="utf-8").rstrip("\n").split("\n")
        rows = [line.rsplit("\t", 1) for line in lines]
        splits[split] = [
            example(f"{split}-{index}", text, _LABELS[int(label)])
            for index, (text, label) in enumerate(rows)
        ]
    return splits


SST2 = DatasetDefinition(
    name="sst2",
    version="1.0.0",
    features=text_features(_LABELS),
    sources=tuple(
        url_source(f"sst2/{file}", digest, _ADDRESS, file) for file, digest in _HASHES.items()
    ),
    generate=_generate,
    counts={"train": 6920, "validation": 872, "test": 1821},
    description="Sentences of movie reviews, positive or negative, in the split of the treebank.",
    license="none stated",
)
