"""Duplicates and conflicting labels that are planted in the user files of `tests.launch.own_data`.

Each function repeats one example with the same label and, if the task has labels, once more with
another label.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def _append(path: Path, *lines: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _texts(folder: Path) -> None:
    text, label = _lines(folder / "x.csv")[1].split(",")
    other = {"good": "bad", "bad": "good"}[label]
    _append(folder / "x.csv", f"{text},{label}", f"{text.upper()},{other}")


def _running_lines(folder: Path) -> None:
    _append(folder / "x.txt", _lines(folder / "x.txt")[0])


def _pairs(folder: Path) -> None:
    source, target = (_lines(folder / f"train.{language}")[0] for language in ("en", "de"))
    _append(folder / "train.en", source, source)
    _append(folder / "train.de", target, f"{target} plot")


def _images(folder: Path) -> None:
    shutil.copy(folder / "cat" / "00.png", folder / "cat" / "98.png")
    shutil.copy(folder / "cat" / "00.png", folder / "dog" / "99.png")


def _masks(folder: Path) -> None:
    for name in ("98.png", "99.png"):
        for kind in ("images", "masks"):
            shutil.copy(folder / kind / "00.png", folder / kind / name)
    mask = np.asarray(Image.open(folder / "masks" / "00.png"))
    Image.fromarray(1 - mask).save(folder / "masks" / "99.png")


def _boxes(folder: Path) -> None:
    content = json.loads((folder / "x.json").read_text())
    (box,) = [x for x in content["annotations"] if x["image_id"] == 0]
    for number, category in ((98, box["category_id"]), (99, 3 - box["category_id"])):
        shutil.copy(folder / "00.png", folder / f"{number}.png")
        image = {**content["images"][0], "id": number, "file_name": f"{number}.png"}
        content["images"].append(image)
        changed = {"id": number, "image_id": number, "category_id": category}
        content["annotations"].append({**box, **changed})
    (folder / "x.json").write_text(json.dumps(content))


def _series(folder: Path) -> None:
    """Repeats the values of 10 hours in the train split and in the test split."""
    lines = _lines(folder / "x.csv")
    for first in (101, 361):
        for hour in range(10):
            time = lines[first + hour].partition(",")[0]
            lines[first + hour] = f"{time},{lines[41 + hour].partition(',')[2]}"
    (folder / "x.csv").write_text("\n".join(lines) + "\n")


def _events(folder: Path) -> None:
    mine = [line for line in _lines(folder / "x.csv") if line.startswith("u0,")]
    _append(folder / "x.csv", *(f"copy{line[2:]}" for line in mine))


def _files(extension: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        text = _lines(folder / "x.csv")[1].partition(",")[2]
        other = _lines(folder / "x.csv")[2].partition(",")[2]
        for name in ("98", "99"):
            shutil.copy(folder / f"00.{extension}", folder / f"{name}.{extension}")
        _append(folder / "x.csv", f"98.{extension},{text}", f"99.{extension},{other}")

    return plant


PLANTED: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "text_classification": (_texts, 2, 3),
    "language_modeling": (_running_lines, 1, 0),
    "translation": (_pairs, 2, 3),
    "image_classification": (_images, 2, 3),
    "segmentation": (_masks, 2, 3),
    "detection": (_boxes, 2, 3),
    "forecasting": (_series, 14, 0),
    "recommendation": (_events, 1, 0),
    "speech_recognition": (_files("wav"), 2, 3),
    "handwriting_recognition": (_files("png"), 2, 3),
}
"""By task: how to plant, number of repeated inputs, and of examples with a conflicting label."""
