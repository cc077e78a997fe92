"""Experiment trackers: TensorBoard for every run, and MLflow or Weights & Biases on request.

A tracker receives the config, the metrics of each logged step, the test metrics and the figures of
the report. It only mirrors a run: no result is read from it, so an error of MLflow or Weights &
Biases gives a notice, and training goes on without the tracker.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import html
import importlib.util
import io
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.engine import config as configs
from launch.engine.config import Experiment
from launch.engine.errors import Interrupted
from launch.engine.writers import read_mapping, write_json
from tasks.common.errors import UserError, say

NAMES = ("mlflow", "wandb")
"""Trackers of --track; each has a package of the same name."""
FILE = "tracking.json"
"""File of a run directory with the id of the run in each tracker."""
# Statuses of `Tracker.close`.
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Drawing(NamedTuple):
    """A figure of the report, as trackers receive it: a PNG file, or text if it has no drawing."""

    name: str
    png: bytes | None
    text: str = ""


class Result(NamedTuple):
    """The results of a finished run.

    Attributes:
      step: best step.
      metrics: metrics of the test split.
      drawings: figures of the report.
      files: files of the run directory to store, such as the report.
    """

    step: int
    metrics: Mapping[str, float]
    drawings: Sequence[Drawing]
    files: Sequence[Path]


class Tracker(abc.ABC):
    """Receiver of the metrics and results of one run."""

    @abc.abstractmethod
    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Receives metrics of a split at a step."""

    @abc.abstractmethod
    def result(self, result: Result) -> None:
        """Receives the results on the test split."""

    @abc.abstractmethod
    def close(self, status: str) -> None:
        """Ends the run with a status: "finished", "stopped" or "failed"."""


class Silent(Tracker):
    """Tracker that writes nothing, for processes other than the first of a run."""

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        pass

    def result(self, result: Result) -> None:
        pass

    def close(self, status: str) -> None:
        pass


class TensorBoard(Tracker):
    """Event files in the directory tensorboard/ of a run."""

    def __init__(self, folder: Path, config: Experiment, after: int | None = None):
        """Opens a file of events.

        Args:
          folder: run directory.
          config: the experiment, for the table of hyperparameters.
          after: step from which training continues; later events of an earlier process are
            discarded. None to keep all events.
        """
        import logging

        from tensorboardX import SummaryWriter

        # The training loop itself raises an error if the loss is not finite.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        purge = None if after is None else after + 1
        self._config = config
        # The default file names contain the time in seconds, so files that are opened within a
        # second would have the same name.
        suffix = f".{time.monotonic_ns()}"
        self._events = SummaryWriter(
            str(folder / "tensorboard"), purge_step=purge, filename_suffix=suffix
        )

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars with tags such as train/loss."""
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def result(self, result: Result) -> None:
        """Writes the test metrics, the hyperparameters, and the figures as images or texts."""
        from tensorboardX.summary import hparams

        self.scalars("test", result.step, result.metrics)
        metrics = {f"test/{name}": value for name, value in result.metrics.items()}
        writer = self._events.file_writer
        assert writer is not None
        for summary in hparams(_plain(self._config), metrics):
            writer.add_summary(summary)
        for drawing in result.drawings:
            tag = f"test/{drawing.name}"
            if drawing.png is None:
                self._events.add_text(tag, drawing.text, result.step)
            else:
                self._events.add_image(tag, _pixels(drawing.png), result.step, dataformats="HWC")

    def close(self, status: str) -> None:
        """Closes the file.

        Raises:
          UserError: the events cannot be written.
        """
        try:
            self._events.close()
        except OSError as error:
            raise UserError(
                f"{self._events.logdir}: cannot be written ({error.strerror})"
            ) from None


class _MLflow(Tracker):
    """A run of MLflow, in the experiment with the name of the task.

    The tracking server is that of MLFLOW_TRACKING_URI, or MLflow's default.
    """

    def __init__(self, folder: Path, config: Experiment, command: str, known: dict[str, Any]):
        # An unreachable server would otherwise delay every step by minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        self._client, self._metric = MlflowClient(), Metric
        self._id = known.get("run_id", "")
        if self._id:
            try:
                self._client.update_run(self._id, status="RUNNING")
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                say(f"--track=mlflow: run {self._id} is not in the store; it is created again")
        experiment = self._client.get_experiment_by_name(config.task)
        number = (
            self._client.create_experiment(config.task)
            if experiment is None
            else experiment.experiment_id
        )
        name = f"{config.data.name}, {config.name}, seed {config.seed}"
        tags = {"command": command, "workdir": str(folder)}
        run = self._client.create_run(number, tags=tags, run_name=name)
        self._id = known["run_id"] = run.info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in _plain(config).items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[first : first + 100])

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        found = [
            self._metric(re.sub(r"[^\w\-. :/]", "_", f"{split}/{name}"), value, now, step)
            for name, value in values.items()
        ]
        for first in range(0, len(found), 500):
            self._client.log_batch(self._id, metrics=found[first : first + 500])

    def result(self, result: Result) -> None:
        self.scalars("test", result.step, result.metrics)
        for file in result.files:
            self._client.log_artifact(self._id, str(file))
        with tempfile.TemporaryDirectory() as folder:
            for drawing in result.drawings:
                kind = "txt" if drawing.png is None else "png"
                path = Path(folder) / f"{drawing.name}.{kind}"
                path.write_bytes(drawing.png or drawing.text.encode())
            self._client.log_artifacts(self._id, folder, "figures")

    def close(self, status: str) -> None:
        statuses = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}
        self._client.set_terminated(self._id, statuses[status])


class _WandB(Tracker):
    """A run of Weights & Biases, in the project with the name of the task.

    Environment variables such as WANDB_API_KEY, WANDB_MODE and WANDB_PROJECT set the account, the
    mode and the project. Files are in the directory wandb/ of the run directory.
    """

    def __init__(self, folder: Path, config: Experiment, command: str, known: dict[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        known.setdefault("id", uuid.uuid4().hex[:12])
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", config.task),
            name=f"{config.data.name}, {config.name}, seed {config.seed}",
            id=known["id"],
            resume="allow",
            dir=str(folder),
            config={**_plain(config), "command": command},
            settings=wandb.Settings(silent=True, console="off"),
        )
        # The steps of a resumed run may repeat, which the step counter of wandb does not allow.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        named = {f"{split}/{name}": value for name, value in values.items()}
        self._run.log({**named, "step": step})

    def result(self, result: Result) -> None:
        self.scalars("test", result.step, result.metrics)
        self._run.summary.update({f"test/{key}": value for key, value in result.metrics.items()})
        shown = {
            f"figures/{drawing.name}": self._wandb.Html(f"<pre>{html.escape(drawing.text)}</pre>")
            if drawing.png is None
            else self._wandb.Image(_pixels(drawing.png))
            for drawing in result.drawings
        }
        self._run.log({**shown, "step": result.step})
        for file in result.files:
            self._run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == FINISHED else 1)


_KINDS = {"mlflow": _MLflow, "wandb": _WandB}


class _Mirror(Tracker):
    """Wrapper of a tracker; after the first error it prints a notice and forwards nothing more."""

    def __init__(self, name: str, make: Any):
        self._name, self._tracker = name, None
        self._tracker = self._tried(make)

    def _tried(self, call: Any) -> Any:
        try:
            return call()
        # Clients raise errors of many kinds, also of the network libraries that they use.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            say(f"--track={self._name}: {reason}; training goes on without it")
            self._tracker = None
            return None

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Forwards metrics."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.scalars(split, step, values))

    def result(self, result: Result) -> None:
        """Forwards results."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.result(result))

    def close(self, status: str) -> None:
        """Ends the run of the tracker."""
        if (tracker := self._tracker) is not None:
            self._tried(lambda: tracker.close(status))


