"""One run directory on 2, 1 and 2 processes: lost processes, SIGTERM, and the very next batches."""

import json
import signal
import time

import pytest

from launch.engine.checkpoints import finished_steps
from launch.engine.supervision import LOST
from launch.runs.directory import prepared_task, saved_config
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import train_iterator
from tests.launch.distributed.group import Group

EVALUATE, LOG, STEPS, BATCH = 10, 5, 30, 16


def lines(folder, split):
    """Returns the steps of the lines of a split in metrics.jsonl."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(row) for row in path.read_text().splitlines(keepends=True)
            if row.endswith("\n")]  # fmt: skip
    return [row["step"] for row in rows if row["split"] == split]


class Numbered(Group):
    """Processes that train in one directory and write their batches to a file each."""

    def __init__(self, flags, folder, name, count):
        self.files = [folder.parent / f"{folder.name}-{name}-{index}" for index in range(count)]
        module = "tests.launch.distributed.numbered"
        super().__init__([[module, str(file), *flags, f"--workdir={folder}"]
                          for file in self.files])  # fmt: skip

    def batches(self):
        """Returns numbers and ids of the batches that each process has read."""
        return [[json.loads(row) for row in file.read_text().splitlines()] for file in self.files]


@pytest.fixture(scope="module")
def groups(tiny, cache, tmp_path_factory):
    """Trains on two processes until one is killed, on one until SIGTERM, and on two to the end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [
        *tiny,
        f"--cache_dir={cache}",
        "--nobaselines",
        f"--config.training.steps={STEPS}",
        f"--config.training.evaluate_every={EVALUATE}",
        f"--config.training.log_every={LOG}",
    ]
    found = {}
    group = Numbered(flags, folder, "killed", 2)
    # A line after the first checkpoint.
    saved = folder / "checkpoints" / str(EVALUATE)
    group.wait_for(lambda: saved.exists() and EVALUATE + LOG in lines(folder, "train"))
    group.processes[1].kill()
    began = time.monotonic()
    ends = group.ended(90)
    found["killed"] = group, ends, time.monotonic() - began
    newest = finished_steps(folder / "checkpoints")[-1]
    group = Numbered(flags, folder, "one", 1)
    group.wait_for(lambda: group.files[0].exists())
    group.processes[0].send_signal(signal.SIGTERM)
    found["one"] = group, group.ended(300), None
    group = Numbered(flags, folder, "two", 2)
    found["two"] = group, group.ended(500), None
    return folder, found, newest


@pytest.mark.slow
def test_a_process_that_loses_another_ends_with_one_line_within_a_minute(groups):
    _, found, _ = groups
    _, ((status, printed), _), seconds = found["killed"]
    assert status == LOST == 75
    assert seconds < 60
    errors = [line for line in printed if not line.startswith(("step ", "train ", "validation ",
              "test ", "sizes ", "unknown ", "duplicates ", "metric ", " "))]  # fmt: skip
    assert len(errors) == 1, "\n".join(errors)
    assert errors[0].startswith("error: --distributed=127.0.0.1:")
    assert "another process of the run ended; the same command continues" in errors[0]


@pytest.mark.slow
def test_the_same_command_continues_on_other_numbers_of_processes(groups):
    folder, found, newest = groups
    ((status, printed),) = found["one"][1]
    assert status == 128 + signal.SIGTERM, printed
    assert f"resuming from step {newest}" in printed
    ends = found["two"][1]
    assert [status for status, _ in ends] == [0, 0], ends
    assert ends[1][1] == [], "only the first process prints"
    record = json.loads((folder / "result.json").read_text())
    assert record["training"]["last_step"] == STEPS
    assert lines(folder, "validation") == [EVALUATE, 2 * EVALUATE, STEPS]
    assert lines(folder, "train") == list(range(LOG, STEPS + 1, LOG))


@pytest.mark.slow
def test_the_very_next_batches_are_read(groups, cache):
    """Batch n has the examples of one uninterrupted process, in each of the three parts."""
    folder, found, newest = groups
    config = saved_config(folder)
    task = prepared_task(config, Paths.default(cache_dir=cache))
    whole = train_iterator(
        task.examples("train"), batch_size=BATCH, seed=config.seed, buckets=task.buckets
    )
    assert len(task.buckets) > 1
    expected = [next(whole)["id"].tolist() for _ in range(STEPS)]
    begins = 0
    for name, (group, _, _) in found.items():
        parts = group.batches()
        numbers = [[number for number, _ in part] for part in parts]
        assert all(each == list(range(begins, begins + len(each))) for each in numbers), name
        for rows in zip(*parts, strict=False):
            ids = [example for _, local in rows for example in local]
            assert ids == expected[rows[0][0]], name
        # The first part lost the steps after its checkpoint.
        begins = newest if name == "killed" else begins + len(numbers[0])
    assert begins == STEPS
