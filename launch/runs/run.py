"""A run folder from beginning to end: what train, sweep and ablate do for one experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine import sharding
from launch.engine import state as states
from launch.engine.checkpoints import finished_steps
from launch.engine.config import Experiment
from launch.engine.environment import environment
from launch.engine.evaluation import Chosen, Evaluation, evaluate, gather, portions
from launch.engine.loop import train
from launch.engine.writers import (
    best_step,
    check_logs,
    read_lines,
    validation_curve,
    write_json,
)
from launch.reporting import baselines, results
from launch.reporting.report import SELECTION, write_report
from launch.runs.provenance import Description, saved_assets
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import evaluation_batches
from tasks.common.data.splits import check_splits
from tasks.common.errors import UserError
from tasks.common.pretrained import Pretrained
from tasks.figures import Figure
from tasks.task import Task


def run(
    config: Experiment,
    folder: Path,
    paths: Paths,
    command: str,
    with_baselines: bool = True,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, tests and reports one experiment; a finished one is only verified.

    Args:
      config: the experiment.
      folder: run directory; new, or holding a run of the same config, which is then resumed.
      paths: where data is kept.
      command: as typed, for the record.
      with_baselines: fit the task's cheap baselines (cached) and put them beside.
      known: descriptions of data that this process has read, so that several finished runs on the
        same data read them once.

    Returns:
      The result record, as in result.json.

    Raises:
      UserError: the directory holds another config's run, the data cannot be read or differ from
        those of the run, the mesh does not fit, or training diverges. Nothing has been written in
        the first three cases.
    """
    _check_folder(config, folder)
    if config.training.refit:
        _check_folder(_selecting(config), folder / SELECTION)
    if (folder / "result.json").exists():
        record = results.load_result(folder / "result.json")
        _verify_finished(config, folder, paths, {} if known is None else known)
        return record
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(mesh, "batch_size", config.training.batch_size)
    sharding.check_batch(mesh, "evaluation_batch_size", config.training.evaluation_batch_size)
    task = prepared_task(config, paths)
    final = task.with_validation() if config.training.refit else task
    described = described_splits(task)
    for place, given in ((folder, final), (folder / SELECTION, task)):
        # Without a checkpoint nothing was learned, and the run begins with the data as they are.
        if whole := finished_steps(place / "checkpoints"):
            # A training up to a chosen step looks at no validation.
            plan = config.training
            every = 0 if plan.refit and place == folder else plan.evaluate_every
            check_logs(place, whole, every, plan.steps)
            Description.of(given).check(place, "restore the data, or name another --workdir")
    write_json(folder / "config.json", configs.to_dict(config))
    for line in described:
        print(line, file=sys.stderr, flush=True)
    with alone(folder):
        chosen = _choose(config, task, folder / SELECTION) if config.training.refit else None
        return _finish(config, final, folder, paths, command, with_baselines, chosen)


def described_splits(task: Task) -> list[str]:
    """Returns one line per split with what it holds.

    Raises:
      UserError: a split cannot be used; see `tasks.common.data.splits.check_splits`.
    """
    summary = task.summary()
    check_splits("config.data", summary)
    width = max(map(len, summary))
    return [f"{split:{width}}  {counts}" for split, counts in summary.items()]


def _selecting(config: Experiment) -> Experiment:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, refit=False))


def _verify_finished(config: Experiment, folder: Path, paths: Paths, known: dict[str, Any]) -> None:
    """Refuses to repeat the results of a finished run whose data are not as they were."""
    kept = f"{folder / 'result.json'} and report.html hold what was recorded"
    values = configs.to_dict(config)
    key = json.dumps([values["task"], values["data"], values["model"], config.training.refit])
    if getattr(config.model, "init_from", ""):
        # Its tokenizer is then read from the run directory.
        key += str(folder)
    if key not in known:
        try:
            task = prepared_task(config, paths, folder)
        except UserError as error:
            raise UserError(
                f"--workdir={folder}: the run is finished, but its data cannot be verified "
                f"({error}); restore the data; {kept}"
            ) from None
        final = task.with_validation() if config.training.refit else task
        known[key] = Description.of(final)
    known[key].check(folder, f"restore the data, or name another --workdir; {kept}")


def _choose(config: Experiment, task: Task, folder: Path) -> int:
    """Best step on validation of a training on train alone, in a run folder of its own."""
    config = _selecting(config)
    write_json(folder / "config.json", configs.to_dict(config))
    _write_surroundings(task, folder)
    best = train(task, config, folder)[2]
    print(f"step {best} is best on validation: from the start again up to it, on train and "
          "validation together", file=sys.stderr, flush=True)  # fmt: skip
    return best


