"""Runs whose data have changed, are missing or are reordered, for every task."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from launch.engine import config as configs
from launch.export_weights import export
from launch.reporting import paired, results, tables
from launch.runs.directory import load_predictor, restored_task, saved_config
from launch.runs.evaluation import evaluate_run
from launch.runs.provenance import Description
from launch.runs.run import run
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tests.launch.own_data import CASES

HOW = ("unchanged", "changed", "reordered", "missing")
# A reader that sorts its rows has no case of another order.
PAIRS = [
    (name, how)
    for name, case in CASES.items()
    for how in HOW
    if how != "reordered" or case.reorder is not None
]


class Trained:
    """A task's data and a finished run on them."""

    def __init__(self, name, root):
        self.case, self.data, self.folder = CASES[name], root / "data", root / "run"
        self.paths = Paths(root / "prepared", root / "cache", None)
        self.data.mkdir(parents=True)
        self.case.write(self.data)
        shutil.copytree(self.data, root / "inputs")
        self.inputs = self.case.inputs(root / "inputs")
        overrides = self.case.overrides(self.data)
        self.config = configs.override(configs.load_file(self.case.config), overrides)
        self.record = self.train(self.folder)
        self.answers = self.predict()
        self.table = tables.results_markdown([self.record])

    def train(self, folder):
        return run(self.config, folder, self.paths, "command", with_baselines=False)

    def evaluate(self, split="test"):
        return evaluate_run(saved_config(self.folder), self.folder, split, self.paths)

    def predict(self):
        saved = saved_config(self.folder)
        return load_predictor(restored_task(saved, self.folder), saved, self.folder)(self.inputs)

    def stopped(self, folder):
        """Copies the run as it was after its last checkpoint."""
        shutil.copytree(self.folder, folder)
        for name in ("result.json", "report.html", "outputs-test.npz"):
            (folder / name).unlink()
        return folder

    @contextlib.contextmanager
    def data_as(self, how):
        kept = self.data.with_name("kept")
        shutil.copytree(self.data, kept)
        try:
            if how == "changed":
                self.case.change(self.data)
            elif how == "reordered":
                self.case.reorder(self.data)
            elif how == "missing":
                shutil.rmtree(self.data)
            yield
        finally:
            shutil.rmtree(self.data, ignore_errors=True)
            kept.rename(self.data)


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refusal(folder, action):
    """Returns the error message of `action`, which must leave the run directory unchanged."""
    before = content(folder)
    with pytest.raises(UserError) as refused:
        action()
    assert content(folder) == before
    line = str(refused.value)
    assert "\n" not in line
    assert "remove" not in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "how"), PAIRS, indirect=["trained"])
