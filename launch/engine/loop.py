"""The training loop of all tasks and mechanisms."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.engine import processes
from launch.engine import state as states
from launch.engine.checkpoints import Checkpoints
from launch.engine.clock import Clock
from launch.engine.config import Experiment, TrainingConfig
from launch.engine.errors import Interrupted
from launch.engine.evaluation import Evaluation, evaluate
from launch.engine.nonfinite import Guard
from launch.engine.profiling import Profile, Profiler
from launch.engine.progress import ESTIMATE_AFTER, Progress
from launch.engine.stack import Member
from launch.engine.steps import Steps, make_steps
from launch.engine.supervision import SUPERVISED
from launch.engine.trackers import FINISHED, Silent, TensorBoard, Tracker
from launch.engine.writers import Writers, best_step, read_mapping, validation_curve, write_json
from tasks.common.checksums import sealed, unsealed
from tasks.common.data.pipeline import numbered_batches, train_iterator
from tasks.task import Task

# Score of a checkpoint that was not evaluated. It is below all other scores, so that such
# a checkpoint is kept only while it is the newest.
UNRANKED = -1e30
# File that an interrupted run leaves: the metrics of the steps since the last line of
# metrics.jsonl.
WINDOW = "window.json"
# Metric with the number of skipped steps since the last line of metrics.jsonl.
SKIPPED = "skipped_steps"


def train(
    task: Task,
    config: Experiment,
    folder: Path,
    stop_after: int | None = None,
    trackers: Sequence[Tracker] = (),
    profile: Profile | None = None,
    member: Member | None = None,
) -> tuple[Steps, Any, int]:
    """Trains, or resumes training, until the last step or until patience is exhausted.

    Each validation is followed by a checkpoint of the state and the data iterator, so that a killed
    run resumes with the next batch.

    Args:
      task: prepared task, with its data.
      config: the experiment.
      folder: run directory.
      stop_after: last step of a run that trains on the training and validation splits, and is
        therefore not validated; None for other runs. Learning rate schedules still span
        config.training.steps.
      trackers: receivers of the metrics besides TensorBoard.
      profile: steps to trace.
      member: member of a stack of seeds that are trained together; None to train this seed alone.

    Returns:
      The compiled functions, the variables at the step with the best validation metric (or at
      `stop_after`), and that step.

    Raises:
      UserError: a loss, a gradient or the train state is not finite (see `Guard`), no checkpoint
        can be read, or the run does not train the steps of `profile`.
      Interrupted: SIGINT or SIGTERM was received.
    """
    plan, metric = config.training, task.primary_metric
    last = stop_after or plan.steps
    sign = 1 if task.higher_is_better else -1
    clock = Clock(member.size if member else None)
    steps = make_steps(task, config) if member is None else member.steps()
    sizes: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "seed": config.seed,
        "buckets": task.buckets,
        "multiple": steps.batch_shards,
    }
    batches = train_iterator(task.examples("train"), shards=steps.local_shards, **sizes)
    numbered = numbered_batches(task.examples("train"), **sizes)
    checkpoints = Checkpoints(folder / "checkpoints")
    guard = Guard(
        folder, config, steps.abstract_state, lambda step: numbered(step - 1), checkpoints.wait
    )
    notes: list[str] = []
    step, state = checkpoints.restore_newest(steps.abstract_state, batches, notes.append)
    profiler = Profiler(profile, folder, step, last)
    checkpoints.delete_after(step)
    # Only the first process writes files.
    first_process = processes.is_first()
    events = TensorBoard(folder, config, after=step) if first_process else Silent()
    writers = Writers(folder if first_process else None, step, [events, *trackers])
    if state is None:
        state = steps.init()
    stop = _Signals()
    try:
        display = (True, "") if member is None else (member.first, member.label)
        with Progress(last, step, metric, *display) as progress, stop:
            guard.say = progress.say
            for note in notes:
                progress.say(note)
            if step:
                progress.say(f"resuming from step {step}")
            writers.timing(step, **clock.started(step, writers.lost_seconds))
            window = _saved_window(folder, step)
            first = step
            over = _agreed_stop(folder, task, plan)
            while step < last and not over:
                profiler.before(step + 1, clock.drain)
                with clock.waiting():
                    batch = next(batches)
                state = clock.run(steps.train, state, steps.place(batch))
                step += 1
                profiler.after(step, clock.drain)
                if step - first in (1, ESTIMATE_AFTER):
                    clock.drain()
                    progress.timed(step, step % plan.log_every == 0 or step == last)
                logs = step % plan.log_every == 0 or step == last
                # A run on several processes stops only at log steps. The processes may receive a
                # signal at different steps, and exchange it at the log steps.
                between = 0 if logs or processes.count() > 1 else stop.received
                if not (logs or between):
                    continue
                state, metrics = clock.finish(state)
                state = steps.resolve(state)
                window += jax.device_get(metrics)
                finite = guard.finite(step, window)
                if between:
                    writers.timing(step, **clock.lap(step))
                    values = {"step": step, "rows": _as_json(window)}
                    write_json(folder / WINDOW, sealed(values))
                    writers.seal(step)
                    _save_interrupted(checkpoints, guard, step, state, batches)
                    raise Interrupted(step, between)
                means = _means(finite, len(window))
                window = []
                writers.metrics(step, "train", means)
                timing = clock.lap(step)
                writers.timing(step, **timing)
                saves = step % plan.evaluate_every == 0 or step == last
                wait = timing.get("data_wait_fraction", 0.0)
                loss = means.get("loss", math.nan)
                progress.trained(step, loss, wait, validates=saves and not stop_after)
                if saves:
                    guard.check(step, state)
                if saves and stop_after:
                    writers.seal(step)
                    with clock.saving():
                        checkpoints.save(step, state, batches, step)
                elif saves:
                    result = _validate(task, steps, state, plan.evaluation_batch_size)
                    writers.metrics(step, "validation", result.metrics)
                    writers.seal(step)
                    with clock.saving():
                        checkpoints.save(step, state, batches, sign * result.metrics[metric])
                    progress.validated(step, result.metrics[metric])
                    over = _agreed_stop(folder, task, plan)
                    writers.timing(step, **clock.lap(step, "evaluation_seconds"))
                # A signal to any of the processes stops all of them after the same step.
                if received := processes.largest(stop.received or 0):
                    writers.seal(step)
                    _save_interrupted(checkpoints, guard, step, state, batches)
                    raise Interrupted(step, received)
            if over:
                progress.say(str(over))
        checkpoints.wait()
        if first_process:
            (folder / WINDOW).unlink(missing_ok=True)
        best = stop_after or processes.from_first(
            lambda: best_step(folder, metric, task.higher_is_better)
        )
        if best != step:
            state = checkpoints.restore(best, steps.abstract_state)
        return steps, states.evaluation_variables(state), best
    finally:
        profiler.stop()
        writers.close()
        events.close(FINISHED)
        checkpoints.close()


def _validate(task: Task, steps: Steps, state: Any, batch_size: int) -> Evaluation:
    return evaluate(task, steps, states.evaluation_variables(state), "validation", batch_size)


@dataclasses.dataclass(frozen=True)
class EarlyStop:
    """Result of a training that ended because the validation metric did not improve.

    Attributes:
      step: last step.
      best_step: step with the best validation metric.
      patience: evaluations without improvement after which training stops.
      steps: planned number of steps.
      metric: name of the validation metric.
    """

    step: int
    best_step: int
    patience: int
    steps: int
    metric: str

    def __str__(self) -> str:
        return (
            f"stopped early at step {self.step} of {self.steps}: validation {self.metric} was best "
            f"at step {self.best_step}, and not better in the {self.patience} evaluations after it "
            f"(config.training.patience={self.patience})"
        )


def early_stop(folder: Path, task: Any, plan: TrainingConfig) -> EarlyStop | None:
    """Returns an `EarlyStop` if the patience of a training is exhausted; None if it may continue.

    Args:
      folder: directory of the training, with metrics.jsonl.
      task: task or its class, which defines the metric that selects the best step.
      plan: config of the training.

    Raises:
      UserError: metrics.jsonl is damaged.
    """
    if not plan.patience:
        return None
    curve = list(validation_curve(folder, task.primary_metric))
    sign = 1 if task.higher_is_better else -1
    best = int(np.argmax([sign * value for _, value in curve])) if curve else 0
    if len(curve) - best <= plan.patience or curve[-1][0] >= plan.steps:
        return None
    steps = curve[-1][0], curve[best][0]
    return EarlyStop(*steps, plan.patience, plan.steps, task.primary_metric)


def _agreed_stop(folder: Path, task: Task, plan: TrainingConfig) -> EarlyStop | None:
    """Calls `early_stop` on the first process, which has the logs; returns its result on all."""

    def found() -> dict[str, Any] | None:
        stop = early_stop(folder, task, plan)
        return None if stop is None else dataclasses.asdict(stop)

    values = processes.from_first(found)
    return None if values is None else EarlyStop(**values)


def _means(finite: list[dict[str, Any]], count: int) -> dict[str, float]:
    """Averages the metrics over the steps that were not skipped.

    If steps were skipped, their number is added as a metric.

    Args:
      finite: metrics of the steps that were not skipped.
      count: number of all steps.
    """
    names = finite[0] if finite else ()
    means = {
        name: float(np.mean([row[name] for row in finite], dtype=np.float64)) for name in names
    }
    return means if len(finite) == count else {**means, SKIPPED: float(count - len(finite))}


def _as_json(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in rows]


def _saved_window(folder: Path, step: int) -> list[Any]:
    """Returns the metrics since the last log line, if a signal interrupted the run at this step."""
    try:
        saved = unsealed(read_mapping(folder / WINDOW))
    except ValueError:
        return []
    return saved["rows"] if step and saved["step"] == step else []


def _save_interrupted(
    checkpoints: Checkpoints, guard: Guard, step: int, state: Any, batches: Any
) -> None:
    checkpoints.wait()
    if step not in checkpoints.steps():
        guard.check(step, state)
        checkpoints.save(step, state, batches, UNRANKED)
    checkpoints.wait()


class _Signals:
    """Recorder of SIGINT or SIGTERM, after which training stops; a second one kills the process."""

    def __init__(self):
        self.received: int | None = None
        self._ignored_until = 0.0

    def __enter__(self):
        self._before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:
            # Only the main thread can handle signals; it calls `forward_signal`.
            _in_threads.add(self)
        return self

    def _note(self, number: int, _: Any = None) -> None:
        now = time.monotonic()
        if self.received is not None and now > self._ignored_until:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self.received is None and os.environ.get(SUPERVISED):
            # A scheduler may send a signal to this process and to its supervisor, which passes it
            # on, so that it arrives twice.
            self._ignored_until = now + 2
        self.received = number

    def __exit__(self, *_: object) -> None:
        _in_threads.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)


# Recorders of the training loops that do not run in the main thread.
_in_threads: set[_Signals] = set()


def forward_signal(number: int) -> None:
    """Makes the training loops of other threads stop at their next log step, with a checkpoint."""
    for recorder in tuple(_in_threads):
        if recorder.received is None:
            recorder._note(number)
