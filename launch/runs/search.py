"""Searches over values of config keys with the optional package Optuna.

The study is stored in the output directory; the same command with more trials extends it. The
sampler of a trial is seeded by the number of the trial, so that an interrupted search continues as
if it had not been interrupted. Optuna: Akiba et al. 2019; its sampler TPE: Bergstra et al. 2011.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine import config as configs
from launch.engine import spaces
from launch.engine.config import Experiment
from launch.engine.spaces import Space, Value
from launch.reporting import comparison as comparisons
from launch.reporting.comparison import Outcome
from launch.runs import experiments as runs
from launch.runs.run import alone
from launch.runs.sweeps import with_values
from tasks.common.errors import UserError

# File with the study, in the output directory.
STUDY = "study.journal"
_NAME = "sweep"


def check_installed() -> None:
    """Raises if Optuna is missing.

    Raises:
      UserError: Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "--search=optuna: optuna is not installed; pip install -r requirements-optuna.txt"
        )


def run_search(
    base: Experiment,
    settings: Sequence[str],
    trials: int,
    seeds: int,
    options: runs.Options,
) -> tuple[dict[str, Outcome], int, int]:
    """Runs trials until the study has `trials` of them, counting those of earlier commands.

    The objective is the primary metric on the validation split, averaged over the seeds. If
    the run of a seed fails, its trial counts as failed, and the search continues.

    Args:
      base: experiment of the config file.
      settings: values of --set, see `launch.engine.spaces`.
      trials: number of trials of the study.
      seeds: number of seeds of each trial.
      options: settings of the runs. The study is stored in the directory `options.folder`.

    Returns:
      Outcomes by the name of the trial; the number of the signal that stopped the search, or 0; and
      the number of trials in the study, including those of earlier commands.

    Raises:
      UserError: Optuna is missing, a setting is invalid, or the directory contains another search.
    """
    check_installed()
    given = spaces.parse_spaces(configs.to_dict(base), settings)
    if not given:
        raise UserError(
            "--search=optuna: has nothing to search; write for example "
            "--set=optimizer.learning_rate=log(1e-5,1e-2)"
        )
    from optuna.trial import TrialState

    outcomes: dict[str, Outcome] = {}
    options.folder.mkdir(parents=True, exist_ok=True)
    with _quiet(), alone(options.folder):
        study = _study(base, given, seeds, options.folder)
        # Trials of earlier commands come first. An interrupted one is continued with its values.
        earlier = study.trials

        def everything() -> None:
            for trial in earlier:
                finish(trial)
            for _ in range(trials - len(earlier)):
                finish(_ask(study, base, given))

        def finish(trial: Any) -> None:
            if set(trial.params) != {space.key for space in given}:
                # The search was killed before all values of this trial were chosen.
                _tell(study, trial.number, None)
                return
            name, experiment = with_values(base, _values(given, trial.params))
            outcome = outcomes.setdefault(name, Outcome(experiment, {}, {}, {}))
            failed = study.trials[trial.number].state == TrialState.FAIL
            planned = []
            for seed in range(experiment.seed, experiment.seed + seeds):
                if failed:
                    outcome.failures.setdefault(seed, "failed in an earlier command")
                elif seed not in outcome.records and seed not in outcome.failures:
                    label = f"trial {trial.number + 1}: {name}"
                    job = runs.job_of(label, experiment, seed - experiment.seed, options)
                    planned.append((outcome, job))
            runs.run_jobs(planned, options)
            _tell(study, trial.number, outcome)

        stopped = runs.until_stopped(everything, options.say)
        return outcomes, stopped, len(study.trials)


def _tell(study: Any, number: int, outcome: Outcome | None) -> None:
    """Stores the result of a trial, or its failure, unless it is stored already."""
    from optuna.trial import TrialState

    if study.trials[number].state.is_finished():
        return
    if outcome is None or outcome.failures:
        study.tell(number, state=TrialState.FAIL)
        return
    task = configs.task_class(outcome.experiment.task)
    study.tell(number, comparisons.validation(task, outcome))


def _ask(study: Any, base: Experiment, given: Sequence[Space]) -> Any:
    """Returns a new trial; its values depend only on its number and on the earlier trials."""
    from optuna.samplers import TPESampler

    study.sampler = TPESampler(seed=(base.seed * 1_000_003 + len(study.trials)) % 2**32)
    trial = study.ask()
    for space in given:
        limits = space.range
        if limits is None:
            trial.suggest_categorical(space.key, [value.text for value in space.values])
        elif limits.integer:
            trial.suggest_int(space.key, int(limits.low), int(limits.high), log=limits.log)
        else:
            trial.suggest_float(space.key, limits.low, limits.high, log=limits.log)
    return trial


def _values(given: Sequence[Space], params: Mapping[str, Any]) -> dict[str, Value]:
    """Returns the values of a trial; numbers of a range are rounded to 4 digits."""
    found = {}
    for space in given:
        chosen, limits = params[space.key], space.range
        if limits is None:
            found[space.key] = next(value for value in space.values if value.text == chosen)
        elif limits.integer:
            found[space.key] = Value(str(chosen), int(chosen))
        else:
            number = min(max(spaces.rounded(chosen), limits.low), limits.high)
            found[space.key] = Value(f"{number:.4g}", number)
    return found


def _study(base: Experiment, given: Sequence[Space], seeds: int, folder: Path) -> Any:
    """Loads the study that is stored in a directory, or creates a new one.

    Raises:
      UserError: the study is damaged, or is a search of other settings.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    task, path = configs.task_class(base.task), folder / STUDY
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=_NAME,
            direction="maximize" if task.higher_is_better else "minimize",
            load_if_exists=True,
        )
        described = dict(study.user_attrs)
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is damaged ({type(error).__name__}); restore the file, or name another "
            f"--workdir"
        ) from None
    expected = {
        "config": configs.identity(base),
        "seeds": seeds,
        **{space.key: space.text for space in given},
    }
    for key, value in expected.items():
        study_has = described.get(key)
        if described and study_has != value:
            raise UserError(_other_search(folder, key, study_has, value))
    for key in described:
        if key not in expected:
            raise UserError(_other_search(folder, key, described[key], None))
    for key, value in expected.items():
        if not described:
            study.set_user_attr(key, value)
    return study


def _other_search(folder: Path, key: str, old: Any, new: Any) -> str:
    if key == "config":
        what = "of another config"
    elif key == "seeds":
        what = f"with --seeds={old}, not {new}"
    elif new is None:
        what = f"that also has --set={key}={old}"
    elif old is None:
        what = f"without --set={key}"
    else:
        what = f"with --set={key}={old}, not {new}"
    return f"--workdir={folder}: contains a search {what}; name another --workdir"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Makes Optuna print nothing but errors."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Parts of Optuna are marked as experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
