"""Runs of several experiments over seeds, and the table that compares them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.engine import config as configs
from launch.engine.config import Experiment
from launch.engine.errors import Interrupted, signal_of, terminable
from launch.engine.writers import write_json
from launch.reporting import comparison as comparisons
from launch.reporting import comparison_files
from launch.reporting.comparison import Comparison, Outcome
from launch.runs.jobs import Ended, InProcess, Job, Options


@dataclasses.dataclass(frozen=True)
class Group:
    """Experiments of one task that are compared in a table.

    Attributes:
      experiments: experiments by name, the base first.
      seeds: number of seeds.
      match: whether the parameter counts are matched to that of the base.
    """

    experiments: Mapping[str, Experiment]
    seeds: int
    match: bool = False


class Finished(NamedTuple):
    """A written table.

    Attributes:
      status: exit status. It is 128 plus the number of the signal if one stopped the runs, 1 if a
        run failed, otherwise 0.
      comparison: the table.
    """

    status: int
    comparison: Comparison


def run_all(
    experiments: Mapping[str, Experiment], seeds: int, options: Options
) -> tuple[dict[str, Outcome], int]:
    """Runs every experiment with every seed, except runs that have finished.

    Args:
      experiments: experiments by name, the base first. Finished runs are found by config hash.
      seeds: number of seeds, starting at the seed of the experiment.
      options: directories, command and messages.

    Returns:
      Outcomes by name, and the number of the signal that stopped the runs, or 0.

    Raises:
      BrokenPipeError: the output pipe was closed by its reader.
    """
    outcomes = {name: Outcome(experiment, {}, {}, {}) for name, experiment in experiments.items()}
    # Seeds are the outer loop, so that an interrupted ablation can still compare all experiments.
    planned = [
        (outcome, job_of(name, outcome.experiment, offset, options))
        for offset, (name, outcome) in itertools.product(range(seeds), outcomes.items())
    ]
    return outcomes, until_stopped(lambda: run_jobs(planned, options), options.say)


def job_of(name: str, experiment: Experiment, offset: int, options: Options) -> Job:
    """Returns the job of an experiment with one seed.

    Args:
      name: name of the experiment in status lines.
      experiment: the experiment.
      offset: number to add to the seed of the experiment.
      options: options with the parent of the run directories.
    """
    seed = experiment.seed + offset
    config = configs.override(experiment, {"seed": seed})
    code = configs.identity(config)
    return Job(name, config, options.folder / f"{config.name}-seed{seed}-{code}")


def run_jobs(planned: Sequence[tuple[Outcome, Job]], options: Options) -> None:
    """Executes jobs as `options.placement` determines, and adds the results to the outcomes.

    The results in an outcome have the order of its jobs, even if the jobs end in another order.

    Raises:
      Interrupted, KeyboardInterrupt: a signal stopped the runs; checkpoints were saved.
      BrokenPipeError: the output pipe was closed by its reader.
      UserError: no process can execute the jobs.
    """
    ended: dict[Path, Ended] = {}

    def done(job: Job, result: Ended) -> None:
        ended[job.folder] = result

    try:
        (options.placement or InProcess()).run([job for _, job in planned], options, done)
    finally:
        for outcome, job in planned:
            seed, result = job.config.seed, ended.get(job.folder)
            if result or job.folder.exists():
                outcome.folders[seed] = job.folder
            if result and result.record is not None:
                outcome.records[seed] = result.record
            elif result:
                outcome.failures[seed] = result.failure


def until_stopped(runs: Callable[[], None], say: Callable[[str], Any]) -> int:
    """Calls a function; returns the number of the signal that stopped it, or 0."""
    try:
        with terminable():
            runs()
    except Interrupted as stopped:
        say(str(stopped))
        return stopped.signal_number
    except KeyboardInterrupt as stopped:
        say("stopped; the same command resumes from the last checkpoint")
        return signal_of(stopped)
    return 0


def finish(
    folder: Path,
    title: str,
    outcomes: Mapping[str, Outcome],
    stopped: int = 0,
    *,
    against_best: bool = False,
    notes: Sequence[str] = (),
) -> Finished:
    """Prints the table and writes it as table.md, table.csv, table.json and report.html.

    Args:
      folder: output directory.
      title: title of the table.
      outcomes: outcomes returned by `run_all`; the first is the base.
      stopped: number of the signal that stopped the runs, or 0. If it is not 0, the table is marked
        as partial.
      against_best: whether experiments are compared with the one that is best on validation,
        instead of the base.
      notes: further lines that explain the table.

    Returns:
      Exit status and table.
    """
    if stopped:
        title = f"{title} (partial)"
    reference, role = ("", "best") if against_best else (next(iter(outcomes)), "base")
    compared = comparisons.compare(title, outcomes, reference=reference, role=role, notes=notes)
    comparison_files.show(compared)
    failures = {
        f"{name}, seed {seed}": message
        for name, outcome in outcomes.items()
        for seed, message in outcome.failures.items()
    }
    write_json(
        folder / "table.json",
        {
            "runs": {name: list(outcome.records.values()) for name, outcome in outcomes.items()},
            "failures": failures,
            **comparison_files.as_json([compared]),
        },
    )
    written = comparison_files.write_files(folder, compared)
    print(f"report: {written[0]}")
    for run, message in failures.items():
        print(f"failed: {run}: {message}")
    return Finished(128 + stopped if stopped else int(bool(failures)), compared)
