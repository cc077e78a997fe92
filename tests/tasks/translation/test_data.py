"""User files and every mistake in them; the counts of the built-in data sets."""

import gzip

import numpy as np
import pytest

from tasks.common.data.deduplication import text_hash
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig
from tasks.translation.data import DataConfig, PairExamples, load
from tasks.translation.datasets import DATA_SETS
from tasks.translation.user_files import find, read_pairs
from tests.tasks.public import needed


@pytest.fixture
def folder(tmp_path):
    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path)

    return write


def lines(n, word="line"):
    return "".join(f"{word} number {i}\n" for i in range(n))


def own(path, **fields):
    return load(DataConfig(path=path, **fields), None)


def test_a_folder_is_taken_as_it_is(folder):
    path = folder(
        train__en="one \n\n two\nthree",
        train__de="eins\nleer\nzwei\n\n",
        dev__en="four\n",
        dev__de="vier\n",
        test__en="\ufefffive\r\nsix\u2028seven\r\n",
        test__de="fünf\r\nsechs\u2028sieben\r\n",
    )
    data = own(path)
    assert data.name.startswith("own_")
    assert {
        name: list(zip(split.sources, split.targets, split.ids, strict=True))
        for name, split in data.splits.items()
    } == {
        "train": [("one", "eins", "train.en:1"), ("two", "zwei", "train.en:3")],
        "validation": [("four", "vier", "dev.en:1")],
        "test": [
            ("five", "fünf", "test.en:1"),
            ("six\u2028seven", "sechs\u2028sieben", "test.en:2"),
        ],
    }
    other = own(path, source="de", target="en")
    assert other.splits["validation"].sources == ["vier"]
    assert other.fingerprint != data.fingerprint == own(path, name="another").fingerprint


def test_two_files_are_split_by_the_hash_of_the_source(folder):
    path = folder(a__txt=lines(150) * 2, b__txt=lines(300, "Zeile"))
    data = own(f"{path}/a.txt, {path}/b.txt", name="mine")
    assert data.name == "mine"
    found = {name: set(split.sources) for name, split in data.splits.items()}
    assert sum(map(len, data.splits.values())) == 300
    for name, digits in (("test", {0}), ("validation", {1}), ("train", set(range(2, 10)))):
        assert {text_hash(text, unicode=True) % 10 for text in found[name]} <= digits
    for split in data.splits.values():
        for source, target, identity in zip(split.sources, split.targets, split.ids, strict=True):
            line = int(identity.rsplit(":", 1)[1]) - 1
            assert (source, target) == (f"line number {line % 150}", f"Zeile number {line}")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no train\.en and train\.de; add both"),
        ({"train__en": "a\n"}, r"train\.de: is missing, but train\.en exists.*--text and --l"),
        ({"train__de": "a\n"}, r"train\.en: is missing, but train\.de exists"),
        ({"train__en": "a\n", "train__de": "b\nc\n"}, "got 2 lines, expected 1 as in"),
        ({"train__en": "", "train__de": ""}, r"train\.en: the file is empty"),
        (
            {"train__en": "a\n\n", "train__de": "\nb\n"},
            "got no sentence pair, expected at least one",
        ),
        ({"train__en": "a\nb\n", "train__de": b"x\n\xe4\n"}, r"line 2 is not UTF-8 \(byte 0xe4\)"),
        ({"train__en": "a\n", "train__de": "b\n"}, "1 examples are too few to split"),
    ],
)
def test_mistakes_with_folders(folder, files, message):
    with pytest.raises(UserError, match=message):
        own(folder(**files))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "--data: got 'nowhere', expected a table, a folder with train.en and train.de"),
        ("a,b,c", "--data: got 'a', expected a table"),
        ("a,", "--data: got 2 paths in 'a,', expected one path, or three: TRAIN,VALIDATION,TEST"),
        ("nowhere,nowhere", r"nowhere: cannot be read \(No such file"),
    ],
)
def test_mistakes_with_paths(path, message):
    with pytest.raises(UserError, match=message):
        own(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "multi30"}, "got 'multi30' .did you mean 'multi30k'"),
        ({"target": "fr"}, "target: got 'fr', expected one of en, de for multi30k"),
        ({"source": ""}, "source: got '', expected a language"),
        ({"source": "de"}, "target: got 'de', expected another language than source"),
        (
            {"text": TextConfig(ngrams=2)},
            "text.ngrams: got 2, expected 1, because output tokens are decoded to texts",
        ),
        ({"text": TextConfig(unique=True)}, "text.unique: got True, expected False"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_results_of_own_files_are_not_filed_under_a_public_name():
    assert DataConfig(path="some/folder/").name == "own_folder"
    assert DataConfig(path="texts/a.en,texts/a.de").name == "own_a"


def test_find_knows_other_names(folder):
    path = folder(train__x="", train__y="", valid__x="", valid__y="")
    assert list(find(path, "x", "y")) == ["train", "validation"]


def test_pair_examples():
    ids = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    examples = PairExamples(ids, ids[::-1], 9)
    assert len(examples) == 2
    assert {name: row.tolist() for name, row in examples[0].items()} == {
        "source": [5, 6, 7, 9],
        "target": [8, 9],
    }
    assert {name: row.tolist() for name, row in examples.lengths.items()} == {
        "source": [4, 2],
        "target": [2, 4],
    }
    assert PairExamples(ids, None, 9)[1].keys() == PairExamples(ids, None, 9).padded.keys()


def public(name):
    languages = DATA_SETS[name].languages
    with needed():
        return load(DataConfig(name, *languages), Paths.default())


def test_multi30k():
    data = public("multi30k")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 29_000,
        "validation": 1_014,
        "test": 1_000,
    }
    test = data.splits["test"]
    assert test.sources[0] == "A man in an orange hat starring at something."
    assert test.targets[0] == "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt."
    everything = [text for split in data.splits.values() for text in split.sources + split.targets]
    assert all(text.strip() == text != "" for text in everything)
    assert not set(test.sources) & set(data.splits["train"].sources)