def _write_surroundings(task: Task, folder: Path) -> None:
    write_json(folder / "environment.json", environment())
    if not finished_steps(folder / "checkpoints"):
        Description.of(task).write(folder)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the run folder against a second training in it.

    Raises:
      UserError: another process trains there.
    """
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            # Windows has no flock; there nobody looks after this.
            pass
        except OSError:
            raise UserError(
                f"--workdir={folder}: another process is training there; wait, or name another"
            ) from None
        yield


def _finish(
    config: Experiment,
    task: Task,
    folder: Path,
    paths: Paths,
    command: str,
    with_baselines: bool,
    chosen: int | None,
) -> dict[str, Any]:
    _write_surroundings(task, folder)
    steps, variables, best = train(task, config, folder, until=chosen)
    seconds = sum(
        line.get("seconds", 0) + line.get("evaluation_seconds", 0)
        for place in (folder / SELECTION, folder)
        if (place / "timing.jsonl").exists()
        for line in read_lines(place / "timing.jsonl")
    )
    size = config.training.evaluation_batch_size
    if chosen is None:
        validation = evaluate(task, steps, variables, "validation", size).metrics
    else:
        curve = validation_curve(folder / SELECTION, task.primary_metric)
        validation = {task.primary_metric: dict(curve)[chosen]}
    test = evaluate(task, steps, variables, "test", size)
    save_outputs(folder, task, test, "test")
    attention = first_attention(task, steps, variables, "test")
    record = results.make_record(
        config,
        task,
        metrics=test.metrics,
        validation=validation,
        baselines=baselines.baseline_metrics(task, paths, test) if with_baselines else {},
        steps_taken=best,
        seconds=seconds,
        parameters=states.parameter_count(variables),
        command=command,
    )
    write_report(folder, task, record, test, attention)
    # Last, for it says that the run is finished.
    write_json(folder / "result.json", record)
    return record


def _check_folder(config: Experiment, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder}: is a file; name a folder")
    saved = saved_config(folder, required=False)
    if saved is None:
        if (folder / "checkpoints").exists():
            raise UserError(
                f"--workdir={folder}: has checkpoints but no config.json; name another --workdir"
            )
        return
    if configs.identity(saved) != configs.identity(config):
        differing = [
            key for key in configs.differences(saved, config) if not key.startswith("mesh.")
        ]
        raise UserError(
            f"--workdir={folder}: holds a run of another config, which differs in "
            f"{', '.join(differing)}; name another --workdir"
        )


def saved_config(folder: Path, required: bool = True) -> Experiment | None:
    """The experiment of a run folder.

    Raises:
      UserError: there is no run in the folder, or its config.json is not one.
    """
    path = folder / "config.json"
    if not path.exists():
        if not required:
            return None
        raise UserError(f"--workdir={folder}: no run is there (no config.json); train one first")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); name another folder") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not the config of a run; name another folder")
    try:
        return configs.resolve(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_variables(task: Task, config: Experiment, folder: Path) -> tuple[Any, Any, int]:
    """Compiled steps and the variables of a run's best validation step, and that step; of a
    refitted run those of its last.

    Raises:
      UserError: the folder has no checkpoint, or the best one cannot be read.
    """
    from launch.engine.checkpoints import Checkpoints
    from launch.engine.steps import make_steps

    best = _step_to_load(task, config, folder)
    steps = make_steps(task, config)
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        state = checkpoints.restore(best, steps.abstract_state)
    return steps, states.evaluation_variables(state), best


def _step_to_load(task: Task, config: Experiment, folder: Path) -> int:
    """The best step on validation; of a refitted run the last one."""
    whole = finished_steps(folder / "checkpoints")
    if not whole:
        raise UserError(f"--workdir={folder}: no checkpoint is there yet; train first")
    if config.training.refit:
        return max(whole)
    check_logs(folder, whole, config.training.evaluate_every, config.training.steps)
    curve = dict(validation_curve(folder, task.primary_metric))
    if not curve:
        raise UserError(f"--workdir={folder}: no checkpoint is there yet; train first")
    best = best_step(folder, task.primary_metric, task.higher_is_better)
    if best in whole or (folder / "checkpoints" / str(best)).exists():
        return best
    # The run was stopped while it wrote that checkpoint.
    sign = 1 if task.higher_is_better else -1
    found = max(whole, key=lambda step: (sign * curve.get(step, -sign * math.inf), -step))
    print(
        f"--workdir={folder}: the checkpoint of the best step {best} was never written; step "
        f"{found} is used",
        file=sys.stderr,
        flush=True,
    )
    return found


def prepared_task(config: Experiment, paths: Paths, trained: Path | None = None) -> Task:
    """The task with its data, and where config.model.init_from names a run, with what that learned.

    Args:
      config, paths: of the experiment.
      trained: its run folder where weights are there already: the run that it started from is not
        needed any more.

    Raises:
      UserError: the data cannot be had, or the run to start from cannot be read or does not fit.
    """
    options = {}
    if source := getattr(config.model, "init_from", ""):
        if trained is None:
            options["pretrained"] = _pretrained(config, Path(source))
        else:
            options["assets"] = saved_assets(trained)
    return configs.task_class(config.task).prepare(config.data, config.model, paths, **options)


def _pretrained(config: Experiment, folder: Path) -> Pretrained:
    import jax

    try:
        saved = saved_config(folder)
        # Laid out as this run is; the layout changes no weight.
        training = dataclasses.replace(config.training, refit=saved.training.refit)
        placed = dataclasses.replace(saved, mesh=config.mesh, training=training)
        variables = load_variables(restored_task(saved, folder), placed, folder)[1]
    except UserError as error:
        reason = str(error).removeprefix(f"--workdir={folder}: ")
        raise UserError(f"config.model.init_from={folder}: {reason}") from None
    params = jax.device_get(variables["params"])
    return Pretrained(folder, saved.task, saved.data, saved.model, saved_assets(folder), params)


def restored_task(config: Experiment, folder: Path) -> Task:
    """The task of a run folder, able to predict but without data.

    Raises:
      UserError: assets.json is missing, damaged or another task's.
    """
    assets = saved_assets(folder)
    try:
        return configs.task_class(config.task).restore(config.data, config.model, assets)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'assets.json'}: not what {config.task} wrote "
            f"({type(error).__name__}: {error}); bring the file back, or train anew"
        ) from None


def check_assets(task: Task, folder: Path) -> None:
    """Refuses data that differ from those that the run of a directory was trained on.

    Raises:
      UserError: data, labels or tokenizer differ.
    """
    remedy = "restore the data, or train a run on these in another --workdir"
    Description.of(task).check(folder, remedy)


class Predictor:
    """A run's best weights, ready for batches of raw inputs."""

    def __init__(self, task: Task, config: Experiment, folder: Path):
        """Args: task restored from the folder's assets; its experiment; the run folder."""
        self._task = task
        self._batch_size = config.training.evaluation_batch_size
        self._model_name = config.model.name
        self._steps, self._variables, self.step = load_variables(task, config, folder)

    def __call__(self, raw: Sequence[str]) -> list[dict[str, Any]]:
        """An answer for each input; see `Task.describe`."""
        return self._task.describe(raw, self._gathered(raw, self._steps.outputs))

    def with_pictures(self, raw: Sequence[str]) -> tuple[list[dict[str, Any]], list[list[Figure]]]:
        """Answers, and figures for each input; see `Task.pictures`.

        Raises:
          UserError: the task or its model draws nothing.
        """
        if type(self._task).pictures is Task.pictures:
            raise UserError(
                "--figures: this task draws none of its predictions; leave the flag out"
            )
        outputs = self._gathered(raw, self._steps.outputs)
        attention = self._gathered(raw, self._steps.attention)
        drawn = self._task.pictures(raw, outputs, attention)
        if len(raw) and not any(drawn):
            raise UserError(
                f"--figures: config.model.name={self._model_name} has nothing to draw of its "
                "predictions; leave the flag out"
            )
        return self._task.describe(raw, outputs), drawn

    def _gathered(self, raw: Sequence[str], step: Any) -> dict[str, np.ndarray]:
        return gather(
            (ids, step(self._variables, self._steps.place(batch)))
            for ids, batch in self._batches(self._task.inputs(raw))
        )

    def _batches(self, examples: Any) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Ids and batches; what is much longer than the rest goes in batches of its own, of fewer
        rows.
        """
        least = int(np.prod([self._steps.mesh.shape[axis] for axis in ("data", "fsdp")]))
        for chosen, rows in portions(examples, self._batch_size, least):
            part = Chosen(examples, chosen)
            for batch in evaluation_batches(part, batch_size=rows, buckets=self._task.buckets):
                yield np.where(batch["id"] < 0, -1, chosen[batch["id"]]), batch


def save_outputs(folder: Path, task: Task, evaluation: Evaluation, split: str) -> None:
    """Outputs of every example, for paired comparisons and a closer look."""
    correct = task.correctness(evaluation.outputs, split)
    told = {
        "correctness": correct,
        "overlap": task.overlap,
        "example_ids": task.example_ids(split),
    }
    path = folder / f"outputs-{split}.npz"
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **told, **evaluation.outputs)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def first_attention(task: Task, steps: Any, variables: Any, split: str) -> dict[str, np.ndarray]:
    """Attention weights of the first examples of a split, by name."""
    import jax

    size = 8 * int(np.prod([steps.mesh.shape[axis] for axis in ("data", "fsdp")]))
    examples = task.examples(split)
    examples = Chosen(examples, range(min(size, len(examples))))
    for batch in evaluation_batches(examples, batch_size=size, buckets=_longest(task)):
        weights = jax.device_get(steps.attention(variables, steps.place(batch)))
        order = np.argsort(batch["id"][batch["id"] >= 0])
        return {name: np.asarray(value)[batch["id"] >= 0][order] for name, value in weights.items()}
    return {}


def _longest(task: Task) -> list[Any] | None:
    return None if task.buckets is None else [task.buckets[-1]]
