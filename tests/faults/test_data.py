"""Damaged user files, prepared data sets and caches: the same data, or one line."""

import json
import random
import shutil

import pytest

from launch.engine import config as configs
from launch.runs.directory import prepared_task
from launch.runs.provenance import Description
from tasks.common.data import sources
from tasks.common.data.paths import Paths
from tests.faults.experiments import TASKS
from tests.faults.tally import LOST, REFUSED, SEED, SURVIVED, attempt, damaged, damages
from tests.faults.test_kills import same_results
from tests.faults.test_system import PUBLIC, unreachable
from tests.small_data import prepare_small

pytestmark = pytest.mark.faults


def outcome_of(found, same) -> tuple[str, str]:
    """Returns the outcome of an attempt, and what is wrong; `same` compares its result."""
    if found.bug:
        return LOST, found.bug
    if found.message:
        return REFUSED, found.message
    difference = same(found.result)
    return (LOST, difference) if difference else (SURVIVED, "")


@pytest.mark.parametrize("task", [task for task in TASKS if task != "sequence_copy"])
def test_damaged_user_files_are_not_resumed_on(task, cases, unfinished, whole, tally):
    case, rng, kind = cases[task], random.Random(f"{SEED} {task}"), "user file of a resumed run"
    folder = unfinished(task)
    files = sorted(path for path in case.data.rglob("*") if path.is_file())
    for path in rng.sample(files, min(len(files), 2)):
        for damage, content in damages(path.read_bytes(), rng):
            copy = folder.with_name(f"{folder.name}-copy")
            shutil.copytree(folder, copy)
            with damaged(path, content):
                found = attempt(lambda copy=copy: case.train(copy))
            outcome, detail = outcome_of(
                found, lambda _, copy=copy: same_results(copy, whole(task))
            )
            shutil.rmtree(copy)
            name = str(path.relative_to(case.data))
            tally.add(kind, task, f"{name} {damage}", outcome, detail)
    lost = [each for each in tally.lost(kind) if each["task"] == task]
    assert not lost, lost


def described(config, paths):
    """Returns the description of the data, as data.json and assets.json have it."""
    found = Description.of(prepared_task(config, paths))
    return json.dumps([found.data, found.assets], sort_keys=True)


@pytest.mark.parametrize("task", PUBLIC)
def test_damaged_prepared_data(task, tally, tmp_path, monkeypatch):
    """Damages each file of a prepared data set, whose sources cannot be had again."""
    monkeypatch.setattr(sources, "_raw", unreachable)
    name, file = PUBLIC[task]
    kind, rng = "file of a prepared data set", random.Random(f"{SEED} {task}")
    paths, config = Paths(tmp_path / "data", tmp_path / "cache", None), configs.load_file(file)
    prepare_small(name, paths)
    expected = described(config, paths)
    (folder,) = (path.parent for path in paths.data_dir.rglob("dataset_info.json"))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in sorted(folder.iterdir()):
        for damage, content in damages(path.read_bytes(), rng):
            with damaged(path, content):
                found = attempt(lambda: described(config, paths))
            outcome, detail = outcome_of(
                found, lambda text: "" if text == expected else "other examples"
            )
            tally.add(kind, task, f"{path.name} {damage}", outcome, detail)
            # A damaged data set is removed to prepare it again.
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(copy, folder)
    lost = [each for each in tally.lost(kind) if each["task"] == task]
    assert not lost, lost


def test_damaged_caches(cases, tally, tmp_path):
    """A damaged tokenizer or baseline is fitted again."""
    from launch.runs.run import run

    task, kind, rng = "text_classification", "file of a cache", random.Random(SEED)
    paths, config = Paths(tmp_path / "data", tmp_path / "cache", None), cases[task].config
    config = configs.override(config, {"training.steps": 2, "training.evaluate_every": 2})

    def trained(number):
        record = run(config, tmp_path / f"run{number}", paths, "command")
        known = ("accuracy", "macro_f1")
        baselines = {name: [values[each] for each in known]
                     for name, values in record["baselines"].items()}  # fmt: skip
        return json.dumps([record["metrics"], baselines], sort_keys=True)

    expected = trained(0)
    files = sorted((paths.cache_dir / "tokenizers").iterdir())
    files += sorted((paths.cache_dir / "baselines").iterdir())[:1]
    for number, path in enumerate(files, 1):
        for which, (damage, content) in enumerate(damages(path.read_bytes(), rng)):
            with damaged(path, content):
                found = attempt(lambda at=f"{number}-{which}": trained(at))
            outcome, detail = outcome_of(
                found, lambda text: "" if text == expected else f"{text} instead of {expected}"
            )
            tally.add(kind, task, f"{path.parent.name} {damage}", outcome, detail)
    assert not tally.lost(kind), tally.lost(kind)
