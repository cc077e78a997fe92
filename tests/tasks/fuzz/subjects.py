"""Valid files of every task, and how they are read."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import functools
import json
import random
import shutil
import tempfile
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.common.text.tokenizer import TextConfig
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
    extra: bool = True,
    odd: Sequence[str] = mutations.ODD,
) -> Case:
    """Returns a table as it is (rng None), spelled otherwise, with odd cells, or with damaged
    bytes."""
    plain = mutations.table(rows).encode()
    if rng is None:
        done, extension, data, same = "as it is", ".csv", plain, True
    else:
        kind = rng.choice(["respelled", "damaged", "cells"])
        same = kind == "respelled"
        if kind == "respelled":
            done, extension, data = mutations.respelled(
                rng, rows, header=header, json=json, extra=extra
            )
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


class _Processor:
    """A processor that reads the column "text"."""

    input_column = "text"

    @staticmethod
    def table_input(value: str, folder: Path) -> str:
        return value


def _read_inputs(path: Path) -> Counter:
    from launch.engine.inputs import read_inputs

    return Counter(one.raw for one in read_inputs((), str(path), _Processor))


# ---------------------------------------------------------------------- events and series


def _events(rng: random.Random | None, folder: Path, header: bool = True) -> Case:
    source = random.Random(0)
    rows = [["user", "item", "timestamp"]] * header
    rows += [
        [f"u{n % 12}", f"i{source.randrange(20)}", str(1_600_000_000 + 3600 * n)] for n in range(N)
    ]
    return table_case(rng, folder, rows, header=header)


def _read_events(path: Path) -> Counter:
    from tasks.recommendation.user_files import read_events

    events = read_events(str(path))
    times = [0] * len(events.user) if events.seconds is None else events.seconds.tolist()
    return Counter(
        (events.users[user], events.names[item], time)
        for user, item, time in zip(events.user, events.item, times, strict=True)
    )


def _series(rng: random.Random | None, folder: Path) -> Case:
    start = datetime.date(2024, 1, 1)
    rows = [["date", "a", "b"]]
    rows += [
        [str(start + datetime.timedelta(days=n)), str(n), f"{n * 0.5 + 0.25}"] for n in range(N)
    ]
    return table_case(rng, folder, rows, json=False, extra=False)


def _read_series(path: Path) -> Counter:
    from tasks.forecasting.user_files import read_series

    series = read_series(str(path))
    order = sorted(range(len(series.names)), key=series.names.__getitem__)
    names = tuple(series.names[place] for place in order)
    rows = series.values[:, order].tolist()
    # A time that has no row is masked and named.
    return Counter((names, n, *row) for n, row in enumerate(rows) if any(v == v for v in row))


# ---------------------------------------------------------------------- images and sounds


def _image(source: random.Random, number: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    rng = np.random.default_rng((source.randrange(1 << 30), number))
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


@functools.cache
def _template(name: str) -> Path:
    """Valid files of a subject, written once in a process."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _WRITERS[name](folder)
    return folder


def _write_masks(folder: Path) -> None:
    source = random.Random(0)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for n in range(N):
        Image.fromarray(_image(source, n)).save(folder / "images" / f"{n}.png")
        mask = np.zeros((8, 8), np.uint8)
        mask[: 2 + n % 5, :4], mask[7, 7] = 1, 255
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")


def _write_classes(folder: Path) -> None:
    source = random.Random(0)
    for n in range(N):
        place = folder / ("cat" if n % 2 else "d\u00f6g")
        place.mkdir(exist_ok=True)
        Image.fromarray(_image(source, n)).save(place / f"{n}.png")


def _write_boxes(folder: Path) -> None:
    source = random.Random(0)
    content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "a"}, {"id": 4, "name": "b"}]
    for n in range(N):
        Image.fromarray(_image(source, n, (8, 10))).save(folder / f"{n}.png")
        content["images"].append({"id": n, "file_name": f"{n}.png", "height": 8, "width": 10})
        content["annotations"].append(
            {"id": n + 1, "image_id": n, "category_id": 1 + 3 * (n % 2), "bbox": [1, 2, 3, 4.5],
             "iscrowd": 0, "area": 13.5}
        )  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(content, indent=1))


