"""User files, the TFDS catalog, and errors in them."""

import json

import numpy as np
import pytest

from tasks.common.data import builders
from tasks.common.data.deduplication import text_hash
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.text_classification.data import DataConfig, load


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache", None)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def rows(n, header="text,label"):
    return header + "\n" + "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(n))


def own(paths, train, **fields):
    return load(DataConfig(train_file=train, **fields), paths)


def test_one_file_is_split_by_the_hash_of_the_text(paths, write):
    texts = [f"text number {i % 300}" for i in range(600)]  # each text twice
    lines = [json.dumps({"review": t, "stars": i % 3}) for i, t in enumerate(texts)]
    data = own(
        paths, write("my.jsonl", "\n".join(lines)), text_column="review", label_column="stars"
    )
    assert data.name == "own_my"
    assert data.label_names == ["0", "1", "2"]
    found = {name: set(split.texts) for name, split in data.splits.items()}
    assert sum(len(split) for split in data.splits.values()) == 600
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["test"] & found["validation"]
    for name, digits in (("test", {0}), ("validation", {1}), ("train", set(range(2, 10)))):
        assert {text_hash(text) % 10 for text in found[name]} <= digits
    for split in data.splits.values():
        for text, label, identity in zip(split.texts, split.labels, split.ids, strict=True):
            line = int(identity.rsplit(":", 1)[1])
            assert texts[line - 1] == text
            assert label == (line - 1) % 3
        assert split.labels.dtype == np.int32
    assert 0.04 < len(found["test"]) / 300 < 0.2


def test_a_row_stays_in_its_split_when_others_come(paths, write):
    small, large = own(paths, write("a.csv", rows(100))), own(paths, write("b.csv", rows(200)))
    for name in ("train", "validation", "test"):
        assert set(small.splits[name].texts) <= set(large.splits[name].texts)


def test_three_files_are_taken_as_they_are(paths, write):
    data = own(
        paths,
        write("train.csv", "text,label\none,b\ntwo,a\n"),
        validation_file=write("dev.tsv", "label\ttext\nb\tthree\n"),
        test_file=write("test.jsonl", '{"text": "four", "label": "a"}\n'),
        name="mine",
    )
    assert data.name == "mine"
    assert data.label_names == ["a", "b"]
    assert {name: split.texts for name, split in data.splits.items()} == {
        "train": ["one", "two"],
        "validation": ["three"],
        "test": ["four"],
    }
    assert data.splits["train"].labels.tolist() == [1, 0]


def test_with_a_test_file_only_validation_is_cut_off(paths, write):
    test = write("test.csv", "text,label\nanything,a\n")
    data = own(paths, write("train.csv", rows(100)), test_file=test)
    assert data.splits["test"].texts == ["anything"]
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 100
    assert {text_hash(text) % 10 for text in data.splits["validation"].texts} == {1}


def test_quotes_by_the_rfc_a_byte_order_mark_and_crlf(paths, write):
    content = (
        '\ufefftext,label\r\n"a, ""quoted"" one\nof two lines",x\r\n\r\nsay "hi",y\r\n我爱,x\r\n'
    )
    part = write("part.csv", content)
    data = own(paths, part, validation_file=part, test_file=part)
    assert data.splits["train"].texts == ['a, "quoted" one\nof two lines', 'say "hi"', "我爱"]
    assert data.splits["train"].ids == ["part.csv:2", "part.csv:5", "part.csv:6"]


def test_a_text_longer_than_the_default_limit_of_csv(paths, write):
    part = write("part.csv", f"text,label\n{'x' * 200_000},a\ny,b\n")
    data = own(paths, part, validation_file=part, test_file=part)
    assert len(data.splits["train"].texts[0]) == 200_000


def test_labels_of_json_may_be_numbers_or_truth_values(paths, write):
    lines = [{"text": "a", "label": v} for v in (1, 1.0, "1", 2.5, True, False)]
    part = write("part.jsonl", "\n".join(map(json.dumps, lines)))
    data = own(paths, part, validation_file=part, test_file=part)
    assert data.label_names == ["1", "2.5", "false", "true"]
    assert data.splits["train"].labels.tolist() == [0, 0, 0, 1, 3, 2]


