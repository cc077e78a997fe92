"""Tiny user files for every task, changed and reordered, with models that train in seconds."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD, BAD = ["fine", "lovely", "superb"], ["dull", "awful", "flat"]
SMALL = {
    "training.steps": 2,
    "training.batch_size": 4,
    "training.evaluation_batch_size": 4,
    "training.evaluate_every": 1,
    "training.log_every": 1,
    "training.refit": False,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with its data.

    Attributes:
      config: config file with its argument.
      changes: new values by key; FOLDER in a value is the folder of the data.
      write: writes the data into a folder.
      change: changes the data so that a run learns something else.
      labeled: labeled file of an evaluation, in the folder of the data.
      reorder: reorders the data; None if the reader sorts them.
      expected: words of the message after `change`.
      expected_order: words of the message after `reorder`.
      inputs: inputs of the prediction.
    """

    config: str
    changes: Mapping[str, Any]
    write: Callable[[Path], None]
    change: Callable[[Path], None]
    expected: tuple[str, ...]
    inputs: Callable[[Path], list[str]]
    labeled: str
    reorder: Callable[[Path], None] | None = None
    expected_order: tuple[str, ...] = ()

    def overrides(self, folder: Path) -> dict[str, Any]:
        """Returns keys and values of a config."""
        found = {
            key: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value
            for key, value in self.changes.items()
        }
        return {**SMALL, **found}


def replace(file: str, old: str, new: str, count: int = -1) -> Callable[[Path], None]:
    """Returns a function that replaces text in a file."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new, count), encoding="utf-8")

    return change


def swapped(file: str, first: str, second: str) -> Callable[[Path], None]:
    """Returns a function that swaps two words everywhere in a text file."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        text = text.replace(first, "\0").replace(second, first).replace("\0", second)
        (folder / file).write_text(text, encoding="utf-8")

    return change


def reversed_lines(*files: str, header: int = 1) -> Callable[[Path], None]:
    """Returns a function that reverses the lines after the header."""

    def change(folder: Path) -> None:
        for file in files:
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
            lines = lines[:header] + lines[header:][::-1]
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return change


def _sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        words = rng.choices(["film", "plot", "scene", "actor", "the", "a"], k=4)
        words.insert(2, rng.choice(GOOD if label == "good" else BAD))
        found.append((f"{' '.join(words)} {number}", label))
    return found


def _write_texts(folder: Path) -> None:
    rows = [f"{text},{label}" for text, label in _sentences(60)]
    (folder / "x.csv").write_text("\n".join(["text,label", *rows]) + "\n")


def _write_lines(folder: Path) -> None:
    (folder / "x.txt").write_text("\n".join(text for text, _ in _sentences(80)) + "\n")


