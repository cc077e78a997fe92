"""A run directory of an earlier version still evaluates, predicts and is not trained again.

tests/launch/data/earlier_run was trained on user files before processors and the key "tokenizer" of
assets.json existed.
"""

import json
import pathlib
import shutil

import pytest

from launch.runs.directory import load_predictor, restored_task, saved_config
from launch.runs.evaluation import evaluate_run
from launch.runs.run import run
from tasks.common.data.paths import Paths

EARLIER = pathlib.Path(__file__).parents[1] / "data" / "earlier_run"
FOLDER = pathlib.Path("run")


@pytest.fixture
def paths(tmp_path, monkeypatch):
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Paths(tmp_path / "data", tmp_path / "cache", None)


def test_evaluates(paths):
    assert "encoder" in json.loads((FOLDER / "assets.json").read_text())
    recorded = json.loads((FOLDER / "result.json").read_text())
    found = evaluate_run(saved_config(FOLDER), FOLDER, "test", paths)
    assert found["step"] == 4
    assert found["metrics"] == pytest.approx(recorded["metrics"], rel=1e-4)


def test_predicts(paths):
    config = saved_config(FOLDER)
    task = restored_task(config, FOLDER)
    (answer,) = load_predictor(task, config, FOLDER)(["a lovely film"])
    assert answer["label"] == "good"
    assert answer["probabilities"]["good"] == pytest.approx(0.8603, abs=2e-4)


def test_is_finished(paths):
    before = (FOLDER / "result.json").read_bytes()
    record = run(saved_config(FOLDER), FOLDER, paths, "command")
    assert record == json.loads(before)
    assert (FOLDER / "result.json").read_bytes() == before