def test_the_fingerprint_follows_texts_labels_and_splits(paths, write):
    base = own(paths, write("a.csv", rows(100))).fingerprint
    assert own(paths, write("b.csv", rows(100))).fingerprint == base
    prints = {
        own(paths, write("c.csv", rows(100).replace("number 7,", "number seven,"))).fingerprint,
        own(paths, write("d.csv", rows(100).replace("number 7,b", "number 7,a"))).fingerprint,
        own(paths, write("e.csv", rows(101))).fingerprint,
    }
    assert base not in prints
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", " \n\n", "the file is empty"),
        ("a.csv", "text,label\n", "a header and no rows"),
        ("a.csv", "review,stars\nx,1\n", "a.csv: no column 'text'; the columns are: review, stars"),
        ("a.csv", "text,stars\nx,1\n", "a.csv: no column 'label'; the columns are: text, stars"),
        ("a.csv", "text,label\nx,a,b\n", "line 2 has 3 fields, expected 2 as in the header"),
        ("a.csv", 'text,label\nx,a\n"open,b\n', r"line 3 is malformed \(unexpected end of data"),
        ("a.csv", "text,label\nx,\n", "line 2: 'label' is empty; fill the cell or remove the row"),
        ("a.csv", "text,label\nx,a\n ,b\n", "line 3: 'text' is empty; fill the cell or remove"),
        ("a.csv", "text,text,label\nx,y,a\n", "column 'text' is in the header twice"),
        (
            "a.csv",
            "text,label\nx,a\ny,a\n",
            "all labeled examples of the train split have the class 'a'",
        ),
        ("a.csv", b"text,label\nfine,a\nna\xefve,b\n", r"line 3 is not UTF-8 \(byte 0xef\)"),
        ("a.tsv", b"text\tlabel\n\xff\ta\n", "line 2 is not UTF-8"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1 is not a JSON object"),
        ("a.jsonl", '{"text": 3, "label": "a"}', "line 1: 'text' is 3, expected a text"),
        ("a.jsonl", '{"text": "x", "label": null}', "line 1: 'label' is empty"),
        ("a.jsonl", '{"label": "a"}', "line 1: no column 'text'; the columns are: label"),
        (
            "a.xlsx",
            "PK",
            r"got extension '.xlsx', expected one of .csv, .tsv, .tab, .jsonl, .ndjson",
        ),
        ("a.csv", "text,label\nx,a\ny,b\n", "examples are too few to split"),
    ],
)
def test_a_broken_file_gives_one_line_that_names_it(paths, write, file, content, message):
    given = write(file, content)
    part = {"validation_file": given, "test_file": given} if "have the class" in message else {}
    with pytest.raises(UserError, match=message) as error:
        own(paths, given, **part)
    assert str(error.value).startswith(given)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(paths, tmp_path):
    with pytest.raises(UserError, match=r"none.csv: cannot be read \(No such file"):
        own(paths, str(tmp_path / "none.csv"))


