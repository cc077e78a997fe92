"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 70,000 grayscale images of clothes, 28 x 28."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tasks.common.data.debian import member_of
from tasks.common.data.fetchers import AptPackage, Extract, UrlFetcher
from tasks.common.data.sources import Source

NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 28
LICENSE = "MIT"
# Number of images in the validation split. They are the last of the 60,000 training images.
VALIDATION_SIZE = 10_000

_ADDRESS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
# SHA-256 of the unpacked files, because the sources compress the same files differently.
_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def _from_debian(file: str) -> Extract:
    def extract(fetched: Path, output: Path) -> None:
        package = fetched.read_bytes()
        output.write_bytes(member_of(package, f"./usr/share/datasets/fashion-mnist/{file}.gz"))

    return extract


def _unpacked(path: Path) -> Iterator[bytes]:
    yield gzip.decompress(path.read_bytes())


SOURCES = tuple(
    Source(
        f"fashion_mnist/{file}.gz",
        digest,
        (
            AptPackage(
                "dataset-fashion-mnist",
                "0.0~git20200523.55506a9-1",
                "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
                extract=_from_debian(file),
            ),
            UrlFetcher(f"{_ADDRESS}{file}.gz"),
        ),
        content=_unpacked,
    )
    for file, digest in _FILES.items()
)


def read(files: Mapping[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads images and labels of each split.

    Args:
      files: path of each of SOURCES, by the name of the source.

    Returns:
      For each split, images, uint8 [n, 28, 28] with background 0, and labels, uint8 [n], which are
      indices in NAMES. There are 50,000 images in "train", 10,000 in "validation" (the last of the
      training set), and 10,000 in "test".
    """
    (images, labels), test = (
        tuple(
            read_idx(gzip.decompress(files[f"fashion_mnist/{stem}-{kind}-ubyte.gz"].read_bytes()))
            for kind in ("images-idx3", "labels-idx1")
        )
        for stem in ("train", "t10k")
    )
    first = len(images) - VALIDATION_SIZE
    return {
        "train": (images[:first], labels[:first]),
        "validation": (images[first:], labels[first:]),
        "test": test,
    }


def read_idx(data: bytes) -> np.ndarray:
    """Decodes an IDX file of unsigned bytes, the format of MNIST.

    The header consists of the bytes 0, 0 and 8, the number of dimensions in one byte, and the size
    of each dimension in four bytes.

    Raises:
      ValueError: the data are of another type, or do not have the size that the header declares.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError("data: got another format, expected an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    if len(data) - start != math.prod(shape):
        raise ValueError(f"data: got {len(data)} bytes of IDX, expected shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
