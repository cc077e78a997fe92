"""Every file of a run directory damaged in turn: the previous checkpoint, or one line."""

import random
import shutil

import jax
import numpy as np
import pytest

from launch.engine.checkpoints import Checkpoints
from launch.engine.steps import make_steps
from launch.runs.directory import prepared_task
from tasks.common.data.pipeline import train_iterator
from tests.faults.experiments import TASKS
from tests.faults.tally import LOST, REFUSED, SEED, SURVIVED, attempt, damaged, damages
from tests.faults.test_kills import same_results

pytestmark = pytest.mark.faults
STEPS = (18, 24)
# Files of a run directory that training reads.
RUN_FILES = ("config.json", "metrics.jsonl", "metrics.sums.json", "timing.jsonl", "data.json",
             "assets.json", "environment.json", "checkpoints.sums.json")  # fmt: skip


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("task", TASKS)
def test_every_file_of_a_checkpoint(task, cases, unfinished, tally):
    """The newest checkpoint is damaged; state and data iterator are those of the one before it."""
    case, folder, rng = cases[task], unfinished(task), random.Random(f"{SEED} {task}")
    config = case.config
    prepared = prepared_task(config, case.paths)
    steps = make_steps(prepared, config)

    def iterator():
        return train_iterator(
            prepared.examples("train"), batch_size=config.training.batch_size, seed=config.seed,
            buckets=prepared.buckets, multiple=steps.batch_shards,
        )  # fmt: skip

    def restored():
        checkpoints, batches, notes = Checkpoints(folder / "checkpoints"), iterator(), []
        try:
            step, state = checkpoints.restore_newest(steps.abstract_state, batches, notes.append)
            return step, jax.device_get(state), batches.get_state(), notes
        finally:
            checkpoints.close()

    def expected(step):
        checkpoints, batches = Checkpoints(folder / "checkpoints"), iterator()
        try:
            state = checkpoints.restore(step, steps.abstract_state, batches)
            return jax.device_get(state), batches.get_state()
        finally:
            checkpoints.close()

    undamaged = {step: expected(step) for step in STEPS}
    kind = "file of the newest checkpoint"
    for path in files_of(folder / "checkpoints" / str(STEPS[1])):
        name = str(path.relative_to(folder))
        for damage, content in damages(path.read_bytes(), rng):
            if content == path.read_bytes():
                # The file is empty.
                continue
            with damaged(path, content):
                found = attempt(restored)
            outcome, detail = judge(found, undamaged)
            tally.add(kind, task, f"{name} {damage}", outcome, detail)
    lost = [each for each in tally.lost(kind) if each["task"] == task]
    assert not lost, lost[:5]


def judge(found, undamaged):
    """Returns the outcome of a restored state, and what is wrong with it."""
    if found.bug:
        return LOST, found.bug
    if found.message:
        return REFUSED, found.message
    step, state, position, notes = found.result
    if step not in undamaged:
        return LOST, f"step {step} was restored"
    if step == STEPS[0] and not (len(notes) == 1 and f"checkpoints/{STEPS[1]}" in notes[0]):
        hidden = "the damaged checkpoint is not named"
        # Without its commit file a checkpoint is one that was never completed.
        return (SURVIVED, "") if not notes else (LOST, f"{hidden}: {notes}")
    try:
        jax.tree.map(np.testing.assert_array_equal, state, undamaged[step][0])
    except AssertionError:
        return LOST, f"another state at step {step}"
    return (SURVIVED, "") if position == undamaged[step][1] else (LOST, "another data position")


@pytest.mark.parametrize("task", ["text_classification"])
def test_damaged_run_directories_are_resumed_or_refused(task, cases, whole, unfinished, tally):
    """Trains on, in this process, after the damage; the results must not differ silently."""
    case, rng = cases[task], random.Random(f"{SEED} run {task}")
    kind, template = "file of the run directory", unfinished(task)
    files = [template / name for name in RUN_FILES if (template / name).exists()]
    newest = files_of(template / "checkpoints" / str(STEPS[1]))
    sampled = rng.sample(newest, 4)
    for path in [*files, *sampled]:
        name = str(path.relative_to(template))
        given = list(damages(path.read_bytes(), rng))
        for damage, content in rng.sample(given, 1) if path in sampled else given:
            folder = template.with_name("damaged")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(template, folder)
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
            found = attempt(lambda folder=folder: case.train(folder))
            detail = found.bug or found.message
            outcome = LOST if found.bug else REFUSED if found.message else SURVIVED
            if outcome == SURVIVED and (detail := same_results(folder, whole(task))):
                outcome = LOST
            tally.add(kind, task, f"{name} {damage}", outcome, detail)
    assert not tally.lost(kind), tally.lost(kind)


def test_damaged_results_of_a_finished_run(cases, whole, tally, tmp_path):
    """The command verifies a finished run: it repeats the result, or names the file."""
    task = "text_classification"
    case, rng, folder = cases[task], random.Random(SEED), tmp_path / "run"
    shutil.copytree(whole(task), folder)
    kind, expected = "file of a finished run", case.train(folder)
    for name in ("result.json", "result.sums.json", "config.json", "data.json", "assets.json"):
        for damage, content in damages((folder / name).read_bytes(), rng):
            with damaged(folder / name, content):
                found = attempt(lambda: case.train(folder))
            detail = found.bug or found.message
            outcome = LOST if found.bug else REFUSED if found.message else SURVIVED
            if outcome == SURVIVED and found.result["metrics"] != expected["metrics"]:
                outcome, detail = LOST, "other metrics"
            tally.add(kind, task, f"{name} {damage}", outcome, detail)
            shutil.rmtree(folder)
            shutil.copytree(whole(task), folder)
    assert not tally.lost(kind), tally.lost(kind)
