"""Inputs of predictions: lines in any encoding, rows of tables, and output of predictions."""

import codecs
import csv
import io
import json
import types

import pytest

from launch.engine.answers import Answers
from launch.engine.inputs import Input, Skipped, check_file, read_inputs, read_lines
from tasks.common.errors import UserError

PROCESSOR = types.SimpleNamespace(
    input_column="review", input_suffixes=(), table_input=lambda value, folder: value
)


@pytest.fixture
def write(tmp_path):
    def written(content, name):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return written


@pytest.mark.parametrize(
    "content",
    [b"a b\n\xe4\xb8\xad\n", b"\xef\xbb\xbfa b\r\n\xe4\xb8\xad\r\n", b"a b\n\xe4\xb8\xad",
     codecs.BOM_UTF16_LE + "a b\r\n\u4e2d\r\n".encode("utf-16-le"),
     codecs.BOM_UTF16_BE + "a b\n\u4e2d".encode("utf-16-be")],
    ids=["plain", "mark", "no end", "UTF-16 LE", "UTF-16 BE"],
)  # fmt: skip
def test_lines_are_the_same_in_any_encoding(write, content):
    given = read_inputs((), write(content, "a.txt"), PROCESSOR)
    assert [(one.raw, one.row) for one in given] == [("a b", None), ("\u4e2d", None)]
    stream = io.BufferedReader(io.BytesIO(content))
    assert list(read_lines(stream, "standard input")) == ["a b", "\u4e2d"]


def test_lines_keep_what_separates_no_lines(write):
    given = read_inputs(["x\u2028y"], write("a\u2028b\x0cc\n\nd\n", "a.txt"), PROCESSOR)
    assert [one.raw for one in given] == ["x\u2028y", "a\u2028b\x0cc", "", "d"]


def test_the_column_of_a_table_is_read(write):
    path = write('id;review;;stars\n1;"a; b";x;5\n2;"c ""d""";;4\n', "New.CSV")
    found = list(read_inputs((), path, PROCESSOR))
    assert [one.raw for one in found] == ["a; b", 'c "d"']
    assert found[0].row == {"id": "1", "review": "a; b", "column_3": "x", "stars": "5"}
    path = write("review,,column_2\na,b,c\n", "b.csv")
    assert [one.row for one in read_inputs((), path, PROCESSOR)] == [
        {"review": "a", "column_2_": "b", "column_2": "c"}
    ]
    path = write('{"review": "a", "n": 1}\n{"n": 2, "review": "b"}\n', "a.jsonl")
    assert [one.row for one in read_inputs((), path, PROCESSOR)] == [
        {"review": "a", "n": 1},
        {"n": 2, "review": "b"},
    ]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("text,stars\nx,1\n", "a.csv", "a.csv: no column 'review'; the columns are: text, stars"),
        ('{"text": "x"}\n', "a.jsonl", "line 1: no column 'review'; the columns are: text"),
        ("review,stars\nx, y,1\n", "a.csv", "line 2 has 3 fields"),
        ('{"review": 3}\n', "a.jsonl", "line 1: 'review' is 3, expected a text"),
        (b"a\n\xff\n", "a.txt", "line 2 is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0b", "a.txt", "is not UTF-16"),
        ("a\nb\n".encode("utf-16-le"), "a.txt", "a.txt: line 1 has a zero byte, expected text in"),
        ('[{"review": "x"}]', "a.json", "write one object per line and name the file a.jsonl"),
    ],
)
def test_what_cannot_be_read_is_refused(write, content, name, message):
    with pytest.raises(UserError) as error:
        list(read_inputs((), write(content, name), PROCESSOR))
    assert message in str(error.value)


def test_a_table_is_refused_by_a_task_that_reads_none(write):
    processor = types.SimpleNamespace(input_column=None, input_suffixes=())
    with pytest.raises(UserError, match="reads one input per line"):
        list(read_inputs((), write("a,b\n1,2\n", "a.csv"), processor))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_inputs((), "none.txt", processor))


def test_predictions_stand_beside_the_rows(write, capsys):
    path = write('id,review\n1,"a, b"\n2,c\n', "a.csv")
    given = list(read_inputs((), path, PROCESSOR))
    answers = [
        {"input": "a, b", "label": "good", "probabilities": {"good": 0.9, "bad": 0.1}, "text": "g"},
        {"input": "c", "label": "b\u00e4d", "probabilities": {"b\u00e4d": 1.0}, "text": "b"},
    ]
    Answers("text").write(given, answers)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows == [
        {"id": "1", "review": "a, b", "predicted_label": "good",
         "predicted_probabilities": '{"good": 0.9, "bad": 0.1}'},
        {"id": "2", "review": "c", "predicted_label": "b\u00e4d",
         "predicted_probabilities": '{"b\u00e4d": 1.0}'},
    ]  # fmt: skip
    Answers("json").write(given, answers)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["row"]["id"] for line in lines] == ["1", "2"]
    assert [line["label"] for line in lines] == ["good", "b\u00e4d"]


def test_a_column_of_predictions_is_not_written_over(write):
    given = list(read_inputs((), write("review,predicted_label\nx,old\n", "a.csv"), PROCESSOR))
    with pytest.raises(UserError, match="already has a column 'predicted_label'"):
        Answers("text").write(given, [{"input": "x", "label": "new", "text": "new"}])


