"""Tables of the user's files: every record is returned or named."""

import codecs
import csv

import pytest

from tasks.common import errors
from tasks.common.data.cells import join_names, label_value, quote
from tasks.common.data.tables import open_table
from tasks.common.data.text_files import open_text, read_text, split_lines
from tasks.common.errors import UserError

COLUMNS = ("text", "label")


@pytest.fixture
def write(tmp_path):
    def written(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return written


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())


def selected(name, columns=COLUMNS):
    return list(open_table(name, columns).select(columns))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("text,label\na b,1\n\u4e2d,2\n", "a.csv"),
        ("label;text\n1;a b\n2;\u4e2d\n", "A.CSV"),
        ("id\ttext\tlabel\n7\ta b\t1\n8\t\u4e2d\t2\n", "a.tsv"),
        ("text\tlabel\r\na b\t1\r\n\u4e2d\t2", "a.csv"),
        ("text\rlabel\r".replace("\r", ",", 1) + "a b,1\r\u4e2d,2\r", "a.csv"),
        ('sep=;\r\n"text";"label"\r\n"a b";1\r\n\u4e2d;2\r\n', "a.csv"),
        ("\ufefftext , label\na b,1\n\u4e2d,2\n", "a.csv"),
        (codecs.BOM_UTF16_LE + "text\tlabel\na b\t1\n\u4e2d\t2\n".encode("utf-16-le"), "a.txt"),
        (codecs.BOM_UTF16_BE + "text,label\na b,1\n\u4e2d,2\n".encode("utf-16-be"), "a.csv"),
        (codecs.BOM_UTF32_LE + "text,label\na b,1\n\u4e2d,2\n".encode("utf-32-le"), "a.csv"),
        ('{"text": "a b", "label": "1"}\n\n{"label": "2", "text": "\\u4e2d"}', "a.JSONL"),
        (b'\xef\xbb\xbf{"text": "a b", "label": "1"}\r\n{"label": "2", "text": "\xe4\xb8\xad"}\r\n',
         "a.ndjson"),
    ],
    ids=["comma", "semicolon", "tab", "tab in .csv", "CR", "sep=", "BOM", "UTF-16 LE", "UTF-16 BE",
         "UTF-32", "JSON lines", "JSON lines with BOM"],
)  # fmt: skip
def test_one_table_in_any_spelling(write, content, name):
    path = write(content, name)
    rows = list(open_table(path, COLUMNS, extensions=None).select(COLUMNS))
    assert [values for _, values in rows] == [["a b", "1"], ["\u4e2d", "2"]]


def test_lines_are_those_of_the_file_where_fields_span_several(write, capsys):
    path = write('text,label\n"one\ntwo ""quoted"", three",1\nx,2\n\n"\u2028\x0c\x85",3\n')
    assert selected(path) == [
        (2, ['one\ntwo "quoted", three', "1"]),
        (4, ["x", "2"]),
        (6, ["\u2028\x0c\x85", "3"]),
    ]
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: 1 empty lines are ignored; the first is line 5"
    ]


def test_records_without_content_are_counted_and_blank_lines_at_the_end_are_none(write, capsys):
    path = write("text,label\n,\nx,1\n \n\ny,2\n\n\n")
    assert selected(path) == [(3, ["x", "1"]), (6, ["y", "2"])]
    assert "3 empty lines are ignored; the first is line 2" in capsys.readouterr().err
    # An empty text in quotes is a record of a table with one column.
    assert selected(write('text\n""\nx\n'), ["text"]) == [(2, [""]), (3, ["x"])]
    assert capsys.readouterr().err == ""


def test_rows_that_a_stray_quote_may_have_joined_are_named(write, capsys):
    path = write('text,label\n"fine film,1\ndull film,2\n12",3\nx,4\n')
    assert len(selected(path)) == 2
    assert "1 rows span several lines, the first one spans lines 2 to 4" in capsys.readouterr().err


def test_a_field_may_be_longer_than_128_kb(write):
    assert csv.field_size_limit() >= 131072
    text = "word " * 100_000
    assert selected(write(f"text,label\n{text},1\n"))[0][1] == [text, "1"]


def test_a_file_that_is_read_piece_by_piece_is_decoded_across_the_pieces(write):
    rows = "".join("\u4e2d" * (n % 7) + f"x,{n}\n" for n in range(20_000))
    assert [int(label) for _, (_, label) in selected(write(f"text,label\n{rows}"))] == list(
        range(20_000)
    )


