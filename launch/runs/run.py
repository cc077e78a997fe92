"""Training, testing and reporting of one experiment in a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from launch.engine import config as configs
from launch.engine import monitoring, processes, sharding, trackers
from launch.engine import state as states
from launch.engine.checkpoints import finished_steps
from launch.engine.config import Experiment
from launch.engine.environment import environment
from launch.engine.evaluation import evaluate
from launch.engine.loop import SKIPPED, early_stop, train
from launch.engine.predictor import outputs_of_examples
from launch.engine.profiling import Profile
from launch.engine.stack import Member
from launch.engine.trackers import Tracker
from launch.engine.writers import check_logs, read_lines, validation_curve, write_json
from launch.reporting import baselines, figures, results
from launch.reporting.examples import choose
from launch.reporting.report import SELECTION, log_file, write_report
from launch.runs import continuing
from launch.runs.directory import prepared_task, save_outputs, saved_config
from launch.runs.provenance import Description
from tasks.common.data import summary
from tasks.common.data.paths import Paths
from tasks.common.data.splits import check_splits
from tasks.common.errors import UserError
from tasks.figures import SplitResults
from tasks.task import Task

# Lines about data that this process has printed already, such as in earlier runs of an ablation.
_printed: set[tuple[str, ...]] = set()


def run(
    config: Experiment,
    folder: Path,
    paths: Paths,
    command: str,
    with_baselines: bool = True,
    known: dict[str, Any] | None = None,
    track: Sequence[str] = (),
    profile: Profile | None = None,
    member: Member | None = None,
) -> dict[str, Any]:
    """Trains and tests one experiment and writes its report.

    If the run is finished already, only its data are verified.

    Args:
      config: the experiment.
      folder: run directory. A new one is created; a run of the same config is resumed. A run with
        fewer steps is continued, see `launch.runs.continuing`.
      paths: directories of data sets and caches.
      command: command line to store in the record.
      with_baselines: whether to evaluate the task's baselines (cached).
      known: cache of data descriptions, so that data shared by several finished runs are read only
        once.
      track: trackers of `launch.engine.trackers.NAMES` that receive metrics and results.
      profile: steps to trace; with config.training.refit, they are steps of the first training.
      member: member of a stack of seeds that are trained together; None to train this seed alone.

    Returns:
      The result record, which is also written to result.json.

    Raises:
      UserError: the directory contains a run of another config, the data cannot be read or differ
        from the run's data, or the mesh does not fit; nothing is written in these cases. Also
        raised if training diverges.
    """
    trackers.check(track)
    shorter = _check_folder(config, folder)
    if config.training.refit:
        _check_folder(_selecting(config), folder / SELECTION)
    if (folder / results.RESULT).exists() and shorter is None:
        record = results.load_result(folder / results.RESULT)
        if profile is not None:
            raise UserError(
                f"--profile={profile.given}: the run in --workdir={folder} is finished, so no step "
                "is left to trace; name another --workdir"
            )
        _verify_finished(config, folder, paths, {} if known is None else known)
        return record
    sharding.make_mesh(config.mesh)
    with first_before_others():
        task = (
            prepared_task(config, paths)
            if member is None
            else member.task(lambda: prepared_task(config, paths))
        )
    final = task.with_validation() if config.training.refit else task
    described, lines = described_data(task)
    for place, given in ((folder, final), (folder / SELECTION, task)):
        # A run without a checkpoint starts from scratch, with the present data.
        if whole := finished_steps(place / "checkpoints"):
            # Refitting up to a selected step uses no validation.
            plan = config.training
            every = 0 if plan.refit and place == folder else plan.evaluate_every
            check_logs(place, whole, every, plan.steps, plan.log_every)
            Description.of(given).check(place, "restore the data, or name another --workdir")
    # All processes have read the directory before the first one writes to it.
    processes.barrier()
    if shorter is None:
        _write_config(config, folder)
    _print_once(described, lines)
    with alone(folder):
        if shorter is not None:
            continuing.begin(shorter, config, folder)
        names = track if processes.is_first() else ()
        with trackers.tracking(names, folder, config, command) as receivers:
            selected = None
            if config.training.refit:
                selected = _select_step(config, task, folder / SELECTION, receivers, profile)
                profile = None
            return _finish(
                config,
                final,
                folder,
                paths,
                command,
                with_baselines,
                selected,
                described,
                receivers,
                profile,
                member,
            )


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Lets the first process of a run execute a block before the others, which use its caches."""
    if not processes.is_first():
        processes.barrier()
    yield
    if processes.is_first():
        processes.barrier()


