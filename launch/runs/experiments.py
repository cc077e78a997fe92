"""Runs of several experiments over seeds, and the table that compares them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine import config as configs
from launch.engine.config import Experiment
from launch.engine.errors import Interrupted, signal_of, system_error, terminable
from launch.engine.writers import write_json
from launch.reporting import comparison as comparisons
from launch.reporting import comparison_files
from launch.reporting.comparison import Outcome
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Directories, command and messages that the runs of all experiments share.

    Attributes:
      folder: parent of the run directories, one per config hash.
      paths: directories of data sets and caches.
      command: command line to store in the records.
      say: called with a status line about each run.
      track: trackers of each run, see `launch.runs.run.run`.
      known: cache of data descriptions, see `launch.runs.run.run`.
    """

    folder: Path
    paths: Paths
    command: str
    say: Callable[[str], Any]
    track: Sequence[str] = ()
    known: dict[str, Any] = dataclasses.field(default_factory=dict)


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

    def everything() -> None:
        # Seeds are the outer loop, so that an interrupted ablation can still compare all
        # experiments.
        for offset, (name, outcome) in itertools.product(range(seeds), outcomes.items()):
            run_one(name, outcome, offset, options)

    return outcomes, until_stopped(everything, options.say)


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


def run_one(name: str, outcome: Outcome, offset: int, options: Options) -> None:
    """Runs one experiment with one seed, and adds its record or failure to the outcome.

    Args:
      name: name of the experiment in status lines.
      outcome: outcome of the experiment.
      offset: difference of the seed from that of the experiment.
      options: directories, command and messages.

    Raises:
      Interrupted: a signal stopped training; a checkpoint was saved.
      BrokenPipeError: the output pipe was closed by its reader.
    """
    from launch.runs.run import run

    seed = outcome.experiment.seed + offset
    config = configs.override(outcome.experiment, {"seed": seed})
    run_folder = options.folder / f"{config.name}-seed{seed}-{configs.identity(config)}"
    finished = (run_folder / "result.json").exists()
    options.say(f"{name}, seed {seed}: {'finished already' if finished else run_folder}")
    outcome.folders[seed] = run_folder
    try:
        outcome.records[seed] = run(
            config,
            run_folder,
            options.paths,
            options.command,
            known=options.known,
            track=options.track,
        )
    except (BrokenPipeError, Interrupted):
        raise
    except UserError as error:
        outcome.failures[seed] = str(error)
    except Exception as error:
        outcome.failures[seed] = system_error(error) or f"{type(error).__name__}: {error}"
    if seed in outcome.failures:
        options.say(f"{name}, seed {seed}: failed: {outcome.failures[seed]}")


def finish(
    folder: Path,
    title: str,
    outcomes: Mapping[str, Outcome],
    stopped: int = 0,
    *,
    against_best: bool = False,
    notes: Sequence[str] = (),
) -> int:
    """Prints the table and writes it as table.md, table.csv, table.json and report.html.

    Args:
      folder: output directory.
      title: title of the table.
      outcomes: outcomes returned by `run_all`; the first is the base.
      stopped: number of the signal that stopped the runs, which marks the table as partial, or 0.
      against_best: whether differences are from the best on validation instead of the base.
      notes: further lines that explain the table.

    Returns:
      Exit status: 128 plus the signal number, 1 if a run failed, otherwise 0.
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
    if stopped:
        return 128 + stopped
    return 1 if failures else 0
