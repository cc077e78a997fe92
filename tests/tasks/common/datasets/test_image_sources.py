"""Image files that are used by several tasks: hand-made files of their formats, and their
sources."""

import dataclasses
import gzip
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from tasks.common.data.debian import members
from tasks.common.data.fetchers import zip_member
from tasks.common.data.paths import Paths
from tasks.common.data.sources import fetch
from tasks.common.datasets import blue_marble, fashion_mnist


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def test_idx_files():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(fashion_mnist.read_idx(idx(array)), array)
    for damaged in (b"", b"\0\0\x0d\1" + bytes(8), idx(array)[:-1], idx(array)[:9]):
        with pytest.raises(ValueError, match=r"(?i)idx"):
            fashion_mnist.read_idx(damaged)


def test_fashion_mnist_splits_off_the_last_of_train(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "VALIDATION_SIZE", 2)
    files = {}
    for stem, count, first in (("train", 5, 0), ("t10k", 3, 100)):
        numbers = np.arange(first, first + count, dtype=np.uint8)
        for kind, array in (
            ("images-idx3", np.broadcast_to(numbers[:, None, None], (count, 28, 28))),
            ("labels-idx1", numbers),
        ):
            path = tmp_path / f"{stem}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(np.ascontiguousarray(array))))
            files[f"fashion_mnist/{path.name}"] = path
    assert set(files) == {source.name for source in fashion_mnist.SOURCES}
    splits = fashion_mnist.read(files)
    assert {name: labels.tolist() for name, (_, labels) in splits.items()} == {
        "train": [0, 1, 2],
        "validation": [3, 4],
        "test": [100, 101, 102],
    }
    for images, labels in splits.values():
        np.testing.assert_array_equal(images[:, 5, 5], labels)


def test_a_source_comes_out_of_the_package_and_repacked_files_count_as_the_same(
    tmp_path, monkeypatch
):
    content = idx(np.zeros(3, np.uint8))
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as files:
        file = "./usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz"
        entry = tarfile.TarInfo(file)
        packed = gzip.compress(content, 1)
        entry.size = len(packed)
        files.addfile(entry, io.BytesIO(packed))
    size = len(data.getvalue())
    package = b"!<arch>\n" + f"{'data.tar.xz':<48}{size:<10}`\n".encode() + data.getvalue()
    assert dict(members(package)) == {file: packed}
    source = fashion_mnist.SOURCES[3]
    assert source.name == "fashion_mnist/t10k-labels-idx1-ubyte.gz"
    mine = dataclasses.replace(source, sha256=hashlib.sha256(content).hexdigest())
    where = Paths(tmp_path / "data", tmp_path / "cache", tmp_path / "mirror")
    kept = where.downloads / "packages" / source.fetchers[0].archive
    kept.parent.mkdir(parents=True)
    kept.write_bytes(package)
    assert gzip.decompress(fetch(mine, where).read_bytes()) == content
    mirrored = where.mirror / source.name
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(gzip.compress(content, 9))
    assert fetch(mine, where) == mirrored


def test_a_file_of_a_wheel(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("folder/b", b"content")
    zip_member("folder/b")(tmp_path / "a.whl", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"content"


def test_blue_marble_north_is_up_and_the_mask_lies_on_the_picture(tmp_path, monkeypatch):
    Image.new("L", (4, 2), 7).save(tmp_path / "a.png")
    assert blue_marble.read_image(tmp_path / "a.png").shape == (2, 4, 3)
    monkeypatch.setattr(blue_marble, "LAND_SIZE", (3, 6))
    south_first = np.arange(18, dtype=np.uint8).reshape(3, 6)
    (tmp_path / "mask").write_bytes(gzip.compress(south_first.tobytes()))
    whole = blue_marble.read_land(tmp_path / "mask", (3, 6))
    np.testing.assert_array_equal(whole[0], [12, 13, 14, 15, 16, 17])
    np.testing.assert_array_equal(
        blue_marble.read_land(tmp_path / "mask", (3, 2)), [[13, 16], [7, 10], [1, 4]]
    )