def _write_sounds(folder: Path) -> None:
    source = random.Random(0)
    for n in range(N):
        with wave.open(str(folder / f"{n}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            rng = np.random.default_rng((source.randrange(1 << 30), n))
            file.writeframes(rng.integers(-9999, 9999, 400 + n, dtype=np.int16).tobytes())


def _write_scans(folder: Path) -> None:
    source = random.Random(0)
    for n in range(N):
        Image.fromarray(_image(source, n, (12, 20 + n))).save(folder / f"{n}.png")


_WRITERS = {
    "masks": _write_masks,
    "classes": _write_classes,
    "boxes": _write_boxes,
    "sounds": _write_sounds,
    "scans": _write_scans,
}
_OTHER = (b"", b"x", bytes(range(256)), b"RIFF\0\0\0\0WAVE", b"\x89PNG\r\n\x1a\n")
_JUNK = (
    ("Thumbs.db", b"\xd0\xcf\x11\xe0"), (".DS_Store", b"\0\0\0\1Bud1"), ("notes.txt", b"hello"),
    ("more.heic", b"\0\0\0 ftypheic"),
)  # fmt: skip


def _copied(name: str, folder: Path) -> None:
    shutil.copytree(_template(name), folder, dirs_exist_ok=True)


def _files_case(
    rng: random.Random | None, folder: Path, name: str, endings: Sequence[str], inner: str = ""
) -> Case:
    """Returns a folder of files, unchanged, with additional files, or with one changed file."""
    _copied(name, folder)
    count = sum(path.suffix in endings for path in (folder / inner).rglob("*"))
    if rng is None:
        return Case("as it is", folder, True, count)
    files = sorted(path for path in folder.rglob("*") if path.suffix in endings)
    chosen = rng.choice(files)
    kind = rng.choice(["junk", "upper", "damaged", "damaged", "damaged", "gone", "link", "other"])
    if kind == "junk":
        junk, data = rng.choice(_JUNK)
        (chosen.parent / junk).write_bytes(data)
        return Case(f"{junk} beside", folder, junk != "more.heic", count)
    if kind == "upper":
        chosen.rename(chosen.with_suffix(chosen.suffix.upper()))
        return Case(f"{chosen.name} in capitals", folder, True, count)
    if kind == "gone":
        chosen.unlink()
        return Case(f"{chosen.name} removed", folder, False, count - 1)
    if kind == "link":
        chosen.unlink()
        chosen.symlink_to(folder / "nowhere")
        return Case(f"{chosen.name} is a dangling link", folder, False, count)
    if kind == "other":
        data = rng.choice(
            [b"", b"x", rng.randbytes(300), b"RIFF\0\0\0\0WAVE", b"\x89PNG\r\n\x1a\n"]
        )
        chosen.write_bytes(data)
        return Case(f"{chosen.name} is {data[:12]!r}", folder, False, count)
    done, data = mutations.damaged(rng, chosen.read_bytes())
    chosen.write_bytes(data)
    return Case(f"{chosen.name}: {done}", folder, False, count)


def _masks(rng: random.Random | None, folder: Path) -> Case:
    return _files_case(rng, folder, "masks", (".png",), "images")


def _read_masks(path: Path) -> Counter:
    from tasks.segmentation.data import DataConfig, load

    data = load(DataConfig(path=str(path), image_size=(8, 8)), None)
    return Counter(
        (split, image.tobytes(), labels.tobytes())
        for split, part in data.splits.items()
        for image, labels in zip(part.images, part.labels, strict=True)
    )


def _classes(rng: random.Random | None, folder: Path) -> Case:
    return _files_case(rng, folder, "classes", (".png",))


def _read_classes(path: Path) -> Counter:
    from tasks.common.images.tables import ImageTableConfig
    from tasks.image_classification.user_files import read_images

    labels, splits = read_images(str(path), 8, False, ImageTableConfig())
    return Counter(
        (split, image.tobytes(), labels[label])
        for split, part in splits.items()
        for image, label in zip(part.images, part.labels, strict=True)
    )


def _boxes(rng: random.Random | None, folder: Path) -> Case:
    if rng is not None and rng.random() < 0.25:
        case = _files_case(rng, folder, "boxes", (".png",))
        # An image whose file has another name is one that is missing.
        same = case.same and "capitals" not in case.done
        return Case(case.done, folder / "coco.json", same, 2 * N)
    _copied("boxes", folder)
    path = folder / "coco.json"
    if rng is None:
        return Case("as it is", path, True, 2 * N)
    content = json.loads(path.read_text())
    kind = rng.choice(["spelling", "odd", "odd", "odd", "damaged"])
    if kind == "spelling":
        rng.shuffle(content["annotations"])
        done, data = mutations.encoded(rng, json.dumps(content, indent=rng.choice([None, 2])))
    elif kind == "odd":
        done, changed = mutations.odd_json(rng, content)
        data = json.dumps(changed).encode()
    else:
        done, data = mutations.damaged(rng, path.read_bytes())
    path.write_bytes(data)
    records = None
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(data)
        records = len(found["images"]) + len(found["annotations"])
    return Case(done, path, kind == "spelling", 2 * N if kind == "spelling" else records)


def _read_boxes(path: Path) -> Counter:
    from tasks.detection.user_files import load

    data = load(str(path), None, skip_broken=False)
    found: Counter = Counter()
    for split, images in data.splits.items():
        for image in images:
            found[split, image.name] += 1
            for box, label in zip(image.truth.boxes, image.truth.labels, strict=True):
                found[split, image.name, *box.tolist(), data.names[label]] += 1
    return found


def _manifest(
    rng: random.Random | None, folder: Path, name: str, ending: str, words: Sequence[str]
) -> Case:
    source = random.Random(0)
    rows = [["path", "text"]]
    rows += [[f"{n}{ending}", f"{' '.join(source.choices(words, k=4))}"] for n in range(N)]
    if rng is not None and rng.random() < 0.4:
        case = _files_case(rng, folder, name, (ending,))
        path = folder / "mine.csv"
        path.write_text(mutations.table(rows))
        return Case(case.done, path, case.same and "capitals" not in case.done, N)
    _copied(name, folder)
    return table_case(rng, folder, rows)


def _read_transcribed(data: Any, field: str) -> Counter:
    return Counter(
        (split, part[index][field].tobytes(), text)
        for split, part in data.splits.items()
        for index, text in enumerate(part.texts)
    )


def _sounds(rng: random.Random | None, folder: Path) -> Case:
    return _manifest(rng, folder, "sounds", ".wav", ("one", "two", "three", "four", "five"))


def _read_sounds(path: Path) -> Counter:
    from tasks.speech_recognition.data import DataConfig, load

    return _read_transcribed(load(DataConfig(path=str(path)), None), "samples")


def _scans(rng: random.Random | None, folder: Path) -> Case:
    return _manifest(rng, folder, "scans", ".png", ("12", "34", "567", "890"))


def _read_scans(path: Path) -> Counter:
    from tasks.handwriting_recognition.data import DataConfig, load

    return _read_transcribed(load(DataConfig(path=str(path)), None), "columns")


SUBJECTS: dict[str, Subject] = {
    "text_classification": Subject(_texts, _read_texts),
    "translation": Subject(_pairs, _read_pairs),
    "language_modeling": Subject(_running, _read_lines),
    "recommendation": Subject(_events, _read_events),
    "recommendation_without_header": Subject(
        functools.partial(_events, header=False), _read_events
    ),
    "forecasting": Subject(_series, _read_series),
    "segmentation": Subject(_masks, _read_masks),
    "image_classification": Subject(_classes, _read_classes),
    "detection": Subject(_boxes, _read_boxes),
    "speech_recognition": Subject(_sounds, _read_sounds),
    "handwriting_recognition": Subject(_scans, _read_scans),
    "inputs_table": Subject(_texts, _read_inputs),
    "inputs_lines": Subject(_running, _read_inputs),
}