class Prefixed(Tracker):
    """Tracker that passes the metrics of a refitted run's first training to another tracker."""

    def __init__(self, tracker: Tracker, prefix: str):
        """Initializes the tracker.

        Args:
          tracker: tracker that receives the metrics.
          prefix: prefix that is added to the names of splits.
        """
        self._tracker, self._prefix = tracker, prefix

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Forwards metrics."""
        self._tracker.scalars(f"{self._prefix}{split}", step, values)

    def result(self, result: Result) -> None:
        """Does nothing."""

    def close(self, status: str) -> None:
        """Does nothing."""


def check(names: Sequence[str]) -> None:
    """Raises unless the packages of trackers are installed.

    Args:
      names: values of --track.

    Raises:
      UserError: a tracker is unknown, or its package is not installed.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"--track={name}: unknown tracker, expected {' or '.join(NAMES)}"
                f"{configs.did_you_mean(name, NAMES)}"
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--track={name}: the package is not installed; run "
                f"pip install -r requirements-tracking.txt"
            )


@contextlib.contextmanager
def tracking(
    names: Sequence[str], folder: Path, config: Experiment, command: str
) -> Iterator[list[Tracker]]:
    """Opens the trackers of a run; closes them with the status of the run.

    If the run is resumed, each tracker continues its own run, whose id is in tracking.json.

    Args:
      names: values of --track.
      folder: run directory, which exists.
      config: the experiment.
      command: command line of the run.
    """
    known = _known(folder / FILE)
    opened: list[Tracker] = []
    for name in names:
        make = functools.partial(_KINDS[name], folder, config, command, known.setdefault(name, {}))
        opened.append(_Mirror(name, make))
    if opened:
        write_json(folder / FILE, {name: ids for name, ids in known.items() if ids})
    status = FAILED
    try:
        yield opened
        status = FINISHED
    except (KeyboardInterrupt, Interrupted):
        status = STOPPED
        raise
    finally:
        for tracker in opened:
            tracker.close(status)


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the ids of the runs in each tracker; returns {} if the file is missing or damaged."""
    found = read_mapping(path)
    return {name: dict(ids) for name, ids in found.items() if isinstance(ids, dict)}


def _plain(config: Experiment) -> dict[str, Any]:
    """Returns config values by dotted key; values that are not numbers or booleans become text."""
    found = configs.flatten(configs.to_dict(config))
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in found.items()
    }


def _pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
