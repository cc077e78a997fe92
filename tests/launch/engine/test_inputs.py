"""Inputs of predictions: lines in any encoding, rows of tables, and output of predictions."""

import codecs
import csv
import io
import json
import types

import pytest

from launch.engine.answers import Answers
from launch.engine.inputs import read_inputs, read_lines
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
