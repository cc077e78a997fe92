"""Valid files of every task, and how they are read."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.common.text import TextConfig
from tests.tasks.fuzz import mutations

WORDS = ("fine", "dull", "film", "plot", "stra\u00dfe", "\u4e2d\u6587", "na\u00efve", "caf\u00e9")
N = 60


@dataclasses.dataclass(frozen=True)
class Case:
    """A changed file.

    Attributes:
      done: what was changed.
      path: config.data.path, train_file or the like.
      same: whether the content means the same as before.
      records: that the file holds; None where nothing can be said of it.
    """

    done: str
    path: Path
    same: bool
    records: int | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A reader and its files.

    Attributes:
      make: random generator and an empty folder -> a case there; the case of seed None is valid.
      read: path -> what was read, as a multiset of examples, with their splits where these do not
        depend on the order.
    """

    make: Callable[[random.Random | None, Path], Case]
    read: Callable[[Path], Counter]


def _sentence(rng: random.Random, number: int) -> str:
    return f"{' '.join(rng.choices(WORDS, k=rng.randint(2, 6)))}, number; {number}"


def _lines_of(data: bytes) -> int | None:
    """Lines with content; None where the bytes are no text."""
    for encoding in ("utf-8-sig", "utf-16"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-16" and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
            continue
        end = "\n" if "\n" in text else "\r"
        return sum(bool(line.strip(' ,;\t"\r')) for line in text.split(end))
    return None


def table_case(
    rng: random.Random | None,
    folder: Path,
    rows: Sequence[Sequence[str]],
    *,
    stem: str = "mine",
    header: bool = True,
    json: bool = True,
    odd: Sequence[str] = mutations.ODD,
) -> Case:
    """A table as it is (rng None), spelled otherwise, with odd cells, or with damaged bytes."""
    plain = mutations.table(rows).encode()
    if rng is None:
        done, extension, data, same = "as it is", ".csv", plain, True
    else:
        kind = rng.choice(["respelled", "damaged", "cells"])
        same = kind == "respelled"
        if kind == "respelled":
            done, extension, data = mutations.respelled(rng, rows, header=header, json=json)
        elif kind == "damaged":
            extension, (done, data) = ".csv", mutations.damaged(rng, plain)
        else:
            done, changed = mutations.odd_cells(rng, rows, odd)
            extension, data = ".csv", mutations.table(changed).encode("utf-8", "surrogatepass")
    path = folder / f"{stem}{extension}"
    path.write_bytes(data)
    lines = _lines_of(data)
    records = None if lines is None else lines - header
    return Case(done, path, same, len(rows) - header if same else records)


# ---------------------------------------------------------------------- texts


def _texts(rng: random.Random | None, folder: Path) -> Case:
    source = random.Random(0)
    rows = [["id", "text", "label"]]
    rows += [[str(n), _sentence(source, n), source.choice("pn")] for n in range(N)]
    return table_case(rng, folder, rows)


def _read_texts(path: Path) -> Counter:
    from tasks.text_classification.data import DataConfig, load

    data = load(DataConfig(train_file=str(path)), None)
    return Counter(
        (split, text, data.label_names[label])
        for split, part in data.splits.items()
        for text, label in zip(part.texts, part.labels, strict=True)
    )


def _line_case(rng: random.Random | None, folder: Path, name: str, lines: Sequence[str]) -> Case:
    """A file of lines; their order counts."""
    plain = "".join(f"{line}\n" for line in lines)
    if rng is None:
        done, data, same = "as it is", plain.encode(), True
    elif same := rng.random() < 0.4:
        end = rng.choice(["\n", "\r\n", "\r"])
        done, data = mutations.encoded(rng, plain.replace("\n", end).rstrip("\n\r" * (end != "\r")))
    else:
        done, data = mutations.damaged(rng, plain.encode())
    (folder / name).write_bytes(data)
    found = _lines_of(data)
    return Case(done, folder / name, same, len(lines) if same else found)


def _pairs(rng: random.Random | None, folder: Path) -> Case:
    source = random.Random(0)
    sides = [[_sentence(source, n) for n in range(N)] for _ in range(2)]
    cases = [
        _line_case(rng, folder, f"train.{language}", lines)
        for language, lines in zip(("en", "de"), sides, strict=True)
    ]
    counts = [case.records for case in cases]
    return Case(
        " | ".join(case.done for case in cases),
        folder,
        all(case.same for case in cases),
        None if None in counts else min(counts),
    )


def _read_pairs(path: Path) -> Counter:
    from tasks.translation.data import DataConfig, load

    data = load(DataConfig(path=str(path)), None)
    return Counter(
        (split, *pair)
        for split, part in data.splits.items()
        for pair in zip(part.sources, part.targets, strict=True)
    )


def _running(rng: random.Random | None, folder: Path) -> Case:
    source = random.Random(0)
    return _line_case(rng, folder, "mine.txt", [_sentence(source, n) for n in range(N)])


def _read_lines(path: Path) -> Counter:
    from tasks.language_modeling.data import DataConfig, load

    data = load(DataConfig(train_file=str(path), lines=True, text=_characters()), None)
    return Counter((split, text) for split, texts in data.splits.items() for text in texts)


def _characters() -> TextConfig:
    return TextConfig(tokenizer="character", lower_case=False, min_count=1)


# ---------------------------------------------------------------------- predictions


class _Reader:
    input_column = "text"

    def table_input(self, value: str, folder: Path) -> str:
        return value


def _read_inputs(path: Path) -> Counter:
    from launch.engine.inputs import read_inputs

    return Counter(one.raw for one in read_inputs((), str(path), _Reader()))


SUBJECTS: dict[str, Subject] = {
    "text_classification": Subject(_texts, _read_texts),
    "translation": Subject(_pairs, _read_pairs),
    "language_modeling": Subject(_running, _read_lines),
    "inputs_table": Subject(_texts, _read_inputs),
    "inputs_lines": Subject(_running, _read_inputs),
}
