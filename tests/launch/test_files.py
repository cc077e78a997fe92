"""Files in predict and evaluate: tables, labeled files and decisions, from commands and Python."""

import csv
import json

import pytest

import launch
from tests.launch.conftest import write_csv

HOSTILE = (
    "\ufeffid;review;note\r\n"
    '1;"a lovely; ""superb""\nfilm";ü\r\n'
    "2;dull awful plot;\r\n"
    '3;;"x\ny"\r\n'
)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def records(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_in_and_out(tiny_run, command, tmp_path):
    workdir, table = f"--workdir={tiny_run[0]}", tmp_path / "neue Texte.csv"
    table.write_bytes(HOSTILE.encode())
    before = records(tiny_run[0])
    output = tmp_path / "out.csv"
    done = command("predict", workdir, f"--input_file={table}", f"--output={output}",
                   "--probability_columns")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: predictions of 3 inputs\n"
    assert "1 of 3 cells of 'review' are empty or NaN, the first is in row 3" in done.stderr
    rows = read(output)
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert [row["review"] for row in rows] == ['a lovely; "superb"\nfilm', "dull awful plot", ""]
    assert [row["note"] for row in rows] == ["ü", "", "x\ny"]
    assert list(rows[0])[3:] == [
        "predicted_label",
        "predicted_confidence",
        "predicted_probability_bad",
        "predicted_probability_good",
    ]
    for row in rows:
        values = {name: float(row[f"predicted_probability_{name}"]) for name in ("bad", "good")}
        assert sum(values.values()) == pytest.approx(1, abs=2e-4)
        assert row["predicted_label"] == max(values, key=values.get)
        assert float(row["predicted_confidence"]) == max(values.values())
    again = tmp_path / "again.jsonl"
    done = command("predict", workdir, f"--input_file={table}", f"--output={again}",
                   "--positive=good", "--threshold=0", "--top_k=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in again.read_text(encoding="utf-8").splitlines()]
    assert [line["predicted_label"] for line in lines] == ["good"] * 3
    assert [line["note"] for line in lines] == ["ü", "", "x\ny"]
    assert all(len(line["predicted_probabilities"]) == 1 for line in lines)
    assert records(tiny_run[0]) == before


def test_mistakes_are_found_before_the_model_is_loaded(tiny_run, command, tmp_path):
    workdir, table = f"--workdir={tiny_run[0]}", tmp_path / "in.csv"
    table.write_text("review\nx\n")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"review": "x"}\n{"review"\n')
    for flags, message in (
        ([f"--output={table}"], "is also the input; name another file"),
        ([f"--output={tmp_path}/none/a.csv"], "there is no folder"),
        (["--output=a.xls"], "got the extension '.xls', expected one of .csv"),
        (["--threshold=2"], "--threshold: got 2, expected a number from 0 to 1"),
        (["--positive=great"], "--positive: got 'great', expected one of the classes bad, good"),
    ):
        done = command("predict", workdir, f"--input_file={table}", *flags)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    output = tmp_path / "earlier.csv"
    output.write_text("earlier")
    done = command("predict", workdir, f"--input_file={bad}", f"--output={output}")
    assert "bad.jsonl: line 2 is not JSON" in done.stderr
    assert output.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.jsonl",
        "earlier.csv",
        "in.csv",
    ]


def test_a_labeled_file_has_metrics_with_intervals(tiny_run, command, tmp_path):
    before = records(tiny_run[0])
    workdir, table = f"--workdir={tiny_run[0]}", write_csv(tmp_path / "new.csv", rows=40, seed=7)
    output = tmp_path / "rows.csv"
    flags = ["--positive=good", "--threshold=0.5", f"--output={output}"]
    done = command("evaluate", workdir, f"--file={table}", *flags)
    assert done.returncode == 0, done.stderr
    record, rows, given = json.loads(done.stdout), read(output), read(table)
    assert record["examples"] == len(rows) == 40
    assert [row["input"] for row in rows] == [row["review"] for row in given]
    assert [row["target"] for row in rows] == [row["stars"] for row in given]
    right = sum(row["target"] == row["prediction"] for row in rows)
    metrics, intervals = record["metrics"], record["intervals"]
    assert metrics["accuracy"] == metrics["decided_accuracy"] == pytest.approx(right / 40)
    low, high = intervals["accuracy"]
    assert 0 < low <= metrics["accuracy"] <= high <= 1
    assert records(tiny_run[0]) == before, "nothing of the run has changed"
    # Python gives the same.
    run = launch.load(tiny_run[0])
    found = run.evaluate(table, positive="good", threshold=0.5)
    assert found == pytest.approx(metrics)
    assert found.intervals == intervals
    assert [row["prediction"] for row in found.examples] == [row["prediction"] for row in rows]
    answers = run.predict_file(table, positive="good", threshold=0.5)
    assert [row["predicted_label"] for row in answers] == [row["prediction"] for row in rows]
    assert run.predict_file(table, tmp_path / "a.csv") == []
    assert [row["stars"] for row in read(tmp_path / "a.csv")] == [row["stars"] for row in given]
    assert records(tiny_run[0]) == before


def test_options_add_metrics_that_are_not_recorded(tiny_run, command):
    workdir = f"--workdir={tiny_run[0]}"
    done = command("evaluate", workdir, "--split=validation", "--threshold=1", "--top_k=2")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["coverage"] < 1
    assert metrics["top_2_accuracy"] == 1, "of two classes"
    saved = json.loads((tiny_run[0] / "evaluation-validation.json").read_text())["metrics"]
    assert saved.keys() == metrics.keys() - {"coverage", "covered_accuracy", "top_2_accuracy"}
    for flags, message in (
        (["--split=test", "--file=x.csv"], "--split: cannot be combined with --file"),
        (["--output=x.csv"], "--output: is only used with --file"),
        (["--file=x.csv", "--images=x"], "--images: does not apply, because this task reads no"),
        (["--file=x.csv", "--output=x.txt"], "--output=x.txt: expected a .csv, .tsv or .jsonl"),
        (["--file=none.csv"], "none.csv: cannot be read"),
    ):
        done = command("evaluate", workdir, *flags)
        assert done.returncode == 2
        assert message in done.stderr


def test_labels_that_the_run_does_not_know_are_named(tiny_run, tmp_path):
    run, table = launch.load(tiny_run[0]), tmp_path / "new.csv"
    table.write_text("review,stars\na,good\nb,great\nc,Good\nd,great\n")
    with pytest.raises(launch.UserError) as error:
        run.evaluate(table)
    assert str(error.value) == (
        f"{table}: got 2 classes that the run does not know: 'great' (2 examples, the first is "
        "line 3), 'Good' (1 examples, the first is line 4); 'Good' is not 'good'; expected the "
        "classes of the run: bad, good"
    )
    table.write_text("review,label\na,good\n")
    with pytest.raises(launch.UserError, match="no column 'stars'; the columns are: review, label"):
        run.evaluate(table)
    for content, message in (
        ("", "the file is empty"),
        ("review,stars\n", "has a header and no rows"),
        ("review,stars\na,\n", "line 2: 'stars' is empty"),
        ("review,stars\na,good,x\n", "line 2 has 3 fields"),
        ("review,stars\n,good\n", "line 2: 'review' is empty"),
    ):
        table.write_text(content)
        with pytest.raises(launch.UserError, match=message):
            run.evaluate(table)
