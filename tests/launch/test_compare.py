"""`launch.compare` on run directories: tables, files, and what is named instead of compared."""

import contextlib
import csv
import importlib.util
import io
import json

import numpy as np
import pytest
from scipy import stats

from launch.reporting import comparison as comparisons
from launch.reporting import comparison_files
from launch.runs import collection
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tests.launch import browser
from tests.launch.browser import needs_browser
from tests.launch.conftest import ROOT
from tests.launch.made_runs import make_run
from tests.pages import Shell, commands, launched
from tests.small_data import prepare_small


@pytest.fixture
def runs(tmp_path):
    """Writes two seeds of a base and one other run on the same four examples."""
    base = {"model.embedding_size": 48}
    return [
        make_run(tmp_path / "a0", [1, 0, 1, 0], 0.6, changes=base, parameters=10),
        make_run(tmp_path / "a1", [1, 0, 0, 0], 0.5, changes=base | {"seed": 1}, parameters=10),
        make_run(tmp_path / "b", [0, 1, 1, 1], 0.7, ids=[3, 0, 1, 2], parameters=1234),
    ]  # fmt: skip


def compared(folders, against="best"):
    found, messages = collection.collect(folders)
    return collection.compare_runs(found, against), messages


def test_runs_that_differ_in_seed_share_a_row(runs):
    (found,), messages = compared(runs)
    assert messages == []
    best, other = found.rows
    assert (best.name, other.name) == ("b", "attention_pooling")
    assert found.best == found.reference == best.name
    assert sorted(other.outcome.records) == [0, 1]
    assert other.changes == {"model.embedding_size": 48}
    assert found.keys == ["model.embedding_size"]


def test_differences_are_paired_by_example(runs):
    (found,), _ = compared(runs)
    _, other = found.rows
    # Only seed 0 is in both. The scores of b by id 0, 1, 2, 3 are 1, 1, 1, 0.
    differences = np.array([1, 0, 1, 0]) - np.array([1, 1, 1, 0])
    assert other.difference.over == "examples"
    assert other.difference.mean == pytest.approx(differences.mean())
    assert other.difference.half == pytest.approx(1.96 * differences.std(ddof=1) / 2)
    (found,), _ = compared(runs, "first")
    assert (found.reference, found.role) == ("attention_pooling", "first")
    assert found.rows[0].difference.mean == pytest.approx(-differences.mean())
    (found,), _ = compared(runs, str(runs[0]))
    assert (found.reference, found.role) == ("attention_pooling", "reference")


def test_differences_without_example_scores_are_paired_by_seed(tmp_path):
    accuracies = {"a": [0.5, 0.6, 0.4], "b": [0.75, 0.7, 0.55]}
    folders = []
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            changes = {"seed": seed, "model.embedding_size": 48 if name == "a" else 32}
            folder = make_run(tmp_path / f"{name}{seed}", [value], value, changes=changes)
            (folder / "outputs-test.npz").unlink()
            folders.append(folder)
    (found,), _ = compared(folders, "first")
    gap = found.rows[0].difference
    differences = np.subtract(accuracies["b"], accuracies["a"])
    assert (gap.over, gap.mean) == ("seeds", pytest.approx(differences.mean()))
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (gap.mean - gap.half, gap.mean + gap.half) == pytest.approx(tuple(interval))
    assert any("paired by seed" in note for note in found.notes)


def test_other_test_data_are_a_table_of_their_own(tmp_path, runs):
    other = make_run(tmp_path / "other", [1, 1], 0.9, ids=[7, 8])
    sst2 = make_run(tmp_path / "sst2", [1, 1], 0.9, ids=[9, 10], changes={"data.name": "sst2"})
    found, _ = compared([*runs, other, sst2])
    titles = [each.title for each in found]
    assert titles[0].startswith("text_classification: movie_reviews (4 test examples, ")
    assert titles[1].startswith("text_classification: movie_reviews (2 test examples, ")
    assert titles[2] == "text_classification: sst2"
    assert [row.name for row in found[1].rows] == [str(other)]
    assert [len(each.rows) for each in found] == [2, 1, 1]