def _write_config(config: Experiment, folder: Path) -> None:
    if processes.is_first():
        write_json(folder / "config.json", configs.to_dict(config))


def described_data(task: Task) -> tuple[dict[str, Any], list[str]]:
    """Returns the summary of a task's data, and the lines to print about it.

    See `tasks.common.data.summary` for the summary.

    Raises:
      UserError: a split cannot be used; see `tasks.common.data.splits.check_splits`.
    """
    counts = task.summary()
    check_splits("config.data", counts)
    columns = {split: task.columns(split) for split in counts}
    found = summary.summarize(counts, columns, task.notes)
    pairs = summary.facts(found)
    if metric := task.describe_metric(task.primary_metric):
        pairs.append(("metric", f"{task.primary_metric}, {metric}"))
    width = max(len(name) for name, _ in pairs)
    lines = [f"{name:{width}}  {text}" for name, text in pairs]
    return found, lines + [f"warning: {warning}" for warning in found["warnings"]]


def _print_once(described: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Prints the lines that describe the data of a run.

    If this process has already printed the same lines for another run, only the first ones are
    printed, which have the number of examples of each split.
    """
    shown = lines[: len(described["splits"])] if tuple(lines) in _printed else lines
    _printed.add(tuple(lines))
    for line in shown:
        _say(line)


def _say(line: str) -> None:
    """Prints a line on the first process."""
    if processes.is_first():
        print(line, file=sys.stderr, flush=True)


def _selecting(config: Experiment) -> Experiment:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, refit=False))


def _verify_finished(config: Experiment, folder: Path, paths: Paths, known: dict[str, Any]) -> None:
    """Raises an error if the data of a finished run have changed since it was trained."""
    kept = f"{folder / 'result.json'} and report.html contain the recorded results"
    values = configs.to_dict(config)
    key = json.dumps([values["task"], values["data"], values["model"], config.training.refit])
    if getattr(config.model, "init_from", ""):
        # The description depends on the run directory, from which the tokenizer is then read.
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


def _select_step(
    config: Experiment,
    task: Task,
    folder: Path,
    receivers: Sequence[Tracker],
    profile: Profile | None,
) -> int:
    """Trains on the training split alone; returns the step that is best on validation."""
    config = _selecting(config)
    _write_config(config, folder)
    _write_environment(task, folder)
    prefixed = [trackers.Prefixed(tracker, f"{SELECTION}/") for tracker in receivers]
    best = train(task, config, folder, trackers=prefixed, profile=profile)[2]
    _say(
        f"step {best} is best on validation; training again for {best} steps on train and "
        "validation"
    )
    return best


def _write_environment(task: Task, folder: Path) -> None:
    if not processes.is_first():
        return
    write_json(folder / "environment.json", environment())
    if not finished_steps(folder / "checkpoints"):
        Description.of(task).write(folder)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Locks a run directory, so that no other command trains in it at the same time.

    Only the first process of a run takes the lock.

    Raises:
      UserError: another process is training in the directory.
    """
    if not processes.is_first():
        yield
        return
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(
            f"--workdir={folder}: another process is training in this directory; wait, or name "
            f"another --workdir"
        ) from None


def _finish(
    config: Experiment,
    task: Task,
    folder: Path,
    paths: Paths,
    command: str,
    with_baselines: bool,
    selected: int | None,
    described: dict[str, Any],
    receivers: Sequence[Tracker],
    profile: Profile | None,
    member: Member | None,
) -> dict[str, Any]:
    _write_environment(task, folder)
    steps, variables, best = train(task, config, folder, selected, receivers, profile, member)
    size = config.training.evaluation_batch_size
    if selected is None:
        validation = evaluate(task, steps, variables, "validation", size).metrics
    else:
        curve = processes.from_first(
            lambda: list(validation_curve(folder / SELECTION, task.primary_metric))
        )
        validation = {task.primary_metric: dict(map(tuple, curve))[selected]}
    test = evaluate(task, steps, variables, "test", size)
    shown, note = choose(task, test, "test", config.seed)
    indices = [example.index for example in shown]
    attention, predicted = outputs_of_examples(task, steps, variables, "test", indices)

    def report() -> dict[str, Any]:
        save_outputs(folder, task, test, "test")
        drawn = task.figures(
            SplitResults(test.statistics, test.outputs, "test", shown, attention, predicted)
        )
        timing = _timing(folder)
        record = results.make_record(
            config,
            task,
            metrics=test.metrics,
            validation=validation,
            curve=_validation_curve(task, folder),
            baselines=baselines.baseline_metrics(task, paths, test) if with_baselines else {},
            steps_taken=best,
            seconds=sum(map(monitoring.run_seconds, timing)),
            parameters=states.parameter_count(variables),
            command=command,
            training=_training_facts(config, task, folder),
            data_summary=described,
            timing=monitoring.summarize(timing),
        )
        write_report(folder, task, record, len(task.scored_examples("test")), drawn, note)
        _publish(config, folder, trackers.Result(
            best,
            test.metrics,
            [trackers.Drawing(*each) for each in figures.files(drawn)],
            [folder / "report.html", folder / "predictions-test.csv"],
        ), receivers)  # fmt: skip
        results.save_result(record, folder)
        return record

    return processes.from_first(report)


def _timing(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of timing.jsonl; for a refitted run, also those of the first training."""
    return [
        line
        for place in (folder / SELECTION, folder)
        for line in read_lines(place / "timing.jsonl")
    ]


def _publish(
    config: Experiment, folder: Path, result: trackers.Result, receivers: Sequence[Tracker]
) -> None:
    """Gives the results to TensorBoard and to other trackers."""
    events = trackers.TensorBoard(folder, config)
    for tracker in (events, *receivers):
        tracker.result(result)
    events.close(trackers.FINISHED)


def _training_facts(config: Experiment, task: Task, folder: Path) -> dict[str, Any]:
    """Returns the facts about training for the record, such as the last step and early stopping."""
    plan = config.training
    log = log_file(folder)
    found: dict[str, Any] = {
        "planned_steps": plan.steps,
        "last_step": max(line["step"] for line in read_lines(log)),
    }
    if plan.patience:
        stopped = early_stop(log.parent, task, plan)
        found |= {"patience": plan.patience, "stopped_early": stopped is not None}
    if earlier := continuing.earlier_steps(folder):
        found["continued_from"] = earlier
    logs = {log, folder / "metrics.jsonl"}
    if skipped := sum(line.get(SKIPPED, 0) for each in logs for line in read_lines(each)):
        found[SKIPPED] = int(skipped)
    return found


def _validation_curve(task: Task, folder: Path) -> list[tuple[int, float]]:
    """Returns the step and the primary metric, with five digits, of each validation."""
    return [
        (line["step"], float(f"{line[task.primary_metric]:.5g}"))
        for line in read_lines(log_file(folder))
        if line.get("split") == "validation" and task.primary_metric in line
    ]


def _check_folder(config: Experiment, folder: Path) -> Experiment | None:
    """Checks that an experiment can be trained in a directory.

    Returns:
      The experiment of the run in the directory if `config` continues it with more steps or more
      patience; None otherwise.

    Raises:
      UserError: the directory contains a run of another config.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder}: is a file; name a directory")
    saved = saved_config(folder, required=False)
    if saved is None:
        if (folder / "checkpoints").exists():
            raise UserError(
                f"--workdir={folder}: has checkpoints but no config.json; name another --workdir"
            )
        return None
    if continuing.is_longer(saved, config):
        continuing.check(saved, config, folder)
        return saved
    if configs.identity(saved) != configs.identity(config):
        if saved.task != config.task:
            raise UserError(
                f"--workdir={folder}: contains a run of {saved.task}, but this config is one of "
                f"{config.task}; name another --workdir"
            )
        differing = [
            key
            for key in configs.differences(saved, config)
            if not key.startswith(("mesh.", "training.on_nan", "training.max_consecutive_skips"))
        ]
        raise UserError(
            f"--workdir={folder}: contains a run of another config, which differs in "
            f"{', '.join(differing)}; name another --workdir"
        )
    return None
