"""Trackers: TensorBoard events, errors of a tracker, resumed runs, and local stores of others."""

import contextlib
import dataclasses
import io
import json
import struct
import time
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from launch.engine import trackers
from launch.engine.config import load_file
from launch.engine.errors import Interrupted
from launch.engine.trackers import Drawing, Result
from tasks.common.errors import UserError


@pytest.fixture(scope="module")
def config():
    return load_file("configs/text_classification.py:sst2")


@pytest.fixture
def result(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(buffer, format="PNG")
    report = tmp_path / "report.html"
    report.write_text("<h1>report</h1>")
    drawings = [Drawing("01-matrix", buffer.getvalue()), Drawing("02-text", None, "a <b>")]
    return Result(20, {"accuracy": 0.75, "precision_c++": 0.5}, drawings, [report])


def events(folder):
    """Yields the events of all files of a run, in the format of TFRecord files."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def values(folder):
    return {(event.step, value.tag): value for event in events(folder)
            for value in event.summary.value}  # fmt: skip


def test_tensorboard_has_scalars_hyperparameters_and_figures(config, result, tmp_path):
    board = trackers.TensorBoard(tmp_path, config, after=0)
    board.scalars("train", 10, {"loss": 0.5})
    board.close("finished")
    board = trackers.TensorBoard(tmp_path, config)
    board.result(result)
    board.close("finished")
    found = values(tmp_path)
    assert found[10, "train/loss"].simple_value == 0.5
    assert found[20, "test/accuracy"].simple_value == 0.75
    image = found[20, "test/01-matrix"].image
    assert (image.height, image.width) == (4, 6)
    assert found[20, "test/02-text/text_summary"].tensor.string_val[0] == b"a <b>"
    begun = found[0, "_hparams_/session_start_info"].metadata.plugin_data.content
    assert b"optimizer.learning_rate" in begun
    assert b"data.name" in begun
    metrics = found[0, "_hparams_/experiment"].metadata.plugin_data.content
    assert b"test/accuracy" in metrics


class Fake(trackers.Tracker):
    """A tracker in memory, which fails at a chosen call."""

    made: ClassVar[list] = []
    failing = ""

    def __init__(self, folder, config, command, known):
        self.calls, self.ids = [], dict(known)
        known.setdefault("run_id", f"run{len(self.made)}")
        self.made.append(self)
        self._called("init")

    def _called(self, name, *values):
        self.calls.append((name, *values))
        if name == self.failing:
            raise ConnectionError("no route\nto host")

    def scalars(self, split, step, values):
        self._called("scalars", split, step, dict(values))

    def result(self, result):
        self._called("result", result)

    def close(self, status):
        self._called("close", status)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(Fake, "failing", "")
    monkeypatch.setitem(trackers._KINDS, "mlflow", Fake)
    return Fake


@contextlib.contextmanager
def interrupted(name, folder, config):
    """Tracks a run that a signal stops at the end of the block."""
    manager = trackers.tracking([name], folder, config, "cmd")
    (tracker,) = manager.__enter__()
    yield tracker
    stopped = Interrupted(1, 2)
    assert not manager.__exit__(Interrupted, stopped, None)


def test_resumed_runs_go_on_in_the_same_run(fake, config, tmp_path):
    with interrupted("mlflow", tmp_path, config) as tracker:
        tracker.scalars("train", 1, {"loss": 1.0})
    with trackers.tracking(["mlflow"], tmp_path, config, "x") as found:
        trackers.Prefixed(found[0], "selection/").scalars("train", 2, {"loss": 0.5})
    with pytest.raises(ZeroDivisionError), trackers.tracking(["mlflow"], tmp_path, config, "x"):
        raise ZeroDivisionError
    first, second, third = fake.made
    assert first.calls[1:] == [("scalars", "train", 1, {"loss": 1.0}), ("close", "stopped")]
    assert second.calls[1:] == [
        ("scalars", "selection/train", 2, {"loss": 0.5}), ("close", "finished")
    ]  # fmt: skip
    assert third.calls[1:] == [("close", "failed")]
    assert [first.ids, second.ids, third.ids] == [{}, {"run_id": "run0"}, {"run_id": "run0"}]
    ids = json.loads((tmp_path / trackers.FILE).read_text())
    assert ids == {"mlflow": {"run_id": "run0"}}
    # A damaged file is no reason to stop.
    (tmp_path / trackers.FILE).write_text("[")
    with trackers.tracking(["mlflow"], tmp_path, config, "x"):
        pass
    assert fake.made[-1].ids == {}


@pytest.mark.parametrize("failing", ["init", "scalars", "result", "close"])
def test_errors_of_a_tracker_end_no_training(failing, fake, config, result, tmp_path, capsys):
    fake.failing = failing
    with trackers.tracking(["mlflow"], tmp_path, config, "x") as (tracker,):
        for step in (1, 2):
            tracker.scalars("train", step, {"loss": 1.0})
        tracker.result(result)
    notice = "--track=mlflow: no route to host; training goes on without it\n"
    assert capsys.readouterr().err == notice
    # Nothing is sent after the error.
    assert fake.made[0].calls[-1][0] == failing
    assert [call[0] for call in fake.made[0].calls].count("scalars") <= 2


def test_missing_packages_have_a_remedy(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    remedy = r"not installed; run pip install -r requirements-tracking\.txt"
    with pytest.raises(UserError, match=rf"^--track=wandb: the package is {remedy}$"):
        trackers.check(["wandb"])
    with pytest.raises(UserError, match=r"--track=mlfow: unknown tracker, expected mlflow or wandb"
                       r" \(did you mean 'mlflow'\?\)"):  # fmt: skip
        trackers.check(["mlfow"])


def _track(name, folder, config, result):
    """Tracks a run that is interrupted, resumed and finished."""
    with interrupted(name, folder, config) as tracker:
        tracker.scalars("train", 10, {"loss": 0.5})
        tracker.scalars("train", 20, {"loss": 0.4})
    # Directories of Weights & Biases are named by the second.
    time.sleep(1.1)
    with trackers.tracking([name], folder, config, "cmd") as (tracker,):
        tracker.scalars("train", 20, {"loss": 0.3})
        tracker.scalars("validation", 20, {"accuracy": 0.8})
        tracker.result(result)


def test_mlflow_in_a_local_store(config, result, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="requirements-tracking.txt is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    _track("mlflow", tmp_path, config, result)
    assert "goes on without" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("text_classification")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == f"sst2, {config.name}, seed 0"
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.learning_rate"] == str(config.optimizer.learning_rate)
    assert run.data.tags["command"] == "cmd"
    assert run.data.metrics["test/accuracy"] == 0.75
    assert run.data.metrics["test/precision_c__"] == 0.5
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in losses) == [
        (10, 0.5), (20, 0.3), (20, 0.4)
    ]  # fmt: skip
    stored = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert stored == {"report.html", "figures"}
    drawn = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert drawn == {"figures/01-matrix.png", "figures/02-text.txt"}


def test_a_deleted_store_of_mlflow_gets_a_new_run(config, result, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow", reason="requirements-tracking.txt is not installed")
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store{number}.db")
        with trackers.tracking(["mlflow"], tmp_path, config, "cmd") as (tracker,):
            tracker.scalars("train", 10, {"loss": 0.5})
        known = json.loads((tmp_path / trackers.FILE).read_text())
        run = mlflow.MlflowClient().get_run(known["mlflow"]["run_id"])
        assert run.data.metrics == {"train/loss": 0.5}
    assert "is not in the store; it is created again" in capsys.readouterr().err


def test_an_unreachable_server_of_mlflow_gives_a_notice(config, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason="requirements-tracking.txt is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with trackers.tracking(["mlflow"], tmp_path, config, "cmd") as (tracker,):
        tracker.scalars("train", 10, {"loss": 0.5})
    notice = capsys.readouterr().err
    assert notice.count("training goes on without it") == 1


def _log_records(content):
    """Yields the records of a LevelDB log: blocks of 32 kB with checksum, length and kind."""
    position, data = 7, b""
    content = bytes(7) + content
    while position + 7 <= len(content):
        if (rest := 32768 - position % 32768) < 7:
            position += rest
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        # Whole records and last parts.
        if kind in (1, 4):
            yield data
            data = b""


def test_weights_and_biases_offline(config, result, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="requirements-tracking.txt is not installed")
    from wandb.proto import wandb_internal_pb2 as records

    monkeypatch.setenv("WANDB_MODE", "offline")
    _track("wandb", tmp_path, config, result)
    assert "goes on without" not in capsys.readouterr().err
    known = json.loads((tmp_path / trackers.FILE).read_text())["wandb"]["id"]
    logs = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{known}.wandb"))
    assert len(logs) == 2
    history, codes, configured = [], [], set()
    for log in logs:
        for data in _log_records(log.read_bytes()[7:]):
            record = records.Record.FromString(data)
            if record.run.run_id:
                assert record.run.run_id == known
                assert record.run.project == "text_classification"
                configured |= {item.key for item in record.run.config.update}
            if record.history.item:
                keys = {i.key or "/".join(i.nested_key): json.loads(i.value_json)
                        for i in record.history.item}  # fmt: skip
                history.append({k: v for k, v in keys.items() if not k.startswith("_")})
            if record.HasField("exit"):
                codes.append(record.exit.exit_code)
    assert history[:4] == [
        {"train/loss": 0.5, "step": 10},
        {"train/loss": 0.4, "step": 20},
        {"train/loss": 0.3, "step": 20},
        {"validation/accuracy": 0.8, "step": 20},
    ]
    assert history[4]["test/accuracy"] == 0.75
    # Media have several values each, such as type and path.
    drawn = {key.removesuffix("/_type") for key in history[5] if key.endswith("/_type")}
    assert drawn == {"figures/01-matrix", "figures/02-text"}
    assert codes == [1, 0]
    assert "optimizer.learning_rate" in configured


def test_configs_are_plain_values(config):
    plain = trackers._plain(dataclasses.replace(config, seed=3))
    assert plain["seed"] == 3
    assert all(isinstance(value, bool | int | float | str) for value in plain.values())