def test_the_wanted_columns_tell_delimiters_apart(write):
    path = write("text;a,label;b\nx;y,1;2\n")
    assert open_table(path, ["text;a"]).delimiter == ","
    assert open_table(path, ["label;b", "a,label"]).delimiter == ";"
    assert open_table(write("date;temp\n2024;1,5\n2025;2,5\n")).delimiter == ";"
    assert open_table(write('text\n"some, words; here"\n'), ["text"]).delimiter == ","


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("text,label\nfine, but long,1\n", "a.csv",
         "line 2 has 3 fields, expected 2 as in the header; quote fields that contain a comma "
         "or a line end"),
        ("text,label\nx,1\nshort\n", "a.csv", "line 3 has 1 fields, expected 2 as in the header"),
        ('text,label\nx,1\n"open,2\n', "a.csv", "line 3 is malformed (unexpected end of data)"),
        ('text,label\n"a" b,1\n', "a.csv", "line 2 is malformed"),
        ("text,label,text\nx,1,y\n", "a.csv", "column 'text' is in the header twice"),
        ("Text,label\nx,1\n", "a.csv", "no column 'text' (did you mean 'Text'?); the columns "
            "are: Text"),
        ("text,label\n", "a.csv", "the file has a header and no rows"),
        ("", "a.csv", "the file is empty"),
        ("", "a.jsonl", "the file is empty"),
        ("text,label\nx,\0\n", "a.csv", "zero byte"),
        ("text,label\nx,1\n".encode("utf-16-le"), "a.csv", "zero byte"),
        (b"text,label\nx,1\n\xff,2\n", "a.csv", "line 3 is not UTF-8 (byte 0xff)"),
        (codecs.BOM_UTF16_LE + b"t\0x", "a.csv", "is not UTF-16"),
        ('{"text": "x", "label": 1}\n{"text": "x", "label": 1, "text": "y"}', "a.jsonl",
         "line 2 is not JSON (key 'text' occurs twice)"),
        ('{"text": "x", "label": 1}\n["x"]', "a.jsonl", "line 2 is not a JSON object"),
        ('{"text": "x", "label": 1}\n{"text": "x"}', "a.jsonl", "line 2: no column 'label'"),
        ('[{"text": "x"}]', "a.json", "got extension '.json'"),
        ("sep=|\ntext|label\nx|1\n", "a.csv", "line 1 declares the delimiter '|'"),
        ("[" * 100_000, "a.jsonl", "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_file_and_line(write, content, name, message):
    path = write(content, name)
    with pytest.raises(UserError) as error:
        selected(path)
    assert str(error.value).startswith(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_failures_name_the_file(tmp_path):
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "no.csv", "cannot be read")):
        with pytest.raises(UserError, match=words):
            open_table(path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "a"), (" a ", "a"), (1, "1"), (1.0, "1"), ("1.0", "1"), ("-3.00", "-3"), (0.5, "0.5"),
     ("1.50", "1.50"), ("01", "01"), (True, "true"), ("nan", "nan"), ("NaN", "NaN")],
)  # fmt: skip
def test_labels(value, expected):
    assert label_value(value, "a: line 1", "label") == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "is NaN, expected a class name"), (["z"], r'is \["z"\], expected one class'),
     ({"a": 1}, "expected one class name"), (None, "is empty"), ("  ", "is empty"),
     ([], "expected one class"), ("\ud83d", "not a character"), (float("inf"), "is Infinity")],
)  # fmt: skip
def test_what_is_no_label(value, message):
    with pytest.raises(UserError, match=f"a: line 1: 'label' (is|has) .*{message[3:]}|{message}"):
        label_value(value, "a: line 1", "label")


def test_lines_end_at_line_ends_alone():
    assert split_lines("a\u2028b\x0cc\x85d\r\n\ne") == ["a\u2028b\x0cc\x85d", "", "e"]
    assert split_lines("a\rb\r") == ["a", "b"]
    assert split_lines("a\n\n") == ["a", ""]


def test_text_is_read_by_its_mark(write):
    assert read_text(write(codecs.BOM_UTF16_LE + "häß".encode("utf-16-le"), "a.txt")) == "häß"
    assert read_text(write(codecs.BOM_UTF8 + b"x", "a.txt")) == "x"


def test_json_is_not_read_as_a_table_of_commas(tmp_path):
    path = tmp_path / "reviews.json"
    path.write_text('{"user": "a", "item": "b"}\n')
    with pytest.raises(
        UserError, match=r"write one object per line and name the file reviews.jsonl$"
    ):
        open_table(str(path), extensions=None)


def test_long_cells_and_names_are_shortened_in_messages():
    assert quote("a'b") == '"a\'b"'
    assert quote("x" * 61) == f"'{'x' * 57}...'"
    assert join_names(["x" * 41, "y", "z"], 2) == f"{'x' * 37}..., y, ..."


@pytest.mark.parametrize("read", [read_text, open_text, open_table])
@pytest.mark.parametrize("name", ["a\0b.csv", "x" * 5000 + ".csv", "no/such/file.csv", "."])
def test_names_that_are_no_files_are_refused_in_one_line(read, name):
    with pytest.raises(UserError) as refused:
        read(name)
    assert "\n" not in str(refused.value)


def test_the_key_of_a_missing_column_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("review,stars\nfine,1\n")
    keys = {"reviews": "config.data.text_column"}
    message = (
        r"no column 'reviews' \(did you mean 'review'\?\); the columns are: review, stars; set "
        r"--config\.data\.text_column to one of them"
    )
    with pytest.raises(UserError, match=message):
        list(open_table(path).select(["reviews"], keys=keys))
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"review": "fine", "stars": 1}\n')
    with pytest.raises(UserError, match=message):
        list(open_table(lines).select(["reviews"], keys=keys))
