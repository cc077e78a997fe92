"""Execution of several experiments over seeds, shared by `launch.sweep` and `launch.ablate`.

The functions read the flags that `launch.cli` defines.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch import cli
from tasks.common.errors import UserError


def placement():
    """Returns the placement given by --on; None if runs are executed in this process."""
    from launch.runs import placement as placements

    given = {"num_cpus": cli.FLAGS.cpus_per_run, "num_gpus": cli.FLAGS.gpus_per_run}
    resources = {name: value for name, value in given.items() if value is not None}
    return placements.parse(cli.FLAGS.on or "", resources)


def set_up_for(placement: Any, config: Any) -> None:
    """Sets up JAX in a command whose runs are executed by `placement`.

    With a placement, each worker sets up JAX itself, and the command uses only the CPU, so that the
    workers can use the accelerators.
    """
    if placement is None:
        cli.set_up_jax(config)
        return
    import jax

    jax.config.update("jax_platforms", "cpu")


def run_all(experiments: Mapping[str, Any], seeds: int, title: str) -> NoReturn:
    """Runs experiments over seeds, prints their table, records the runs and exits.

    With --match=parameters, the models are first adjusted to equal parameter counts.

    Args:
      experiments: experiments by name; the first one is the base.
      seeds: number of seeds.
      title: title of the table.
    """
    from launch.runs.experiments import Group

    run_groups({title: Group(experiments, seeds)}, title)


def run_groups(groups: Mapping[str, Any], title: str) -> NoReturn:
    """Runs groups of experiments like `run_all`.

    If there are several groups, each has its own directory, and they have a common page and
    ranking, see `comparison_files.write_ranking`.

    Args:
      groups: groups of experiments (`launch.runs.experiments.Group`), by the title of their table.
      title: title of the common page.
    """
    from launch.reporting import comparison_files
    from launch.runs import experiments as runs
    from launch.runs import stacked

    cli.check_recordable()
    track = cli.tracked()
    if cli.FLAGS.match_key and not cli.FLAGS.match:
        raise UserError("--match_key: needs --match=parameters")
    if cli.FLAGS.stack_seeds and cli.FLAGS.on:
        raise UserError("--stack_seeds: cannot be combined with --on; leave out one of them")
    placed = placement()
    set_up_for(placed, next(iter(next(iter(groups.values())).experiments.values())))
    if cli.FLAGS.stack_seeds:
        placed = stacked.StackedSeeds()
        for group in groups.values():
            for experiment in group.experiments.values():
                stacked.check(experiment, group.seeds, track)
    # All groups are matched before any training, so that a model whose number of parameters cannot
    # be matched is found at once.
    matched = {name: _matched(group) for name, group in groups.items()}
    options, code, found = run_options(placed, track), 0, []
    for name, (experiments, notes) in matched.items():
        folder = cli.workdir() / name if len(groups) > 1 else cli.workdir()
        outcomes, stopped = runs.run_all(
            experiments, groups[name].seeds, dataclasses.replace(options, folder=folder)
        )
        if cli.FLAGS.stack_seeds:
            notes = [*notes, *stacked.notes(outcomes)]
        done = _finished(outcomes, stopped, name, folder, notes=notes)
        found.append(done.comparison)
        code = max(code, done.status)
        if stopped:
            break
    if len(groups) > 1:
        print(f"report: {comparison_files.write_ranking(cli.workdir(), title, found)}")
    sys.exit(code)


def _matched(group: Any) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the experiments of a group, and notes about the matching of parameter counts.

    The parameter counts are matched only if the group or --match asks for it.
    """
    from launch.runs import matching

    if not (cli.FLAGS.match or group.match):
        return group.experiments, []
    found = matching.match_parameters(
        group.experiments, cli.paths(), cli.FLAGS.match_key, cli.status
    )
    return {name: match.experiment for name, match in found.items()}, matching.notes(found)


def run_options(placed: Any, track: Sequence[str]):
    """Returns the options that all runs of a sweep or an ablation share.

    Args:
      placed: result of `placement`.
      track: result of `tracked`.
    """
    from launch.runs.jobs import Options

    return Options(
        cli.workdir(),
        cli.paths(),
        cli.command(),
        cli.status,
        track,
        placement=placed,
        retries=cli.FLAGS.retries,
    )


def finish_runs(outcomes: Mapping[str, Any], stopped: int, title: str, **options: Any) -> NoReturn:
    """Records the runs of experiments, prints their table and exits.

    Args:
      outcomes: outcomes by name.
      stopped: number of the signal that stopped the runs, or 0.
      title: title of the table.
      **options: further arguments of `launch.runs.experiments.finish`.
    """
    sys.exit(_finished(outcomes, stopped, title, cli.workdir(), **options).status)


def _finished(outcomes: Mapping[str, Any], stopped: int, title: str, folder: Path, **options: Any):
    """Records the runs and prints their table; returns the result of `experiments.finish`."""
    from launch.runs import experiments as runs

    if not stopped:
        cli.record(record for outcome in outcomes.values() for record in outcome.records.values())
    return runs.finish(folder, title, outcomes, stopped, **options)
