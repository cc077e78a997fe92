"""Texts: splits by rule, overlap left out, and files that cannot be read."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest

from tasks.common.data.debian import member_of
from tasks.common.data.deduplication import near_duplicates, text_hash
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.language_modeling import data as corpora
from tasks.language_modeling.data import DataConfig, load
from tasks.language_modeling.rpackage import vectors
from tests.tasks.public import needed

WORDPIECE = TextConfig(tokenizer="wordpiece", vocabulary_size=8000)


def public(name, **fields):
    with needed():
        return load(DataConfig(name=name, **fields), Paths.default())


def test_tiny_shakespeare_is_split_as_published():
    corpus = public("tiny_shakespeare")
    train, validation = corpus.splits["train"][0], corpus.splits["validation"][0]
    # nanoGPT's data/shakespeare_char/prepare.py prints these.
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert len(set(train + validation)) == 65
    assert corpus.splits["test"] == corpus.splits["validation"]
    assert train.startswith("First Citizen:\n")
    assert corpus.running


def test_novels_are_split_by_book():
    corpus = public("janeausten")
    heads = {split: texts[0][:40].split("\n")[0] for split, texts in corpus.splits.items()}
    assert heads == {"train": "EMMA", "validation": "NORTHANGER ABBEY", "test": "Persuasion"}
    (train,) = corpus.splits["train"]
    for title in ("MANSFIELD PARK", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY"):
        assert f"\n\n{title}\n" in train
    # "Walter Elliot" and "Catherine Morland" are of one book each.
    assert "Walter Elliot" not in train
    assert "Catherine Morland" not in train


def serialized(strings):
    """Returns the bytes that saveRDS(strings, compress = FALSE) writes, in XDR and version 3."""
    head = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8"
    body = struct.pack(">ii", 16, len(strings))
    for string in strings:
        data = string.encode()
        body += struct.pack(">ii", 0x40009, len(data)) + data
    return head + body


def test_character_vectors_of_an_r_package(tmp_path):
    wanted = [["EMMA", "", "£1"], ["b"]]
    pieces = [serialized(strings) for strings in wanted]
    database = b"".join(struct.pack(">I", len(p)) + zlib.compress(p) for p in pieces)
    assert list(vectors(database)) == wanted
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as files:
        entry = tarfile.TarInfo("./data.rdb")
        entry.size = len(database)
        files.addfile(entry, io.BytesIO(database))
    package = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0"), ("data.tar.xz", tar.getvalue())):
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        package += body + b"\n" * (len(body) % 2)
    assert member_of(package, "./data.rdb") == database
    with pytest.raises(ValueError, match="the package contains no data archive"):
        member_of(package[:71], "./data.rdb")
    number = serialized(["a"]).replace(struct.pack(">ii", 16, 1), struct.pack(">ii", 13, 1))
    for damaged, message in (
        (number, "expected a character vector"),
        (b"A\n" * 20, "serialization"),
    ):
        with pytest.raises(ValueError, match=message):
            list(vectors(b"\0" * 4 + zlib.compress(damaged)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [("movie_reviews", "sst2"), ("sst2", "movie_reviews")])
def test_no_held_out_text_of_the_sister_set_is_left(name, other):
    corpus, sister = (public(n, text=WORDPIECE) for n in (name, other))
    for splits in (corpus.splits, sister.splits):
        held_out = splits["validation"] + splits["test"]
        assert not near_duplicates(held_out, corpus.splits["train"]).any()
    assert len(corpus.splits["train"]) > 5000


def test_what_is_held_out_is_dropped_from_train_alone(monkeypatch):
    texts = {
        "movie_reviews": {
            "train": ["A fine film", "a dull, dull plot!", "warm and funny", "Weak."],
            "validation": ["not a film at all"],
            "test": ["weak"],
        },
        "sst2": {
            "train": ["warm and funny"],
            "validation": ["a dull dull plot"],
            "test": ["another one"],
        },
    }
    monkeypatch.setattr(corpora, "_texts", lambda definition, _: dict(texts[definition.name]))
    found = load(DataConfig(name="movie_reviews", text=WORDPIECE), None).splits
    assert found["train"] == ["A fine film", "warm and funny"]
    assert (found["validation"], found["test"]) == (["not a film at all"], ["weak"])


def test_tenths_of_a_running_text(tmp_path):
    text = "0123456789" * 3
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff" + text, encoding="utf-8")
    config = DataConfig(train_file=str(file))
    assert config.name == "own_mine"
    corpus = load(config, None)
    assert corpus.splits == {"train": [text[:24]], "validation": [text[24:27]], "test": [text[27:]]}
    other = tmp_path / "other.txt"
    other.write_text("abc\r\ndef", encoding="utf-8")
    config = DataConfig(train_file=str(file), validation_file=str(other))
    assert load(config, None).splits == {
        "train": [text[:27]],
        "validation": ["abc\ndef"],
        "test": [text[27:]],
    }


def test_lines_go_by_their_hash(tmp_path):
    lines = [f"line {n}!" for n in range(100)]
    file = tmp_path / "lines.txt"
    file.write_text("\n\n".join([*lines, "LINE 7"]), encoding="utf-8")
    corpus = load(DataConfig(train_file=str(file), lines=True), None)
    assert not corpus.running
    # As for labeled texts, so that a model fine-tuned on the same lines is tested on unseen lines.
    digits = {0: "test", 1: "validation"}
    for split, texts in corpus.splits.items():
        for text in texts:
            assert digits.get(text_hash(text, unicode=True) % 10, "train") == split
    assert sorted(text for texts in corpus.splits.values() for text in texts) == sorted(
        [*lines, "LINE 7"]
    )
    (home,) = [split for split, texts in corpus.splits.items() if "line 7!" in texts]
    assert "LINE 7" in corpus.splits[home]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"fine\n\xff\xfe", "line 2 is not UTF-8"),
        (b"short", "too short to split, its validation split would be empty"),
    ],
)
def test_files_that_cannot_be_had(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(DataConfig(train_file=str(file)), None)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tiny_shakespear"}, "did you mean 'tiny_shakespeare'"),
        ({"test_file": "a"}, "train_file: got None, expected a file, because test_file is set"),
        ({"lines": True}, "train_file: got None, expected a file, because lines is True"),
        ({"length": 3}, "length: got 3, expected at least 4"),
        ({"text": TextConfig(ngrams=2)}, r"text\.ngrams: got 2, expected 1"),
        ({"text": TextConfig(max_length=9)}, r"text\.max_length: got 9, expected 512"),
        ({"text": TextConfig(unique=True)}, r"text\.unique: got True, expected False"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_fingerprint_follows_the_texts():
    def fingerprint(train):
        splits = {"train": train, "validation": ["b"], "test": ["c"]}
        return corpora.Corpus("x", splits, False).fingerprint

    prints = {fingerprint(train) for train in (["a"], ["a", "a"], ["aa"], ["a", "", "a"])}
    assert len(prints) == 4
    assert np.all([len(value) == 32 for value in prints])


def test_lines_end_at_line_ends_alone_and_blank_ones_are_counted(tmp_path, capsys):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {n} one\u2028two\x0cthree\n" for n in range(200)) + "\n \nx\n")
    corpus = load(DataConfig(train_file=str(path), lines=True), None)
    texts = sorted(text for split in corpus.splits.values() for text in split)
    assert len(texts) == 201
    assert texts[0] == "line 0 one\u2028two\x0cthree"
    assert capsys.readouterr().err == f"{path}: 2 of 203 lines are blank; they are skipped\n"


def test_lines_in_two_files_are_named(tmp_path, capsys):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("".join(f"line {number}\n" for number in range(200)))
    files[1].write_text("\nline 7\nnew\n")
    config = DataConfig(train_file=str(files[0]), test_file=str(files[1]), lines=True)
    assert len(load(config, Paths.default()).splits["test"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{files[0]}: 1 lines of test are also in another split, such as line 2, which equals line "
        f"8 of train; metrics on them are biased"
    )
