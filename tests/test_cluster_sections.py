"""docs/CLUSTER.md: the commands on stacked seeds and monitoring run as they stand."""

import json
import re

import pytest

from tasks.common.data.paths import Paths
from tests import small_data
from tests.launch.conftest import ROOT
from tests.pages import Shell, commands, launched

SECTIONS = ("Stacked seeds", "Monitoring")
SHORT = [
    "--config.training.steps=20",
    "--config.training.batch_size=4",
    "--config.training.evaluation_batch_size=8",
    "--config.training.evaluate_every=10",
    "--config.training.log_every=10",
]


def section(title: str) -> str:
    text = (ROOT / "docs" / "CLUSTER.md").read_text(encoding="utf-8")
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


@pytest.mark.slow
def test_commands_run_as_they_stand(server, tmp_path):
    paths, folder = Paths(tmp_path / "data", tmp_path / "cache"), tmp_path / "work"
    small_data.prepare_small("sst2", paths)
    folder.mkdir()
    trains = ("train", "sweep")
    shell = Shell(server, folder, paths, lambda words: SHORT if launched(words) in trains else [])
    shell.run([words for title in SECTIONS for words in commands(section(title))])
    assert shell.ran == ["sweep", "compare", "train"]
    assert len(list(folder.glob("runs/stacked/*/result.json"))) == 3
    assert list(folder.glob("runs/profiled/profile/**/*.trace.json.gz"))


def test_keys_of_the_table_are_those_of_a_line(tmp_path):
    from launch.engine import monitoring, writers
    from launch.engine.clock import Clock

    log = writers.Writers(tmp_path, 0)
    clock = Clock()
    log.timing(0, **clock.started(0, 1.0))
    clock.run(lambda state, batch: (None, None), None, None)
    clock.run(lambda state, batch: (None, None), None, None)
    with clock.saving():
        pass
    log.timing(2, compile_seconds=1.0, **clock.lap(2))
    log.timing(2, **clock.lap(2, "evaluation_seconds"))
    log.close()
    lines = (tmp_path / "timing.jsonl").read_text().splitlines()
    keys = {key for line in lines for key in json.loads(line)} - {"step"}
    table = re.findall(r"^\| (`.*?) \|", section("Monitoring"), re.M)
    named = re.findall(r"`(\w+)`", " ".join(table))
    named = {f"step_seconds{key}" if key.startswith("_") else key for key in named}
    # A CPU does not report its memory.
    assert keys <= named
    assert named - keys <= {"device_memory_mb", "peak_device_memory_mb"}
    assert {monitoring.step_key(percent) for percent in monitoring.PERCENTILES} <= named
