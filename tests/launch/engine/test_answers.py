"""Files of predictions: formats, what is checked before the model runs, and memory."""

import csv
import io
import itertools
import json
import os
import tracemalloc

import pytest

from launch.engine.answers import Answers, Destination, format_of, table_rows, write_rows
from launch.engine.inputs import Input, in_portions
from tasks.common.errors import UserError

ANSWER = {"input": "a", "label": "gut, ja", "parts": {"x": 1}, "text": "gut"}
AWKWARD = {"id": "1", "text": 'eine\n"Zeile"; 中,\r\nzwei', "none": None}


def written(path, form, rows, answers, **options):
    with Destination(str(path)) as destination:
        Answers(form, destination, **options).write(rows, answers)
    return path.read_bytes().decode()


def test_csv_keeps_cells_with_line_ends_quotes_and_delimiters(tmp_path):
    text = written(tmp_path / "ä b.csv", "csv", [Input("x", AWKWARD)], [ANSWER])
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row == {
        "id": "1",
        "text": AWKWARD["text"],
        "none": "",
        "predicted_label": "gut, ja",
        "predicted_parts": '{"x": 1}',
    }
    text = written(tmp_path / "b.tsv", "tsv", [Input("x", {"a": "1\t2"})], [ANSWER])
    assert text.splitlines() == [
        "a\tpredicted_label\tpredicted_parts",
        '"1\t2"\tgut, ja\t"{""x"": 1}"',
    ]


def test_json_lines_keep_values_and_inputs_without_a_table_have_their_own_column(tmp_path):
    rows = [Input("x", AWKWARD), Input("plain")]
    lines = written(tmp_path / "a.jsonl", "jsonl", rows, [ANSWER] * 2).splitlines()
    added = {"predicted_label": "gut, ja", "predicted_parts": {"x": 1}}
    assert [json.loads(line) for line in lines] == [
        {**AWKWARD, **added},
        {"input": "plain", **added},
    ]
    assert "中" in lines[0], "a file has characters, not escapes"
    whole = json.loads(written(tmp_path / "b.jsonl", "json", rows[:1], [ANSWER]))
    assert whole == {"row": AWKWARD, **ANSWER}


def test_later_keys_of_json_rows_are_columns_if_they_are_known(tmp_path):
    rows = [Input("x", {"a": 1}), Input("y", {"b": 2, "a": 3})]
    text = written(tmp_path / "a.csv", "csv", rows, [ANSWER] * 2, columns=("a", "b"))
    assert [row["b"] for row in csv.DictReader(io.StringIO(text))] == ["", "2"]
    with pytest.raises(UserError, match="has the key 'b', which the first row lacks"):
        written(tmp_path / "a.csv", "csv", rows, [ANSWER] * 2)
    again = (tmp_path / "a.csv").read_text()
    assert again == text, "a failure leaves the earlier file"
    assert os.listdir(tmp_path) == ["a.csv"], "and no other file"


def test_several_rows_of_an_answer_repeat_the_input_columns():
    found = table_rows({"user": "ann"}, [{"rank": 1}, {"rank": 2}])
    assert found == [
        {"user": "ann", "predicted_rank": 1},
        {"user": "ann", "predicted_rank": 2},
    ]
    with pytest.raises(UserError, match="already has a column 'predicted_rank'"):
        table_rows({"predicted_rank": "3"}, [{"rank": 1}])


@pytest.mark.parametrize(
    ("output", "given", "expected"),
    [
        (None, None, "text"), (None, "csv", "csv"), ("a.CSV", None, "csv"), ("a.tab", None, "tsv"),
        ("a.ndjson", None, "jsonl"), ("a.jsonl", "json", "json"), ("a.txt", None, "text"),
        ("/dev/stdout", "csv", "csv"),
    ],
)  # fmt: skip
def test_formats_follow_from_extensions(output, given, expected):
    assert format_of(output, given) == expected


@pytest.mark.parametrize(
    ("output", "given", "message"),
    [
        ("a.xlsx", None, "--output=a.xlsx: got the extension '.xlsx', expected one of .csv"),
        ("a.json", None, "for JSON lines write .jsonl"),
        ("a", None, "got the extension ''"),
        ("a.csv", "json", "--format=json: got --output=a.csv, whose extension means csv"),
    ],
)
def test_unknown_formats_are_refused(output, given, message):
    with pytest.raises(UserError) as error:
        format_of(output, given)
    assert message in str(error.value)


def test_files_that_cannot_be_written_are_found_before_anything_is_computed(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("a\n1\n")
    link = tmp_path / "link.csv"
    link.symlink_to(source)
    for output, message in (
        (tmp_path / "none" / "a.csv", "there is no folder .*none; create it"),
        (tmp_path, "is a folder, expected a file"),
        ("", "is empty, expected a file"),
        (source, "is also the input; name another file"),
        (link, "is also the input; name another file"),
        # No file can be created in this folder, not even by root.
        ("/proc/a.csv", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            Destination(str(output), [str(source), "none.csv", "a text"])
    assert source.read_text() == "a\n1\n"
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "link.csv"]


def test_an_interrupt_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("earlier")
    destination = Destination(str(path))
    with pytest.raises(KeyboardInterrupt), destination:
        _interrupted(destination)
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.slow
def test_a_hundred_thousand_rows_need_little_memory(tmp_path):
    path = tmp_path / "a.csv"
    rows = (Input("x" * 100, {"id": str(n), "text": "x" * 100}) for n in range(100_000))
    tracemalloc.start()
    try:
        with Destination(str(path)) as destination:
            answers = Answers("csv", destination)
            for portion in in_portions(rows, 2048):
                answers.write(portion, itertools.repeat(ANSWER, len(portion)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 10_000_000
    assert peak < 8_000_000
    with path.open(encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [str(n) for n in range(100_000)], "in the order of the input"


def test_records_are_tables(tmp_path):
    rows = [{"id": "1", "prediction": ["a", "ü"]}, {"id": "2", "prediction": None}]
    with Destination(str(tmp_path / "a.csv")) as destination:
        write_rows(rows, "csv", destination)
    assert (tmp_path / "a.csv").read_text("utf-8") == 'id,prediction\n1,"[""a"", ""ü""]"\n2,\n'
    with Destination(str(tmp_path / "a.jsonl")) as destination:
        write_rows(rows, "jsonl", destination)
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def _interrupted(destination):
    destination.write("new")
    raise KeyboardInterrupt
