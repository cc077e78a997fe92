"""Data sets under the names of public ones, with a few synthetic examples, for tests of pages."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tasks.common.data.builders import DatasetDefinition, prepare
from tasks.common.data.paths import Paths
from tasks.common.datasets.labelled_texts import DEFINITIONS
from tasks.common.datasets.labelled_texts.base import example
from tasks.detection.datasets import NUCLEI
from tasks.handwriting_recognition.data import HANDWRITTEN_DIGITS
from tasks.image_classification.datasets import FASHION_MNIST
from tasks.language_modeling.corpora import TINY_SHAKESPEARE
from tasks.segmentation.datasets import CAMVID, CAMVID_SIZE
from tasks.speech_recognition.datasets import SPOKEN_DIGITS
from tasks.translation.datasets import DATA_SETS
from tests.launch.conftest import BAD, GOOD, PLAIN

COUNTS = {"train": 60, "validation": 6, "test": 6}


def _labeled(count: int, rng: random.Random) -> list[tuple[str, str]]:
    found = []
    for index in range(count):
        label, words = rng.choice([("positive", GOOD), ("negative", BAD)])
        text = " ".join([*rng.choices(PLAIN, k=6), rng.choice(words), str(index)])
        found.append((text, label))
    return found


def texts(split: str, count: int) -> list[dict[str, Any]]:
    """Returns short reviews."""
    rows = _labeled(count, random.Random(split))
    return [example(f"{split}-{i}", text, label) for i, (text, label) in enumerate(rows)]


def pairs(split: str, count: int) -> list[dict[str, Any]]:
    """Returns sentences and themselves in upper case."""
    rng = random.Random(split)
    found = [" ".join(rng.choices(PLAIN, k=5)) for _ in range(count)]
    return [{"id": f"{split}-{i}", "en": x, "de": x.upper()} for i, x in enumerate(found)]


def running_text(split: str, count: int) -> list[dict[str, Any]]:
    """Returns one text of `count` lines."""
    rows = _labeled(count, random.Random(split))
    return [{"text": "\n".join(f"{text}." for text, _ in rows)}]


def clothes(split: str, count: int) -> list[dict[str, Any]]:
    """Returns gray squares whose brightness follows from their class."""
    rng, side = np.random.default_rng(len(split)), 28
    labels = np.arange(count) % 10
    images = rng.integers(0, 30, (count, side, side)) + 22 * labels[:, None, None]
    return [
        {"image": image.astype(np.uint8), "label": int(label)}
        for image, label in zip(images, labels, strict=True)
    ]


def streets(split: str, count: int) -> list[dict[str, Any]]:
    """Returns frames with two classes, above and below a line."""
    rng, found = np.random.default_rng(len(split)), []
    for index in range(count // 2):
        labels = np.zeros(CAMVID_SIZE, np.uint8)
        labels[rng.integers(60, 120) :] = 3
        image = 40 * labels[..., None] + rng.integers(0, 80, (*CAMVID_SIZE, 3))
        row = {"id": f"{split}-{index}", "image": image.astype(np.uint8), "labels": labels}
        found.append(row)
    return found


def cells(split: str, count: int) -> list[dict[str, Any]]:
    """Returns dark squares with two bright squares each."""
    rng, found, side = np.random.default_rng(len(split)), [], NUCLEI.side
    for _ in range(count // 2):
        image = rng.integers(0, 40, (side, side, 3)).astype(np.uint8)
        instances, boxes = np.zeros((side, side), np.uint16), []
        for number, left in enumerate((10, 140), 1):
            x, y = (left + int(n) for n in rng.integers(0, 90, 2))
            size = int(rng.integers(12, 24))
            image[y : y + size, x : x + size] += 160
            instances[y : y + size, x : x + size] = number
            boxes.append([x, y, x + size, y + size])
        found.append(
            {
                "image": image,
                "size": np.array([side, side], np.int32),
                "boxes": np.array(boxes, np.float32),
                "labels": np.zeros(len(boxes), np.int32),
                "instances": instances,
            }
        )
    return found


def digits(split: str, count: int) -> list[dict[str, Any]]:
    """Returns images of bars, whose height follows from the digit; each digit occurs."""
    rng, found = np.random.default_rng(len(split)), []
    for index in range(max(count, 20)):
        image = np.zeros((28, 28), np.uint8)
        image[4 : 6 + 2 * (index % 10), 10:18] = rng.integers(150, 255)
        found.append({"image": image, "digit": index % 10})
    return found


def takes(split: str, count: int) -> list[dict[str, Any]]:
    """Returns two takes of each digit by a speaker: tones, whose pitch follows from the digit."""
    rng, found = np.random.default_rng(len(split)), []
    seconds = np.arange(2000) / 8000
    for digit in range(10):
        for take in range(10):
            tone = np.sin(2 * np.pi * (200 + 90 * digit) * seconds) + rng.normal(0, 0.1, 2000)
            samples = (8000 * tone).astype(np.int16)
            name = f"{split}-{digit}-{take}"
            found.append({"id": name, "samples": samples, "digit": digit, "take": take})
    return found


Generate = Callable[[str, int], list[dict[str, Any]]]
SETS: Mapping[str, tuple[DatasetDefinition, Generate]] = {
    "sst2": (DEFINITIONS["sst2"], texts),
    "movie_reviews": (DEFINITIONS["movie_reviews"], texts),
    "multi30k": (DATA_SETS["multi30k"].definition, pairs),
    "tiny_shakespeare": (TINY_SHAKESPEARE, running_text),
    "fashion_mnist": (FASHION_MNIST, clothes),
    "camvid": (CAMVID.definition, streets),
    "nuclei": (NUCLEI.definition, cells),
    "handwritten_digits": (HANDWRITTEN_DIGITS, digits),
    "spoken_digits": (SPOKEN_DIGITS, takes),
}


def prepare_small(name: str, paths: Paths) -> None:
    """Prepares the data set NAME with a few synthetic examples for each split."""
    definition, generate = SETS[name]
    splits = {split: COUNTS.get(split, 0) for split in definition.counts}
    changed = dataclasses.replace(
        definition,
        sources=(),
        generate=lambda _: {split: generate(split, count) for split, count in splits.items()},
        counts={},
    )
    prepare(changed, paths, quiet=True)