def test_unfinished_and_damaged_runs_are_named(tmp_path, runs):
    unfinished = make_run(tmp_path / "unfinished", [1])
    (unfinished / "result.json").unlink()
    damaged = make_run(tmp_path / "damaged", [1])
    (damaged / "result.json").write_text("{")
    broken = make_run(tmp_path / "broken", [1])
    (broken / "config.json").write_text("{}")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "table.md").write_text("")
    (tmp_path / "table.json").write_text("{}")
    (found,), messages = compared([*sorted(tmp_path.iterdir()), tmp_path / "missing"])
    assert len(found.rows) == 2
    assert messages == [
        f"{broken / 'config.json'}: config: 'task' is missing",
        f"{damaged / 'result.json'}: is damaged (it is not an object); remove the file, and the "
        f"same command writes it again from the checkpoints",
        f"{empty}: contains no run",
        f"{unfinished}: is unfinished, at step 0 of 1000; the command that began it continues it",
        f"{tmp_path / 'missing'}: no such directory",
        "no run directories: table.json, table.md",
    ]
    # A directory that contains runs stands for them.
    (same,), below = compared([tmp_path])
    assert [row.name for row in same.rows] == [row.name for row in found.rows]
    assert below == messages[:2] + messages[3:4]


def test_a_run_without_scores_is_shown_without_difference(runs):
    (runs[2] / "outputs-test.npz").write_bytes(b"damaged")
    (found,), _ = compared(runs, "first")
    row = next(row for row in found.rows if row.name == "b")
    assert row.difference is None
    assert any("outputs-test.npz: cannot be read" in note for note in found.notes)


def test_equal_seeds_of_one_config_have_rows_of_their_own(tmp_path):
    folders = [make_run(tmp_path / name, [1, 0], 0.5) for name in "ab"]
    (found,), _ = compared(folders)
    assert [row.name for row in found.rows] == ["a", "b"]
    assert found.keys == []


def test_an_unknown_reference_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"--against=.*none: is none of the finished runs"):
        compared(runs, str(tmp_path / "none"))


def test_csv_has_a_column_for_each_changed_key_and_number(runs):
    found, _ = compared(runs)
    rows = list(csv.DictReader(io.StringIO(comparison_files.as_csv(found))))
    assert [row["config.model.embedding_size"] for row in rows] == ["32", "48"]
    assert [float(row["validation_accuracy"]) for row in rows] == pytest.approx([0.7, 0.55])
    assert rows[0]["validation_accuracy_sd"] == ""
    assert float(rows[1]["test_accuracy"]) == pytest.approx(0.375)
    assert float(rows[1]["test_accuracy_sd"]) == pytest.approx(0.125 * 2**0.5)
    assert [row["best"] for row in rows] == ["true", "false"]
    assert json.loads(rows[1]["directories"]) == [str(runs[0]), str(runs[1])]
    assert [row["parameters"] for row in rows] == ["1234", "10"]
    assert rows[1]["difference_over"] == "examples"


def test_the_command_prints_and_writes(command, runs, tmp_path):
    page, table = tmp_path / "runs.html", tmp_path / "runs.csv"
    done = command("compare", *map(str, runs), f"--html={page}", f"--csv={table}")
    assert done.returncode == 0, done.stderr
    assert "text_classification: movie_reviews" in done.stdout
    assert "model.embedding_size=48" in done.stdout
    assert "1,234" in done.stdout
    assert (
        "best on validation: b, with accuracy 0.7000 on validation and 0.7500 on test"
        in done.stdout
    )
    assert "paired by test example (4 examples)" in done.stdout
    assert done.stderr.splitlines() == [f"written: {table}", f"written: {page}"]
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "model.embedding_size=48" in text
    assert text.count("data:image/svg+xml;base64,") >= 2
    done = command("compare", *map(str, runs), "--json=-")
    found = json.loads(done.stdout)
    assert found["comparisons"][0]["best"] == "b"
    assert found["left_out"] == []