def test_commands_on_data_that_are(trained, how, tmp_path):
    stopped = trained.stopped(tmp_path / "stopped")
    with trained.data_as(how):
        if how == "unchanged":
            before = content(trained.folder)
            assert trained.train(trained.folder) == trained.record
            assert content(trained.folder) == before
            assert trained.train(stopped)["metrics"] == trained.record["metrics"]
            assert trained.evaluate()["metrics"] == trained.record["metrics"]
            scores = paired.read(trained.folder)
            assert scores.ids.shape == scores.values.shape
            metric = configs.task_class(trained.config.task).primary_metric
            assert scores.values.mean() == pytest.approx(
                trained.record["metrics"][metric], abs=1e-4
            )
        elif how == "missing":
            line = refusal(trained.folder, lambda: trained.train(trained.folder))
            assert "cannot be verified" in line
            assert str(trained.folder / "result.json") in line
            assert str(trained.data) in refusal(stopped, lambda: trained.train(stopped))
            assert str(trained.data) in refusal(trained.folder, trained.evaluate)
        else:
            expected = trained.case.expected if how == "changed" else trained.case.expected_order
            lines = [
                refusal(trained.folder, lambda: trained.train(trained.folder)),
                refusal(stopped, lambda: trained.train(stopped)),
                refusal(trained.folder, trained.evaluate),
                refusal(trained.folder, lambda: trained.evaluate("validation")),
            ]
            for line in lines:
                assert "differ from those that this run was trained on; restore the data" in line
                for word in expected:
                    assert word in line
            assert str(trained.folder / "result.json") in lines[0]
        # Results that need no data are unchanged.
        assert trained.predict() == trained.answers
        path = results.save_record(trained.record, tmp_path / "results")
        assert tables.results_markdown(results.load_records(tmp_path / "results")) == trained.table
        assert json.loads(path.read_text()) == trained.record
        saved = saved_config(trained.folder)
        if saved.task == "language_modeling":
            export(saved, trained.folder, tmp_path / "exported")
            assert (tmp_path / "exported" / "model.safetensors").stat().st_size
        else:
            with pytest.raises(
                UserError, match=r"a masked language model|differs from that of BERT"
            ):
                export(saved, trained.folder, tmp_path / "exported")
            assert not (tmp_path / "exported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["image_classification"], indirect=True)
def test_figures_of_a_model_that_has_none_are_refused(trained):
    saved = saved_config(trained.folder)
    predictor = load_predictor(restored_task(saved, trained.folder), saved, trained.folder)
    with pytest.raises(UserError, match=r"--figures: config\.model\.name=convnet has no figures"):
        predictor.with_figures(trained.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["forecasting"], indirect=True)
def test_rows_of_a_series_in_another_order_are_the_same_series(trained):
    lines = (trained.data / "x.csv").read_text().splitlines()
    with trained.data_as("unchanged"):
        (trained.data / "x.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
        try:
            assert trained.train(trained.folder) == trained.record
        finally:
            (trained.data / "x.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["text_classification"], indirect=True)
class TestOneTask:
    """Checks that do not depend on the task."""

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (["", "a lovely new film 99,mixed"], ["labels"]),
            (["", "a lovely new film 99,good"], ["train texts"]),
        ],
        ids=["a third class", "one more row"],
    )
    def test_rows_that_were_added_are_named(self, trained, rows, words, tmp_path):
        stopped = trained.stopped(tmp_path / "stopped")
        file = trained.data / "x.csv"
        with trained.data_as("unchanged"):
            # Enough examples for each split.
            more = [rows[1].replace("99", str(number)) for number in range(100, 160)]
            file.write_text(file.read_text() + "\n".join(more) + "\n")
            line = refusal(stopped, lambda: trained.train(stopped))
            trained.case.write(trained.data)
        for word in words:
            assert word in line

    def test_one_changed_test_label_is_named_alone(self, trained, tmp_path):
        task = configs.task_class("text_classification").prepare(
            trained.config.data, trained.config.model, trained.paths
        )
        chosen = task.dataset.splits["test"]
        old = f"{chosen.texts[0]},{task.labels[chosen.labels[0]]}"
        new = f"{chosen.texts[0]},{task.labels[1 - chosen.labels[0]]}"
        file = trained.data / "x.csv"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        try:
            line = refusal(trained.folder, trained.evaluate)
        finally:
            file.write_text(text)
        assert line.startswith(f"--workdir={trained.folder}: test labels differ")

    def test_a_run_without_the_file_compares_its_assets(self, trained, tmp_path, capsys):
        stopped = trained.stopped(tmp_path / "stopped")
        (stopped / "data.json").unlink()
        with trained.data_as("unchanged"):
            assert trained.train(stopped)["metrics"] == trained.record["metrics"]
        assert "has no data.json (written by an earlier version)" in capsys.readouterr().err
        assert not (stopped / "data.json").exists()
        (stopped / "result.json").unlink()
        assets = json.loads((stopped / "assets.json").read_text())
        (stopped / "assets.json").write_text(json.dumps({**assets, "labels": ["good", "bad"]}))
        assert "labels differ" in refusal(stopped, lambda: trained.train(stopped))

    def test_a_run_without_a_checkpoint_begins_with_the_data_as_they_are(self, trained, tmp_path):
        stopped = trained.stopped(tmp_path / "stopped")
        shutil.rmtree(stopped / "checkpoints")
        before = json.loads((stopped / "data.json").read_text())
        with trained.data_as("changed"):
            record = trained.train(stopped)
        assert record["steps"] <= 2
        after = json.loads((stopped / "data.json").read_text())
        assert after["examples"] == before["examples"]
        assert after["parts"]["train texts"] == before["parts"]["train texts"]
        assert after["parts"]["train labels"] != before["parts"]["train labels"]

    @pytest.mark.parametrize("text", ['{"step": ', "[]", '{"task": "text_classification"}'])
    def test_a_damaged_result_is_named(self, trained, text, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(trained.folder, folder)
        (folder / "result.json").write_text(text)
        before = content(folder)
        with pytest.raises(UserError, match=r"result\.json: is damaged .*; remove the file"):
            trained.train(folder)
        assert content(folder) == before
        (folder / "result.json").unlink()
        assert trained.train(folder)["metrics"] == trained.record["metrics"]


def test_generated_data_are_compared_too(tmp_path, monkeypatch):
    from tasks.sequence_copy import data as strings

    config = configs.override(
        configs.load_file("configs/sequence_copy.py:dot"),
        {"data.max_length": 5, "data.train_size": 40, "data.validation_size": 24,
         "data.test_size": 24, "model.state_size": 8},
    )  # fmt: skip
    task = configs.task_class("sequence_copy").prepare(config.data, config.model, None)
    Description.of(task).write(tmp_path)
    Description.of(task).check(tmp_path, "remedy")
    splits = strings.generate(config.data)
    splits["test"].strings.reverse()
    monkeypatch.setattr(strings, "generate", lambda config: splits)
    other = configs.task_class("sequence_copy").prepare(config.data, config.model, None)
    with pytest.raises(UserError, match=r": test strings \(order\) differ from those"):
        Description.of(other).check(tmp_path, "remedy")


def prepared(name, folder, **changes):
    case = CASES[name]
    config = configs.override(configs.load_file(case.config), {**case.overrides(folder), **changes})
    paths = Paths(folder.parent / "prepared", folder.parent / "cache", None)
    return configs.task_class(config.task).prepare(config.data, config.model, paths)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("text_classification", {"data.text.stem": "english", "data.text.max_length": 8}),
        ("translation", {"data.text.vocabulary_size": 280}),
        ("segmentation", {"data.image_size": (8, 12)}),
        ("detection", {"data.image_size": 16}),
        ("forecasting", {"data.lookback": 12}),
        ("recommendation", {"data.max_length": 4}),
        ("speech_recognition", {"data.features.sample_rate": 4000}),
        ("handwriting_recognition", {"data.dark_ink": False}),
    ],
)
def test_ids_of_examples_are_of_what_they_were_made_of(name, changes, tmp_path):
    (tmp_path / "data").mkdir()
    CASES[name].write(tmp_path / "data")
    task = prepared(name, tmp_path / "data")
    ids, fingerprint = task.example_ids("test"), task.fingerprint
    assert ids.dtype == np.uint64
    assert len(np.unique(ids)) == len(ids) > 1
    again = prepared(name, tmp_path / "data")
    assert again.fingerprint == fingerprint
    assert dict(again.fingerprints) == dict(task.fingerprints)
    assert np.array_equal(prepared(name, tmp_path / "data", **changes).example_ids("test"), ids)
    CASES[name].change(tmp_path / "data")
    changed = prepared(name, tmp_path / "data")
    assert changed.fingerprint != fingerprint
    assert dict(changed.fingerprints) != dict(task.fingerprints)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("language_modeling", {"data.text.vocabulary_size": 60}),
        ("language_modeling", {"data.length": 6}),
        ("forecasting", {"data.horizon": 5}),
    ],
)
def test_ids_differ_where_something_else_is_predicted(name, changes, tmp_path):
    (tmp_path / "data").mkdir()
    CASES[name].write(tmp_path / "data")
    ids = prepared(name, tmp_path / "data").example_ids("test")
    others = prepared(name, tmp_path / "data", **changes).example_ids("test")
    assert not set(ids.tolist()) & set(others.tolist())