def test_a_class_that_train_lacks_is_named_with_its_line(paths, write):
    train, other = write("a.csv", rows(10)), write("b.csv", "text,label\nx,a\ny,zebra\n")
    with pytest.raises(
        UserError, match=r"b.csv: the test split has the class 'zebra' \(b.csv:3\).*a, b"
    ):
        own(paths, train, validation_file=train, test_file=other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sst"}, "^name: got 'sst' .did you mean 'sst2'.*spam_assassin"),
        ({"name": "zzz"}, "^name: got 'zzz', expected one of movie_reviews.*tfds:NAME"),
        ({"test_file": "x.csv"}, "^train_file: got None, expected a file, because test_file"),
        ({"text_column": ""}, "^text_column: got '', expected the name"),
        (
            {"text_column": "a", "label_column": "a"},
            "^label_column: got .a., expected a column other",
        ),
    ],
)
def test_an_impossible_config_names_its_field_first(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_columns_of_public_sets_are_fixed(paths):
    with pytest.raises(UserError, match="text_column: got 'review', expected 'text' for sst2"):
        load(DataConfig(name="sst2", text_column="review"), paths)


def test_results_of_an_own_file_are_not_filed_under_a_public_name():
    assert DataConfig(train_file="data/my.csv").name == "own_my"
    assert DataConfig(train_file="data/my.csv", name="tfds:x").name == "own_my"
    assert DataConfig(train_file="data/my.csv", name="reviews").name == "reviews"
    assert DataConfig(train_file="my.csv", name="own_my").name == "own_my"


def prepared(paths, splits, label="class"):
    """Returns a prepared folder of the name `toy`, as TFDS leaves it."""
    import tensorflow_datasets as tfds

    def features():
        kinds = {"class": tfds.features.ClassLabel(names=["z", "a"]), "number": np.int64}
        kinds["words"] = tfds.features.Text()
        return {"sentence": tfds.features.Text(), "label": kinds[label]}

    def generate(files):
        values = {"class": [0, 1], "number": [3, 12], "words": ["x", "w"]}[label]
        return {
            name: [{"sentence": f"{name} é {i}", "label": values[i % 2]} for i in range(n)]
            for name, n in splits.items()
        }

    definition = builders.DatasetDefinition("toy", "1.0.0", features, (), generate)
    builders.prepare(definition, paths, quiet=True)


CATALOGUE = DataConfig(name="tfds:toy", text_column="sentence")


@pytest.mark.parametrize(
    ("label", "names", "train"),
    [("class", ["a", "z"], [1, 0]), ("number", ["12", "3"], [1, 0]), ("words", ["w", "x"], [1, 0])],
)
def test_catalogue_labels_of_every_kind(paths, label, names, train):
    prepared(paths, {"train": 2, "validation": 2, "test": 2}, label)
    data = load(CATALOGUE, paths)
    assert data.label_names == names
    assert data.splits["train"].labels.tolist() == train
    assert data.splits["train"].texts == ["train é 0", "train é 1"]
    assert data.splits["test"].ids == ["test:0", "test:1"]


@pytest.mark.parametrize(
    ("splits", "test_prefix", "validation_prefix"),
    [
        ({"train": 100, "test": 4}, "test", "train"),
        ({"train": 100, "validation": 4}, "validation", "train"),
        ({"train": 100}, "train", "train"),
        ({"train": 100, "validation": 4, "test": 4}, "test", "validation"),
    ],
)
def test_catalogue_splits_that_are_missing(paths, splits, test_prefix, validation_prefix):
    prepared(paths, splits)
    data = load(CATALOGUE, paths)
    assert {text.split()[0] for text in data.splits["test"].texts} == {test_prefix}
    assert {text.split()[0] for text in data.splits["validation"].texts} == {validation_prefix}
    assert sum(len(split) for split in data.splits.values()) == sum(splits.values())


def test_catalogue_mistakes(paths):
    prepared(paths, {"train": 2, "test": 2})
    with pytest.raises(UserError, match=r"got .text., expected a feature of tfds:toy: .*sentence"):
        load(DataConfig(name="tfds:toy"), paths)
    with pytest.raises(UserError, match="'label' of tfds:toy has int, expected text"):
        load(DataConfig(name="tfds:toy", text_column="label", label_column="sentence"), paths)
    with pytest.raises(UserError, match="tfds:imdb_reviews is not prepared as array_record"):
        load(DataConfig(name="tfds:imdb_reviews"), paths)


def test_catalogue_test_without_labels(paths):
    import tensorflow_datasets as tfds

    def features():
        return {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["a", "b"])}

    def generate(files):
        return {
            "train": [{"text": str(i), "label": i % 2} for i in range(100)],
            "test": [{"text": "x", "label": -1}],
        }

    builders.prepare(
        builders.DatasetDefinition("toy", "1.0.0", features, (), generate), paths, quiet=True
    )
    with pytest.raises(
        UserError, match=r"tfds:toy: split 'test' has no labels \(its class is -1\)"
    ):
        load(DataConfig(name="tfds:toy"), paths)


def test_texts_in_two_files_are_named(paths, write, capsys):
    train = write("a.csv", rows(40))
    test = write("b.csv", "text,label\nnew,a\n" + "\n".join(rows(40).splitlines()[1:4]) + "\n")
    own(paths, train, test_file=test)
    assert capsys.readouterr().err == (
        f"{train}: 3 texts of test are also in another split, such as b.csv:3, which equals "
        f"a.csv:2 of "
        "train; metrics on them are biased\n"
    )
