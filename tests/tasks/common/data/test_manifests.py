"""Manifests of other programs, folders, and messages."""

import json

import numpy as np
import pytest

from tasks.common.data.manifest_rows import find, read_manifest
from tasks.common.data.manifests import user_examples
from tasks.common.errors import UserError
from tasks.common.text.tokenizer import TextConfig


@pytest.fixture
def folder(tmp_path):
    for name in ("a.wav", "b b.wav", "\u00fc.wav", "x,y.wav"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "my,clips").mkdir()
    (tmp_path / "my,clips" / "c.wav").write_bytes(b"c")
    return tmp_path


def read(path):
    return [(line.file.name, line.text) for line in read_manifest(str(path))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_any_program(folder, encoding, delimiter, end):
    rows = [
        ["Path", "speaker", "TEXT"],
        ["a.wav", "1", f'"one{delimiter} ""two"""'],
        ["b%20b.wav", "2", "three\u2028four"],
        ["u\u0308.wav", "2", "x" * 200_000],
        ["my,clips\\c.wav" if delimiter != "," else '"my,clips\\c.wav"', "3", ""],
    ]
    path = folder / "M.CSV"
    path.write_bytes(end.join(map(delimiter.join, rows)).encode(encoding))
    assert read(path) == [
        ("a.wav", f'one{delimiter.strip()} "two"'),
        ("b b.wav", "three four"),
        ("\u00fc.wav", "x" * 200_000),
        ("c.wav", ""),
    ]
    # The lines are those of the file.
    assert read_manifest(str(path))[1].where == f"{path}: line 3"


def test_json_lines(folder):
    rows = [{"path": "a.wav", "text": "x\u2028y"}, {"text": "z", "path": "x,y.wav", "more": 1}]
    path = folder / "M.JSONL"
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    assert read(path) == [("a.wav", "x y"), ("x,y.wav", "z")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.csv",
            "path,text\na.wav,half, of it\n",
            "line 2 has 3 fields, expected 2 as in the header",
        ),
        ("m.csv", 'path,text\na.wav,"half\n', "line 2 is malformed"),
        ("m.csv", "path,text,text\na.wav,b,c\n", "column 'text' is in the header twice"),
        (
            "m.csv",
            "a.wav,yes\n",
            "no column 'path' and 'text'; .* are: a.wav, yes; set --audio and --text",
        ),
        (
            "m.csv",
            "path,words\na.wav,yes\n",
            "no column 'text'; the columns are: path, words; set --text to one",
        ),
        ("m.csv", "path,text\n,yes\n", "line 2: has no path"),
        ("m.csv", "path,text\n.,yes\n", "line 2: no such file"),
        ("m.csv", "path,text\n" + "n" * 300 + ",yes\n", "line 2: no such file"),
        ("m.jsonl", '{"path": "a.wav"}\n', "line 1: no column 'text'"),
        ("m.jsonl", '{"path": "a.wav", "text": 1}\n', "line 1: 'text' is 1, expected a text"),
        ("m.jsonl", '{"path": ["a.wav"], "text": ""}\n', "line 1: 'path' is .*, expected a text"),
        (
            "m.jsonl",
            '{"path": "a.wav", "text": "", "text": "x"}\n',
            "key 'text' occurs twice",
        ),
        ("m.jsonl", "[]\n", "line 1 is not a JSON object"),
        ("m.jsonl", '{"path": "a\\nb", "text": ""}\n', r"line 1: no such file: .*/a\\nb$"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, name, content, message):
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        read(folder / name)
    assert str(raised.value).startswith(str(folder / name))
    assert "\n" not in str(raised.value)


def test_paths_with_commas(folder):
    (folder / "my,clips" / "train.csv").write_text("path,text\nc.wav,yes\n")
    (folder / "my,clips" / "test.csv").write_text("path,text\nc.wav,no\n")
    one, two = (str(folder / "my,clips" / name) for name in ("train.csv", "test.csv"))
    assert [line.text for line in find(one)["train"]] == ["yes"]
    found = find(f"{one}, {two}")
    assert {split: lines[0].text for split, lines in found.items()} == {
        "train": "yes",
        "test": "no",
    }
    for number in range(2):
        (folder / "my,clips" / f"{number}.png").touch()
        (folder / "my,clips" / f"{number}.txt").write_text("yes")
    (folder / "my,clips" / "c.txt").write_text("c")
    (folder / "my,clips" / "train.csv").unlink()
    (folder / "my,clips" / "test.csv").unlink()
    assert len(find(str(folder / "my,clips"))["train"]) == 3


def test_files_that_are_named_twice(folder, capsys):
    (folder / "train.csv").write_text("path,text\na.wav,x\nb b.wav,y\na.wav,z\n./a.wav,x\n")
    (folder / "test.csv").write_text("path,text\nb b.wav,y\n")
    path = f"{folder / 'train.csv'},{folder / 'test.csv'}"
    with pytest.raises(UserError):
        user_examples(path, lambda file: np.zeros(3), TextConfig(min_count=1), "x", False)
    said = capsys.readouterr().err
    assert "train.csv: line 4: a.wav is also listed at" in said
    assert "train.csv: line 2; 2 files are listed twice, 1 of them with different texts" in said
    assert "1 files of test are also in another split, such as b b.wav" in said


def test_a_folder_with_more_than_files_and_texts(tmp_path, capsys):
    for name in ("a.png", "b.PNG", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "more.txt").write_text("two")
    (tmp_path / "deeper").mkdir()
    assert [line.text for line in find(str(tmp_path))["train"]] == ["one", ""]
    assert "3 entries are left out, such as .hidden.png: texts without a" in capsys.readouterr().err


def test_a_text_beyond_the_limit_is_not_cut_off(folder):
    for number in range(60):
        (folder / f"{number}.wav").touch()
    rows = [f"{number}.wav,word {number}" for number in range(60)]
    config = TextConfig(tokenizer="character", min_count=1, max_length=9)
    path = folder / "m.csv"
    path.write_text("\n".join(["path,text", *rows]))
    splits, _ = user_examples(str(path), lambda file: np.zeros(3), config, "x", False)
    assert sum(map(len, splits.values())) == 60
    path.write_text("\n".join(["path,text", *rows[:-1], "59.wav,word word w"]))
    with pytest.raises(
        UserError, match=r"line 61: got a text of more than 9 units; raise config\.da"
    ):
        user_examples(str(path), lambda file: np.zeros(3), config, "x", False)