def test_mistakes_at_the_command_line(command, tmp_path):
    for words, message in (
        ([], "run directories are missing; write python -m launch.compare runs/*"),
        ([str(tmp_path)], "none of the directories is a finished run"),
        ([str(tmp_path), "--csv=-", "--json=-"], "only one of --csv, --json and --html can be -"),
        ([str(tmp_path), f"--html={tmp_path}"], "is a directory; name a file"),
        ([str(tmp_path), "--workdir=x"], "--workdir: launch.compare has no such flag; it belongs"),
    ):
        done = command("compare", *words)
        assert done.returncode == 2, words
        assert message in done.stderr.splitlines()[-1]


def test_lower_is_better_is_said_and_sorted(runs, monkeypatch):
    found, _ = collection.collect(runs)
    task = comparisons.configs.task_class("text_classification")
    monkeypatch.setattr(task, "higher_is_better", False)
    (made,) = collection.compare_runs(found)
    assert made.best == "attention_pooling"
    assert [row.name for row in made.rows] == ["attention_pooling", "b"]
    assert made.notes[0].endswith("; lower is better")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_page_of_a_comparison_in_a_browser(runs, tmp_path, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    other = make_run(tmp_path / "sst2", [1, 1], 0.9, ids=[9, 10], changes={"data.name": "sst2"})
    found, _ = compared([*runs, other])
    file = tmp_path / "page.html"
    file.write_text(comparison_files.as_html("Comparison", found, ["x: is unfinished"]), "utf-8")
    with browser.launched() as chromium:
        viewport = {"width": 390, "height": 844}
        page = chromium.new_context(viewport=viewport, color_scheme=mode).new_page()
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        violations = axe.Axe().run(page).response["violations"]
    assert [each["id"] for each in violations if each["impact"] in ("serious", "critical")] == []


@pytest.mark.slow
def test_the_page_as_it_stands(server, tmp_path):
    """Runs the commands of docs/COMPARING.md in order, with small data sets and few steps."""
    page = (ROOT / "docs" / "COMPARING.md").read_text(encoding="utf-8")
    short = {"training.steps": 10, "training.evaluate_every": 10, "training.log_every": 10}
    more = {
        "sweep": ["--seeds=1", *(f"--config.{key}={value}" for key, value in short.items())],
        "ablate": ["--seeds=1", *(f"--set={key}={value}" for key, value in short.items())],
    }
    words = commands(page)
    if importlib.util.find_spec("optuna") is None:
        words = [line for line in words if "--search=optuna" not in line]
    folder, paths = tmp_path / "work", Paths(tmp_path / "data", tmp_path / "cache")
    folder.mkdir()
    for name in ("sst2", "movie_reviews"):
        prepare_small(name, paths)

    def added(line):
        trials = ["--trials=2"] if "--search=optuna" in line else []
        return [*more.get(launched(line), []), *trials]

    with contextlib.chdir(folder):
        shell = Shell(server, folder, paths, added)
        shell.run(words)
    assert set(shell.ran) == {"sweep", "ablate", "compare"}
    table = json.loads((folder / "runs" / "depth" / "table.json").read_text())
    counts = [row["parameters"] for row in table["comparisons"][0]["runs"]]
    assert max(counts) / min(counts) < 1.04
    for name in ("rates", "pooling", "depth"):
        written = {path.name for path in (folder / "runs" / name).iterdir() if path.is_file()}
        assert written >= {"table.md", "table.csv", "table.json", "report.html", "means.png",
                           "time.png"}  # fmt: skip
    assert "](docs/COMPARING.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
