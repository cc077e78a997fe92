"""Movie review snippets with human ratings (Hutto & Gilbert 2014, VADER): positive or negative."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tasks.common.data.builders import DatasetDefinition
from tasks.common.data.deduplication import text_hash
from tasks.common.data.fetchers import PipPackage
from tasks.common.data.sources import Source
from tasks.common.datasets.labelled_texts.base import example, split_by_hash, text_features

_FILE = "movieReviewSnippets_GroundTruth.txt"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def _unpack(fetched: Path, output: Path) -> None:
    """Extracts the reviews, which are in an archive inside the source distribution."""
    with (
        tarfile.open(fetched) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.extractfile(_INNER).read())) as inner,
    ):
        output.write_bytes(inner.extractfile(f"hutto_ICWSM_2014/{_FILE}").read())


_SOURCE = Source(
    name=f"movie_reviews/{_FILE}",
    sha256="c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    fetchers=(
        PipPackage(
            "vaderSentiment", "3.3.2", "vaderSentiment-3.3.2.tar.gz", extract=_unpack, sdist=True
        ),
    ),
)


def _generate(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    rows = []
    lines = files[_SOURCE.name].read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        _, rating, text = line.split("\t")
        if abs(float(rating)) > 0.5:
            label = "positive" if float(rating) > 0 else "negative"
            rows.append(example(f"line-{index}", text, label))
    return split_by_hash([text_hash(row["text"]) for row in rows], rows)


MOVIE_REVIEWS = DatasetDefinition(
    name="movie_reviews",
    version="1.0.0",
    features=text_features(["negative", "positive"]),
    sources=(_SOURCE,),
    generate=_generate,
    counts={"train": 7970, "validation": 1023, "test": 1050},
    description="Snippets of movie reviews with the mean of twenty human ratings from -4 to 4: "
    "positive above 0.5, negative below -0.5; the 562 snippets between are left out. The hash of "
    "the normalized text modulo 10 determines the split (0 test, 1 validation, else train), so "
    "that equal snippets are in the same split.",
    license="MIT",
)
