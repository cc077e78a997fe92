"""Language modeling by commands: training on a user file, decoding settings at prediction."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    text = "to be, or not to be: that is the question.\n" * 40
    (folder / "mine.txt").write_text(text, encoding="utf-8")
    return folder


def test_train_then_predict(folder, command):
    done = command(
        "train",
        f"--config=configs/language_modeling.py:path:{folder / 'mine.txt'}",
        f"--workdir={folder / 'run'}",
        "--config.model.num_layers=1",
        "--config.training.steps=2",
        "--config.training.evaluate_every=2",
        "--config.training.log_every=2",
    )
    assert done.returncode == 0, done.stderr
    assert "baseline kneser_ney_6" in done.stdout
    predict = [f"--workdir={folder / 'run'}", "--input=to be", "--format=json"]
    lengths = {}
    for number in (3, 70):
        done = command("predict", *predict, f"--set=model.max_new_tokens={number}")
        assert done.returncode == 0, done.stderr
        lengths[number] = len(json.loads(done.stdout)["completion"])
    assert lengths == {3: 3, 70: 70}
    done = command("predict", *predict, "--set=model.num_layers=2")
    assert done.returncode == 2
    assert "keys that can be set here: model.max_new_tokens, model.dec" in done.stderr
    assert done.stderr.count("\n") == 1
