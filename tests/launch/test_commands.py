"""The commands end to end on a user file: train, evaluate, predict, ablate, resume."""

import csv
import html
import io
import json

import pytest

from tasks.common.data import summary


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run


def test_train_prints_the_table_and_fills_the_folder(run):
    folder, done = run
    assert "baseline nb_svm" in done.stdout
    assert "accuracy" in done.stdout
    assert "steps/s" in done.stderr
    present = {path.name for path in folder.iterdir()}
    assert present >= {
        "config.json", "environment.json", "assets.json", "metrics.jsonl", "timing.jsonl",
        "tensorboard", "checkpoints", "result.json", "report.html", "outputs-test.npz",
        "predictions-test.csv",
    }  # fmt: skip
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["split"] == "validation"]
    assert steps == [20, 40, 60]


def test_predictions_of_the_test_split_are_a_table(run):
    result = json.loads((run[0] / "result.json").read_text())
    with (run[0] / "predictions-test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [row["target"] == row["prediction"] for row in rows]
    assert [float(row["score"]) for row in rows] == right
    assert sum(right) / len(rows) == pytest.approx(result["metrics"]["accuracy"])
    assert {row["target"] for row in rows} == {"good", "bad"}
    assert all(row["input"].split() for row in rows)


def test_the_summary_of_the_data_is_printed_recorded_and_reported(run):
    folder, done = run
    result = json.loads((folder / "result.json").read_text())
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    facts = summary.facts(result["data_summary"])
    assert {"train", "validation", "test", "sizes", "duplicates"} <= dict(facts).keys()
    for name, text in facts:
        assert f"{name:11} {text}" in done.stderr.splitlines()
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page
    examples = {x: y["examples"] for x, y in result["data_summary"]["splits"].items()}
    assert sum(examples.values()) == 240
    # The lines come before the first step, and the metric has its unit.
    accuracy = "correctly classified examples; fraction from 0 to 1; higher is better"
    assert f"accuracy, {accuracy}" in done.stderr.partition("step ")[0]
    assert result["metric_units"]["accuracy"] == accuracy
    assert f"<dt><code>accuracy</code></dt><dd>{accuracy}</dd>" in page
    assert "F1 of the class bad" in page


def test_separable_words_are_learned(run):
    result = json.loads((run[0] / "result.json").read_text())
    assert result["metrics"]["accuracy"] > 0.8


def test_report_needs_no_other_file(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/svg+xml;base64,") >= 3
    assert "baseline nb_svm" in page
    assert "title=" in page


def test_evaluate_gives_the_figures_that_training_printed(run, command):
    folder, _ = run
    done = command("evaluate", f"--workdir={folder}", "--split=test")
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "evaluation-test.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    assert written["metrics"] == result["metrics"]
    assert written["step"] == result["steps"]
    assert json.loads(done.stdout) == written


def test_times_are_logged_recorded_and_reported(run):
    folder, done = run
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert "start_seconds" in lines[0]
    windows = [line for line in lines if "seconds" in line]
    assert [line["step"] for line in windows] == [10, 20, 30, 40, 50, 60]
    for line in windows:
        assert line["step_seconds_p50"] <= line["step_seconds_p99"] <= line["seconds"]
    assert windows[0]["compile_seconds"] > 0
    timing = json.loads((folder / "result.json").read_text())["timing"]
    assert 0 < timing["goodput"] == lines[-1]["goodput"] < 1
    assert "<td>goodput</td>" in (folder / "report.html").read_text(encoding="utf-8")
    (trace,) = (folder / "profile").rglob("*.trace.json.gz")
    assert f"profile: steps 11 to 15 in {trace.parent};" in done.stderr


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_batch_size(run, command):
    folder, _ = run
    config = json.loads((folder / "config.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    config["training"]["evaluation_batch_size"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    try:
        done = command("evaluate", f"--workdir={folder}", "--split=test")
        assert done.returncode == 0, done.stderr
        metrics = json.loads(done.stdout)["metrics"]
    finally:
        config["training"]["evaluation_batch_size"] = 16
        (folder / "config.json").write_text(json.dumps(config))
    assert metrics == pytest.approx(result["metrics"], rel=1e-5)


def test_predict_one_text(run, command):
    done = command("predict", f"--workdir={run[0]}", "--input=a lovely superb film")
    assert done.returncode == 0, done.stderr
    label, first, probability, second, other = done.stdout.split()
    assert label == first == "good"
    assert second == "bad"
    assert float(probability) + float(other) == pytest.approx(1, abs=2e-4)


def test_predict_lines_of_any_kind_keep_their_order(run, command):
    texts = ["superb lovely", "awful dull", "", "难看", "🙂 ñandú", "x" * 5000, "fine " * 500]
    done = command("predict", f"--workdir={run[0]}", "--input=-", "--format=json",
                stdin="\n".join(texts) + "\n")  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["input"] for answer in answers] == texts
    assert [answers[0]["label"], answers[1]["label"]] == ["good", "bad"]


@pytest.mark.slow
def test_predict_ten_thousand_lines(run, command):
    lines = [f"{'superb lovely' if n % 3 else 'awful dull'} film {n}" for n in range(10_000)]
    done = command("predict", f"--workdir={run[0]}", "--input=-", stdin="\n".join(lines))
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 10_000
    # The numbers are unknown words, so only two texts and two answers are distinct.
    assert answers[0].split()[0] == "bad"
    assert answers[1].split()[0] == "good"
    assert answers == [answers[1 if n % 3 else 0] for n in range(10_000)]


def test_the_same_command_again_does_nothing(run, command, tiny):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = command("train", *tiny, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert "baseline nb_svm" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.slow
def test_sweep_skips_finished_runs_and_pairs_with_the_first(command, tiny, tmp_path):
    flags = [
        *tiny, f"--workdir={tmp_path}", "--config.training.steps=20", "--seeds=1",
        "--set", "model.pooling=mean,max",
    ]  # fmt: skip
    done = command("sweep", *flags)
    assert done.returncode == 0, done.stderr
    assert "pooling=max" in done.stdout
    assert "±" in next(
        row for row in (tmp_path / "table.md").read_text().splitlines() if "pooling=max" in row
    )
    table = json.loads((tmp_path / "table.json").read_text())
    assert [len(runs) for runs in table["runs"].values()] == [1, 1]
    again = command("sweep", *flags)
    assert again.stderr.count("finished already") == 2


def test_loss_that_is_not_finite_stops_with_one_line(command, tiny, tmp_path):
    done = command(
        "train", *tiny, f"--workdir={tmp_path / 'nan'}", "--nobaselines",
        "--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0",
        "--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=0",
    )  # fmt: skip
    assert done.returncode == 2
    assert "learning_rate" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_predict_reads_the_column_of_a_table(run, command, tmp_path):
    texts = ["a lovely, superb film", "dull; awful", "gripping"]
    table = tmp_path / "new.csv"
    table.write_text(
        "\ufeffid,review\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)), "utf-8"
    )
    done = command("predict", f"--workdir={run[0]}", f"--input_file={table}")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["review"] for row in rows] == texts
    single = command("predict", f"--workdir={run[0]}", "--format=json",
                  *[f"--input={text}" for text in texts])  # fmt: skip
    answers = [json.loads(line) for line in single.stdout.splitlines()]
    assert [row["predicted_label"] for row in rows] == [answer["label"] for answer in answers]
    assert [json.loads(row["predicted_probabilities"]) for row in rows] == [
        answer["probabilities"] for answer in answers
    ]
    table.write_text("id,text\n1,x\n")
    done = command("predict", f"--workdir={run[0]}", f"--input_file={table}")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"error: {table}: no column 'review'; the columns are: id, text; rename the column with "
        f"the inputs to review"
    )
