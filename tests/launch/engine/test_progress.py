"""Lines of progress without a terminal."""

import types

import pytest

from launch.engine import memory, progress
from launch.engine.memory import PeakMemory


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock that the test sets."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(progress, "peak_memory", lambda: PeakMemory(3 << 28, 5 << 30, 80 << 30))
    return now


def test_the_estimate_excludes_compilation(clock, capsys):
    with progress.Progress(1000, 0, "accuracy") as shown:
        clock.seconds = 60
        shown.timed(1, logged=False)
        clock.seconds = 64.5
        shown.timed(10, logged=False)
        clock.seconds = 84.5
        shown.trained(50, 0.25, 0.031)
        clock.seconds = 159.5
        shown.trained(200, 0.2, validates=True)
        shown.validated(200, 0.875)
    memory_text = "device memory 5.0 GB of 80.0 GB"
    assert capsys.readouterr().err.splitlines() == [
        "step 10/1000  2.0 steps/s  about 8:15 left, evaluations not counted",
        f"step 50/1000  2.0 steps/s  loss 0.2500  data wait 3%  {memory_text}  7:55 left",
        "step 200/1000  2.0 steps/s  loss 0.2000  validation accuracy 0.8750  data wait 0%  "
        f"{memory_text}  6:40 left",
    ]


def test_no_estimate_follows_or_precedes_a_log_line(clock, capsys):
    with progress.Progress(100, 20, "accuracy") as shown:
        shown.timed(21, logged=False)
        clock.seconds = 9
        shown.timed(30, logged=True)
        shown.trained(30, 0.5)
    assert len(capsys.readouterr().err.splitlines()) == 1
    with progress.Progress(100, 20, "accuracy") as shown:
        shown.timed(21, logged=True)
        shown.trained(21, 0.5)
        clock.seconds = 18
        shown.timed(30, logged=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 21/100  ? steps/s  loss 0.5000  ")
    assert line.endswith("  ? left")


def test_the_memory_of_the_fullest_device_counts(monkeypatch):
    import jax

    stats = ({"peak_bytes_in_use": 1 << 30, "bytes_limit": 4 << 30}, None,
             {"peak_bytes_in_use": 2 << 30})  # fmt: skip
    devices = [types.SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = memory.peak_memory()
    assert (found.device, found.limit) == (2 << 30, None)
    assert str(found) == "device memory 2.0 GB"
    monkeypatch.setattr(jax, "local_devices", lambda: devices[1:2])
    assert memory.peak_memory().device is None
    assert str(PeakMemory(100 << 20)) == "process memory 100 MB"