FILES = types.SimpleNamespace(
    input_column="path",
    input_suffixes=(".png", ".jpg"),
    table_input=lambda value, folder: str(folder / value),
)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.csv", "the file is empty"),
        ("\ufeff", "a.csv", "the file is empty"),
        ("review,stars\r\n", "a.csv", "the file has a header and no rows"),
        ('{"review": "x"}\n{"review": \n', "a.jsonl", "line 2 is not JSON"),
        ('{"review": "x"}\n{"review": null}\n', "a.jsonl", "line 2: 'review' is null, expected"),
        ('{"review": "x"}\n{"text": "y"}\n', "a.jsonl", "line 2: no column 'review'"),
        ("text;stars\r\nx;1\r\n", "a.csv", "no column 'review'; the columns are: text, stars"),
        ("", "a.jsonl", "the file is empty"),
        ("", "a.txt", "the file is empty"),
    ],
)
def test_a_file_is_checked_before_the_model_runs(write, content, name, message):
    with pytest.raises(UserError) as error:
        check_file(write(content, name), PROCESSOR)
    assert message in str(error.value)


def test_cells_without_a_value_are_reported(write, capsys):
    path = write("\ufeffid;review\r\n1;a\r\n2;\r\n3;NaN\r\n".encode(), "ünï code.csv")
    assert check_file(path, PROCESSOR) == (3, ("id", "review"))
    assert "2 of 3 cells of 'review' are empty or NaN, the first is in row 2" in (
        capsys.readouterr().err
    )
    path = write('{"review": "a"}\n{"review": "b", "n": 1}\n', "a.jsonl")
    assert check_file(path, PROCESSOR) == (2, ("review", "n"))
    assert check_file(write("a\nb", "a.txt"), PROCESSOR) == (2, None)


def test_missing_files_of_a_table_are_one_line(write, tmp_path):
    (tmp_path / "a.png").touch()
    path = write("path\na.png\nb.png\nc.png\n", "a.csv")
    with pytest.raises(UserError, match=r"2 of 3 files do not exist, such as .*b\.png in row 2"):
        check_file(path, FILES)
    path = write("path\nx/a.png\nx/b.png\n", "b.csv")
    with pytest.raises(UserError, match=r"none of its 2 files exists.*relative to the table"):
        check_file(path, FILES)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "Fotos ü [1]"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "sub/ñ.jpg", "notes.txt", ".hidden.png"):
        (folder / name).touch()
    return folder


def test_folders_and_patterns_are_files_in_order(photos, capsys):
    def names(text):
        found = list(read_inputs([text], None, FILES))
        assert {one.group for one in found} == {text}
        return [one.raw.removeprefix(f"{photos}/") for one in found]

    assert names(str(photos)) == ["a.JPG", "b.png", "sub/ñ.jpg"]
    assert "1 files are left out, such as" in capsys.readouterr().err
    assert names(f"{photos.parent}/F*/*.png") == ["b.png"]
    assert names(f"{photos.parent}/F*/**/*.jpg") == ["sub/ñ.jpg"]
    # A file whose name has brackets is a file, and a missing one is left to the task.
    odd = photos / "x[1].png"
    odd.touch()
    for text in (str(odd), "missing.png"):
        assert list(read_inputs([text], None, FILES)) == [(text, None, None)]
    # Texts are no patterns.
    texts = ["really? *yes*", str(photos)]
    assert [one.raw for one in read_inputs(texts, None, PROCESSOR)] == texts


def test_folders_and_patterns_without_files_are_refused(photos):
    with pytest.raises(UserError, match=r"no file matches this pattern"):
        list(read_inputs([f"{photos.parent}/*.gif"], None, FILES))
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no file that ends in one of \.png, \.jpg"):
        list(read_inputs([str(photos / "empty")], None, FILES))


def test_broken_files_of_a_folder_are_one_line(capsys):
    def check(raw):
        if "bad" in raw:
            raise UserError(f"{raw}: not an image")

    def predict(raw):
        for each in raw:
            check(each)
        return [each.upper() for each in raw]

    skipped = Skipped()
    given = [Input(f"{name}{n}", group="photos") for n in range(3) for name in ("good", "bad")]
    kept, answers = skipped.answered(given, predict, check)
    assert [one.raw for one in kept] == ["good0", "good1", "good2"]
    assert answers == ["GOOD0", "GOOD1", "GOOD2"]
    assert skipped.answered(given[1::2], predict, check) == ([], [])
    skipped.report()
    assert capsys.readouterr().err.splitlines() == [
        "--input=photos: 6 of 9 files are skipped, such as bad0: not an image"
    ]
    skipped = Skipped()
    skipped.answered(given[1::2], predict, check)
    with pytest.raises(UserError, match="none of its 3 files can be read; the first error: bad0"):
        skipped.report()
    with pytest.raises(UserError, match="bad0: not an image"):
        Skipped().answered([Input("bad0")], predict, check)
    with pytest.raises(UserError, match="other"):
        Skipped().answered([Input("good", group="x")], _fail, check)


def _fail(raw):
    raise UserError("other")
