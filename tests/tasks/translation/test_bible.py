"""The Bible's modules: the package, the format and the markup, by hand; splits by book."""

import io
import struct
import tarfile
import zlib

import pytest

from tasks.common.data.paths import Paths
from tasks.translation import bible
from tasks.translation.data import DataConfig, load
from tests.tasks.public import needed


def package(files):
    """Returns a Debian package with these files, whose control member has an odd size."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./usr/share/sword/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    result = b"!<arch>\n"
    for name, content in (("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())):
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{0:<8}{len(content):<10}`\n".encode()
        result += content + b"\n" * (len(content) % 2)
    return result


def ztext(books):
    """Returns the three files of a testament whose blocks are these lists of entries."""
    blocks, verses, compressed = b"", b"", b""
    for number, entries in enumerate(books):
        text = "".join(entries).encode()
        packed = zlib.compress(text)
        blocks += struct.pack("<III", len(compressed), len(packed), len(text))
        compressed += packed
        start = 0
        for entry in entries:
            size = len(entry.encode())
            verses += struct.pack("<IIH", number, start, size)
            start += size
    return {"bzs": blocks, "bzv": verses, "bzz": compressed}


def test_a_package_becomes_verses(tmp_path):
    """The first chapters of either testament; verses that are not there are empty."""
    old = [["", ""], ["Genesis", "Chapter 1", "<w>In</w> the beginning", "Darkness", "Ligh", "ö"]]
    new = [["", ""], ["Matthew", "Chapter 1", "Abraham"]]
    files = {
        f"modules/texts/ztext/some/{testament}.{kind}": content
        for testament, books in (("ot", old), ("nt", new))
        for kind, content in ztext(books).items()
    }
    (tmp_path / "package.deb").write_bytes(package({"mods.d/some.conf": b"x", **files}))
    extract = bible._verses_of("some", "kjv")
    extract(tmp_path / "package.deb", tmp_path / "verses.tsv")
    lines = (tmp_path / "verses.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "Gen\t1:1\tIn the beginning",
        "Gen\t1:2\tDarkness",
        "Gen\t1:3\tLigh",
        "Gen\t1:4\tö",
        "Gen\t1:5\t",
    ]
    assert "Matt\t1:1\tAbraham" in lines
    assert len(lines) == 31_102


def test_markup():
    found = bible.plain(
        '<div sID="x" type="x-p"/><w lemma="a">God</w><note placement="foot">1:1 '
        "<reference>1</reference> word</note><w>created</w> <title>T</title><l>the</l><l>earth</l> "
        '<note n="1"/>, <w>men</w>’s &amp; <transChange>more</transChange>.<lb/> '
    )
    assert found == "God created the earth, men’s & more."


def test_pairs_by_book(tmp_path):
    english = "Gen\t1:1\tIn the beginning\nGen\t1:2\tDarkness\nActs\t1:1\tbook\nRom\t1:1\tPaul\n"
    spanish = "Rom\t1:1\tPablo\nGen\t1:1\tEn el principio\nGen\t1:2\t\nActs\t1:1\ttratado y más\n"
    files = {}
    for source, content in ((bible.ENGLISH, english), (bible.SPANISH, spanish)):
        files[source.name] = tmp_path / source.name.replace("/", "-")
        files[source.name].write_text(content, encoding="utf-8")
    assert bible.generate(files) == {
        "train": [{"id": "Gen 1:1", "en": "In the beginning", "es": "En el principio"}],
        "validation": [{"id": "Rom 1:1", "en": "Paul", "es": "Pablo"}],
        "test": [],
    }


@pytest.mark.slow
def test_bible_en_es():
    with needed():
        data = load(DataConfig("bible_en_es", "es", "en"), Paths.default())
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 27_688,
        "validation": 1_146,
        "test": 2_189,
    }
    train = data.splits["train"]
    assert train.ids[0] == "Gen 1:1"
    assert train.sources[0] == "EN el principio crió Dios los cielos y la tierra."
    assert train.targets[0] == "In the beginning, God created the heavens and the earth."
    books = {name: {i.split()[0] for i in split.ids} for name, split in data.splits.items()}
    assert sum(map(len, books.values())) == len(set.union(*books.values())) == 66
    for split in data.splits.values():
        assert not any("<" in text for text in split.sources + split.targets)