def _write_pairs(folder: Path) -> None:
    texts = [text for text, _ in _sentences(80)]
    (folder / "train.en").write_text("\n".join(texts) + "\n")
    (folder / "train.de").write_text("\n".join(" ".join(x.split()[::-1]) for x in texts) + "\n")


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label, level in (("cat", 60), ("dog", 190)):
        (folder / label).mkdir()
        for number in range(30):
            pixels = rng.integers(level - 50, level + 50, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.png")


def _swap_images(folder: Path) -> None:
    """Swaps the names of the classes."""
    (folder / "cat").rename(folder / "between")
    (folder / "dog").rename(folder / "cat")
    (folder / "between").rename(folder / "dog")


def _rename_images(folder: Path) -> None:
    """Renames the files, since they are read in the order of their names."""
    for label in ("cat", "dog"):
        for number in range(30):
            (folder / label / f"{number:02d}.png").rename(folder / label / f"x{99 - number}.png")


def _write_masks(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(70):
        mask = np.zeros((16, 16), np.uint8)
        mask[: rng.integers(4, 12)] = 1
        image = (mask * 120 + rng.integers(0, 80, mask.shape)).astype(np.uint8)
        Image.fromarray(np.stack([image] * 3, -1)).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")


def _swap_masks(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        Image.fromarray(1 - np.asarray(Image.open(path))).save(path)


def _rename_masks(folder: Path) -> None:
    for name in ("images", "masks"):
        for number in range(70):
            (folder / name / f"{number:02d}.png").rename(folder / name / f"x{99 - number}.png")


def _write_boxes(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(40):
        pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        x, y, w, h = (int(v) for v in (*rng.integers(1, 12, 2), *rng.integers(8, 16, 2)))
        pixels[y : y + h, x : x + w] += 150
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        images.append({"id": number, "file_name": f"{number:02d}.png", "height": 32, "width": 32})
        annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 2,
                            "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
    categories = [{"id": 1, "name": "round"}, {"id": 2, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "x.json").write_text(json.dumps(content))


def _reorder_boxes(folder: Path) -> None:
    content = json.loads((folder / "x.json").read_text())
    content["images"].reverse()
    (folder / "x.json").write_text(json.dumps(content))


def _write_series(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["date,load,heat"]
    for hour in range(400):
        values = np.sin(hour / 4) + rng.normal(size=2) / 5
        day, rest = divmod(hour, 24)
        stamp = f"2024-01-{day + 1:02d} {rest:02d}:00:00"
        lines.append(f"{stamp},{values[0]:.4f},{values[1]:.4f}")
    (folder / "x.csv").write_text("\n".join(lines) + "\n")


def _write_events(folder: Path) -> None:
    rng = random.Random(0)
    lines = ["user,item,timestamp"]
    for user in range(30):
        for place, item in enumerate(rng.sample(range(20), 8)):
            lines.append(f"u{user},i{item},{1_600_000_000 + 1000 * place + user}")
    (folder / "x.csv").write_text("\n".join(lines) + "\n")


def _write_sounds(folder: Path) -> None:
    import soundfile

    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "four"]
    lines = ["path,text"]
    for number in range(48):
        said = [words[(number + k * (number // 4)) % 4] for k in range(2)] + [words[number % 4]]
        said = [*said[: 1 + number % 3], words[number // 12]]
        wave = rng.normal(size=1600) / 10
        soundfile.write(folder / f"{number:02d}.wav", wave.astype(np.float32), 8000)
        lines.append(f"{number:02d}.wav,{' '.join(said)}")
    (folder / "x.csv").write_text("\n".join(lines) + "\n")


def _write_handwriting(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["path,text"]
    for number in range(48):
        pixels = rng.integers(0, 255, (32, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{number * 7 % 100:02d}{number % 10}")
    (folder / "x.csv").write_text("\n".join(lines) + "\n")


def _exchange_files(first: str, second: str) -> Callable[[Path], None]:
    """Swaps the names of two files, and so their texts."""

    def change(folder: Path) -> None:
        shutil.move(folder / first, folder / "between")
        shutil.move(folder / second, folder / first)
        shutil.move(folder / "between", folder / second)

    return change


def _first(folder: Path, pattern: str) -> list[str]:
    return [str(sorted(folder.rglob(pattern))[0])]


CASES = {
    "text_classification": Case(
        config="configs/text_classification.py:movie_reviews,attention_pooling",
        changes={"data.train_file": "FOLDER/x.csv", "data.text.min_count": 1},
        write=_write_texts,
        change=swapped("x.csv", ",good", ",bad"),
        expected=("train labels",),
        reorder=reversed_lines("x.csv"),
        expected_order=("train texts (order)", "train labels (order)"),
        inputs=lambda folder: ["a lovely film"],
        labeled="FOLDER/x.csv",
    ),
    "language_modeling": Case(
        config="configs/language_modeling.py:movie_reviews,bert",
        changes={
            "data.train_file": "FOLDER/x.txt",
            "data.lines": True,
            "data.length": 16,
            "data.text.min_count": 1,
            "data.text.vocabulary_size": 200,
            "model.max_length": 16,
            "model.model_size": 16,
            "model.num_layers": 1,
            "model.num_heads": 2,
            "model.feedforward_size": 16,
        },
        write=_write_lines,
        change=swapped("x.txt", "film", "plot"),
        expected=("train texts",),
        reorder=reversed_lines("x.txt", header=0),
        expected_order=("train texts (order)",),
        inputs=lambda folder: ["the [MASK] plot"],
        labeled="FOLDER/x.txt",
    ),
    "translation": Case(
        config="configs/translation.py:multi30k,rnn",
        changes={
            "data.path": "FOLDER",
            "data.text.min_count": 1,
            "data.text.vocabulary_size": 300,
            "model.embedding_size": 8,
            "model.state_size": 8,
            "model.decoding.beam_size": 1,
            "model.decoding.method": "greedy",
        },
        write=_write_pairs,
        change=swapped("train.de", "film", "plot"),
        expected=("train targets",),
        reorder=reversed_lines("train.en", "train.de", header=0),
        expected_order=("train sources (order)", "train targets (order)"),
        inputs=lambda folder: ["a lovely film"],
        labeled="FOLDER/train.en,FOLDER/train.de",
    ),
    "image_classification": Case(
        config="configs/image_classification.py:digits,convnet",
        changes={"data.path": "FOLDER", "data.image_size": 8},
        write=_write_images,
        change=_swap_images,
        expected=("train images",),
        reorder=_rename_images,
        expected_order=("train images (order)",),
        inputs=lambda folder: _first(folder, "*.png"),
        labeled="FOLDER",
    ),
    "segmentation": Case(
        config="configs/segmentation.py:camvid",
        changes={"data.path": "FOLDER", "data.image_size": (16, 16), "model.channels": (4, 8)},
        write=_write_masks,
        change=_swap_masks,
        expected=("train masks",),
        reorder=_rename_masks,
        expected_order=("train images (order)", "train masks (order)"),
        inputs=lambda folder: _first(folder, "images/*.png"),
        labeled="FOLDER",
    ),
    "detection": Case(
        config="configs/detection.py:nuclei,detr",
        changes={
            "data.path": "FOLDER/x.json",
            "data.image_size": 32,
            "model.queries": 4,
            "model.backbone.channels": (4, 4, 8, 8),
            "model.backbone.depths": (1, 1, 1, 1),
            "model.model_size": 8,
            "model.num_heads": 2,
            "model.feedforward_size": 8,
            "model.encoder_layers": 1,
            "model.decoder_layers": 1,
        },
        write=_write_boxes,
        change=replace("x.json", '"category_id": 1', '"category_id": 2', 5),
        expected=("train objects",),
        reorder=_reorder_boxes,
        expected_order=("train objects (order)",),
        inputs=lambda folder: _first(folder, "*.png"),
        labeled="FOLDER/x.json",
    ),
    "forecasting": Case(
        config="configs/forecasting.py:etth1,lag",
        changes={"data.path": "FOLDER/x.csv", "data.lookback": 24, "data.horizon": 4},
        write=_write_series,
        change=swapped("x.csv", "load", "heat"),
        expected=("names",),
        # Rows are placed on the grid of their times, so their order has no effect.
        reorder=None,
        inputs=lambda folder: [str(folder / "x.csv")],
        labeled="FOLDER/x.csv",
    ),
    "recommendation": Case(
        config="configs/recommendation.py:movielens_100k,sasrec",
        changes={
            "data.path": "FOLDER/x.csv",
            "data.max_length": 8,
            "model.max_length": 8,
            "model.model_size": 8,
            "model.num_layers": 1,
            "model.feedforward_size": 8,
            "training.refit": True,
        },
        write=_write_events,
        change=replace("x.csv", "i7,", "i8,"),
        expected=("events",),
        reorder=reversed_lines("x.csv"),
        expected_order=("users (order)",),
        inputs=lambda folder: ["i3, i4"],
        labeled="FOLDER/x.csv",
    ),
    "speech_recognition": Case(
        config="configs/speech_recognition.py:spoken_digits,conformer,ctc",
        changes={
            "data.path": "FOLDER/x.csv",
            "model.model_size": 8,
            "model.num_heads": 2,
            "model.num_layers": 1,
            "model.feedforward_size": 8,
            "model.channels": 4,
            "model.transcriber.state_size": 8,
            "model.transcriber.embedding_size": 8,
            "model.transcriber.max_length": 8,
            "model.transcriber.decoding.method": "greedy",
            "model.transcriber.decoding.beam_size": 1,
        },
        write=_write_sounds,
        change=_exchange_files("03.wav", "30.wav"),
        expected=("recordings",),
        reorder=reversed_lines("x.csv"),
        expected_order=("train texts (order)", "train recordings (order)"),
        inputs=lambda folder: _first(folder, "*.wav"),
        labeled="FOLDER/x.csv",
    ),
    "handwriting_recognition": Case(
        config="configs/handwriting_recognition.py",
        changes={
            "data.path": "FOLDER/x.csv",
            "model.channels": (4, 4, 4),
            "model.model_size": 8,
            "model.transcriber.state_size": 8,
            "model.transcriber.embedding_size": 8,
            "model.transcriber.max_length": 8,
            "model.transcriber.decoding.method": "greedy",
            "model.transcriber.decoding.beam_size": 1,
        },
        write=_write_handwriting,
        change=_exchange_files("03.png", "30.png"),
        expected=("images",),
        reorder=reversed_lines("x.csv"),
        expected_order=("train texts (order)", "train images (order)"),
        inputs=lambda folder: _first(folder, "*.png"),
        labeled="FOLDER/x.csv",
    ),
}