def test_multi30k_from_its_files(tmp_path):
    """Preparation, on files as small as they may be."""
    files = {}
    for source in DATA_SETS["multi30k"].definition.sources:
        path = tmp_path / source.name.replace("/", "-")
        path.write_bytes(gzip.compress(f"{source.name} A \n{source.name} B\n".encode()))
        files[source.name] = path
    splits = DATA_SETS["multi30k"].definition.generate(files)
    assert list(splits) == ["train", "validation", "test"]
    assert splits["test"][1] == {
        "id": "test-1",
        "en": "multi30k/test_2016_flickr.en.gz B",
        "de": "multi30k/test_2016_flickr.de.gz B",
    }


def test_pairs_with_an_empty_side_are_counted_and_lines_end_at_line_ends(tmp_path, capsys):
    source, target = tmp_path / "train.en", tmp_path / "train.de"
    source.write_bytes("a\u2028b\x0cc\r\n\r\nd\r\ne\r\n".encode())
    target.write_bytes(b"A\nB\n  \nE\n")
    sources, targets, ids = read_pairs((source, target))
    assert sources == ["a\u2028b\x0cc", "e"]
    assert targets == ["A", "E"]
    assert ids == ["train.en:1", "train.en:4"]
    assert capsys.readouterr().err == (
        f"{source}: 2 of 4 pairs with an empty side are left out, the first is line 2\n"
    )


def test_a_comma_in_a_path_separates_nothing(tmp_path):
    folder = tmp_path / "my, data"
    folder.mkdir()
    files = folder / "train.en", folder / "train.de"
    for file in files:
        file.write_text("a\n")
    assert find(str(folder), "en", "de") == {"train": files}
    assert find(f"{files[0]},{files[1]}", "en", "de") == {"train": files}
    assert DataConfig(path=f"{files[0]}, {files[1]}").name == "own_train"


def test_what_a_folder_has_besides_is_named(folder, capsys):
    path = folder(
        train__en=lines(60),
        train__de=lines(60, "zeile"),
        valid__en="line number 3\nnew\n",
        valid__de="zeile number 3\nneu\n",
        test2016__en="x\n",
        test2016__de="x\n",
    )
    data = own(path, source="en", target="de")
    assert len(data.splits["validation"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: 2 entries are left out, such as test2016.de; files of a split are named train, "
        "validation or test, with the language as extension",
        f"{path}: 1 pairs of validation are also in another split, such as valid.en:1, which "
        f"equals train.en:4 of train; metrics on them are biased",
    ]
    folder(dev__en="y\n", dev__de="y\n")
    with pytest.raises(UserError, match=r"'valid.en' and 'dev.en' both denote the validation spl"):
        own(path, source="en", target="de")
