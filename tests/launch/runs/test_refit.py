"""Refitting on the training and validation splits: config.training.refit."""

import copy
import dataclasses
import json

import pytest

from configs.sequence_copy import get_config
from launch.engine import config as configs
from launch.runs.directory import load_predictor, load_variables, restored_task, saved_config
from launch.runs.run import run
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.sequence_copy.data import DigitData, DigitStrings
from tasks.sequence_copy.task import SequenceCopy


@pytest.fixture
def experiment(undrawn):
    config = get_config("dot")
    config.data.max_length = 5
    config.data.update(train_size=40, validation_size=24, test_size=24)
    config.model.state_size = 8
    config.training.update(
        steps=6, batch_size=8, evaluation_batch_size=8, evaluate_every=2, log_every=1, refit=True
    )
    return configs.resolve(config.to_dict())


def paths(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache", None)


def test_a_task_that_knows_no_refitting_is_named_and_nothing_is_written(experiment, tmp_path):
    with pytest.raises(UserError, match=r"config\.training\.refit: got True, but this task"):
        run(experiment, tmp_path / "run", paths(tmp_path), "command")
    assert not (tmp_path / "run").exists()


def test_the_second_training_ends_at_the_chosen_step_and_sees_validation(
    experiment, tmp_path, monkeypatch
):
    seen = []

    class Recorded(DigitStrings):
        def __getitem__(self, index):
            seen.append(self.strings[index])
            return super().__getitem__(index)

    def with_validation(task):
        both = copy.copy(task)
        train, validation = task.examples("train"), task.examples("validation")
        joined = Recorded([*train.strings, *validation.strings], train.name)
        both.dataset = DigitData({**task.dataset.splits, "train": joined})
        return both

    monkeypatch.setattr(SequenceCopy, "with_validation", with_validation)
    record = run(experiment, tmp_path / "run", paths(tmp_path), "command", with_baselines=False)
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "selection/metrics.jsonl").open()]
    metric = SequenceCopy.primary_metric
    curve = {line["step"]: line[metric] for line in lines if line["split"] == "validation"}
    assert set(curve) == {2, 4, 6}
    best = max(curve, key=lambda step: (curve[step], -step))
    assert record["steps"] == best
    assert record["validation"] == {metric: curve[best]}
    assert (folder / "report.html").exists()
    assert record["selected_by"] == f"validation {metric}, then refitted on train + validation"
    again = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [line["step"] for line in again] == list(range(1, best + 1))
    assert {line["split"] for line in again} == {"train"}
    validation = SequenceCopy.prepare(experiment.data, experiment.model, paths(tmp_path))
    assert set(seen) & set(validation.examples("validation").strings)
    # The same command does nothing, another one is refused, and the folder predicts.
    assert run(experiment, folder, paths(tmp_path), "command") == record
    other = dataclasses.replace(
        experiment, training=dataclasses.replace(experiment.training, refit=False)
    )
    with pytest.raises(UserError, match=r"differs in training\.refit"):
        run(other, folder, paths(tmp_path), "command")
    saved = saved_config(folder)
    task = restored_task(saved, folder)
    assert load_variables(task, saved, folder)[2] == best
    assert len(load_predictor(task, saved, folder)(["123", "31"])) == 2
