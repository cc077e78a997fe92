"""Searches with Optuna: resumed searches, failed trials and messages. Nothing is trained."""

import importlib.util
import json

import pytest

from launch.engine import config as configs
from launch.engine.errors import Interrupted
from launch.runs import experiments, search
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tests.launch.made_runs import experiment

SETTINGS = [
    "optimizer.learning_rate=log(1e-4,1e-1)",
    "model.embedding_size=linear(8,64)",
    "model.pooling=mean,max",
    "model.dropout_rate=linear(0,0.4,3)",
]


def test_without_optuna_the_message_has_the_remedy(monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"optuna is not installed; pip install -r requirements-op"):
        search.check_installed()


def test_the_command_names_the_missing_package_or_flag(command, tmp_path):
    config = "--config=configs/text_classification.py:sst2"
    words = [config, f"--workdir={tmp_path / 'sweep'}", "--set=model.num_layers=1,2"]
    done = command("sweep", *words, "--trials=3")
    assert done.returncode == 2
    assert "--trials: needs --search=optuna" in done.stderr
    done = command("sweep", *words, "--search=optuna", "--match=parameters")
    assert "--match: cannot be combined with --search" in done.stderr
    done = command("sweep", *words, "--match_key=model.model_size")
    assert "--match_key: needs --match=parameters" in done.stderr
    if importlib.util.find_spec("optuna") is None:
        done = command("sweep", *words, "--search=optuna")
        assert done.returncode == 2
        assert "pip install -r requirements-optuna.txt" in done.stderr
        assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- with optuna


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a formula; returns the experiments in the order of training.

    `trained.stop_at` is the number of the run that an interrupt stops.
    """

    class Trained(list):
        stop_at = None
        fails = False

    done = Trained()

    def run_jobs(planned, options):
        for outcome, job in planned:
            config = job.config
            if len(done) == done.stop_at:
                done.stop_at = None
                raise Interrupted(7, 2)
            done.append(outcome.experiment)
            outcome.folders[config.seed] = job.folder
            if done.fails and config.model.pooling == "max":
                outcome.failures[config.seed] = "diverged"
                continue
            accuracy = 0.9 - abs(config.optimizer.learning_rate - 0.01)
            offset = config.seed - outcome.experiment.seed
            outcome.records[config.seed] = {"validation": {"accuracy": accuracy + 0.001 * offset}}

    monkeypatch.setattr(experiments, "run_jobs", run_jobs)
    return done


def run(folder, trials, settings=SETTINGS, seeds=1, base=None):
    options = experiments.Options(folder, Paths.default(), "command", lambda line: None)
    return search.run_search(base or experiment(), settings, trials, seeds, options)


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="requirements-optuna.txt is not installed")


def test_values_are_in_their_ranges(optuna, trained, tmp_path):
    outcomes, stopped, count = run(tmp_path, 15)
    assert (stopped, count, len(trained)) == (0, 15, 15)
    assert len(outcomes) == 15
    for config in trained:
        assert 1e-4 <= config.optimizer.learning_rate <= 1e-1
        assert isinstance(config.model.embedding_size, int)
        assert 8 <= config.model.embedding_size <= 64
        assert config.model.pooling in ("mean", "max")
        assert config.model.dropout_rate in (0, 0.2, 0.4)
    # Names have the values that are trained.
    for name, outcome in outcomes.items():
        rate = float(name.split(",")[0].removeprefix("learning_rate="))
        assert rate == outcome.experiment.optimizer.learning_rate


def test_an_interrupted_search_continues_as_if_it_had_not_been(optuna, trained, tmp_path):
    run(tmp_path / "whole", 14)
    whole = list(trained)
    trained.clear()
    trained.stop_at = 12
    _, stopped, count = run(tmp_path / "parts", 14)
    assert (stopped, count, len(trained)) == (2, 13, 12)
    earlier = list(trained)
    trained.clear()
    # The finished trials are read again, from their run directories.
    outcomes, stopped, count = run(tmp_path / "parts", 14)
    assert (stopped, count) == (0, 14)
    assert [config.name for config in trained[:12]] == [config.name for config in earlier]
    assert trained == whole
    assert len(outcomes) == 14
    trained.clear()
    run(tmp_path / "parts", 20)
    assert trained[:14] == whole
    assert len(trained) == 20


def test_the_objective_is_the_mean_on_validation(optuna, trained, tmp_path):
    outcomes, *_ = run(tmp_path, 3, seeds=2)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / search.STUDY))
    )
    study = optuna.load_study(study_name=None, storage=storage)
    assert study.direction.name == "MAXIMIZE"
    for trial, outcome in zip(study.trials, outcomes.values(), strict=True):
        values = [record["validation"]["accuracy"] for record in outcome.records.values()]
        assert trial.value == pytest.approx(sum(values) / 2)


def test_failed_trials_are_kept_and_not_repeated(optuna, trained, tmp_path):
    trained.fails = True
    outcomes, _, count = run(tmp_path, 12)
    failed = [outcome for outcome in outcomes.values() if outcome.failures]
    assert failed
    assert len(failed) < count == 12
    before = len(trained)
    again, *_ = run(tmp_path, 12)
    assert [bool(outcome.failures) for outcome in again.values()] == [
        bool(outcome.failures) for outcome in outcomes.values()
    ]
    assert len(trained) - before == 12 - len(failed)


def test_equal_combinations_are_trained_once(optuna, trained, tmp_path):
    outcomes, _, count = run(tmp_path, 9, ["model.pooling=mean,max"])
    assert (count, len(outcomes), len(trained)) == (9, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": SETTINGS[:3]}, r"that also has --set=model.dropout_rate=linear\(0,0.4,3\)"),
        ({"settings": [*SETTINGS[:3], "model.dropout_rate=0,0.1"]}, r"3\), not 0,0.1; name ano"),
        ({"seeds": 2}, "with --seeds=1, not 2"),
        ({"base": configs.override(experiment(), {"training.steps": 2000})}, "of another config"),
    ],
)
def test_another_search_in_the_directory_is_refused(optuna, trained, tmp_path, changes, message):
    run(tmp_path, 1)
    with pytest.raises(UserError, match=message):
        run(tmp_path, 2, **changes)


def test_a_search_needs_values_and_a_whole_study(optuna, trained, tmp_path):
    with pytest.raises(UserError, match="has nothing to search; write for example --set="):
        run(tmp_path, 1, [])
    (tmp_path / search.STUDY).write_text("damaged\n" + json.dumps({}) + "\n")
    with pytest.raises(UserError, match=r"study\.journal: is damaged"):
        run(tmp_path, 1)
