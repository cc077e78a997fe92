"""Step times, goodput and traces: arithmetic by hand, and the messages of --profile."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from launch.engine import clock as clocks
from launch.engine import monitoring, profiling, writers
from launch.reporting import report
from tasks.common.errors import UserError

# A run that was killed: 10 s start, 90 s training with 20 s compilation, 10 % data wait and 1 s
# saving, 25 s evaluation; then 15 s start after 60 s of lost lines, and 100 s training.
KILLED = [
    {"step": 0, "start_seconds": 10.0},
    {"step": 50, "seconds": 90.0, "data_wait_fraction": 0.1, "compile_seconds": 20.0,
     "save_seconds": 1.0, "step_seconds_p50": 1.0, "peak_memory_mb": 200.0},
    {"step": 50, "evaluation_seconds": 25.0, "save_seconds": 3.0, "peak_memory_mb": 300.0},
    {"step": 50, "start_seconds": 15.0, "lost_seconds": 60.0, "peak_memory_mb": 100.0},
    {"step": 100, "seconds": 100.0, "data_wait_fraction": 0.0, "step_seconds_p50": 2.0,
     "peak_memory_mb": 250.0},
]  # fmt: skip


def test_goodput_is_the_fraction_of_useful_time():
    # 90 - 20 - 9 - 1 = 60 useful seconds, then 100; 10 + 90 + 25 + 75 + 100 = 300 in all.
    assert monitoring.goodput(KILLED) == pytest.approx(160 / 300)
    assert monitoring.goodput([]) is None
    assert monitoring.summarize(KILLED) == {
        "goodput": round(160 / 300, 4),
        "wall_seconds": 300.0,
        "useful_seconds": 160.0,
        "data_wait_seconds": 9.0,
        "compile_seconds": 20.0,
        "evaluation_seconds": 25.0,
        "save_seconds": 4.0,
        "start_seconds": 25.0,
        "lost_seconds": 60.0,
        "step_seconds_p50": 1.5,
        "peak_memory_mb": 300.0,
    }


def test_seconds_of_stacked_seeds_are_those_of_one():
    lines = [{"seconds": 6.0}, {"seconds": 8.0, "stacked_seeds": 4}, {"start_seconds": 9.0}]
    lines += [{"evaluation_seconds": 3.0, "stacked_seeds": 2}]
    assert sum(map(monitoring.run_seconds, lines)) == 9.5
    assert monitoring.summarize(lines)["stacked_seeds"] == 4


def test_lines_of_earlier_versions_are_summarized():
    lines = [{"step": 5, "seconds": 8.0}, {"step": 5, "evaluation_seconds": 2.0}]
    found = monitoring.summarize(lines)
    assert (found["goodput"], found["wall_seconds"]) == (0.8, 10.0)
    assert "step_seconds_p50" not in found


def test_percentiles_are_interpolated():
    # The positions of p50, p90 and p99 in 0.1, ..., 1.1 are 5, 9 and 9.9.
    found = monitoring.percentiles([n / 10 for n in range(11, 0, -1)])
    assert found == {"step_seconds_p50": 0.6, "step_seconds_p90": 1.0, "step_seconds_p99": 1.09}
    assert monitoring.percentiles([]) == {}


def test_removed_lines_count_as_lost(tmp_path):
    first = writers.Writers(tmp_path, 0)
    first.timing(0, start_seconds=10.0)
    first.timing(10, seconds=30.0)
    first.timing(20, seconds=40.0, data_wait_fraction=0.25)
    first.timing(20, evaluation_seconds=20.0)
    first.close()
    second = writers.Writers(tmp_path, 10)
    assert second.lost_seconds == 60.0
    second.timing(10, start_seconds=5.0, lost_seconds=second.lost_seconds)
    second.timing(20, seconds=45.0)
    second.close()
    goodputs = [line["goodput"] for line in writers.read_lines(tmp_path / "timing.jsonl")]
    # 30 of 40, then of 105, then 75 of 150 seconds.
    assert goodputs == [0.0, 0.75, round(30 / 105, 4), 0.5]
    # From the start again, all lines are lost.
    third = writers.Writers(tmp_path, 0)
    third.close()
    assert third.lost_seconds == 150.0


def test_clock_measures_between_completions(monkeypatch):
    """Times are those of a fake monotonic clock: each step takes 2 s, the first compiles for 8."""
    current = [0.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: current[0])

    def advance(seconds):
        current[0] += seconds

    monkeypatch.setattr(clocks.jax, "block_until_ready", lambda _: advance(2.0))
    # A stack calls the step function in this thread.
    clock = clocks.Clock(1)
    advance(5.0)
    assert clock.started(0, 0.0) == {"start_seconds": 5.0}

    def step(compiles, _):
        if compiles:
            clock._compilations.append(8.0)
            advance(8.0)
        return None, None

    for number in range(5):
        with clock.waiting():
            advance(1.0 if number == 3 else 0.0)
        clock.run(step, number == 0, None)
    with clock.saving():
        advance(4.0)
    # 8 s of compilation, five steps of 2 s, 1 s of waiting and 4 s of saving.
    assert clock.lap(5) == {
        "seconds": 23.0,
        "steps_per_second": round(5 / 23, 3),
        "data_wait_fraction": round(1 / 23, 4),
        # Step 1 is left out; the others completed after 2, 3 (with the wait), 6 (saving) and 2 s.
        "step_seconds_p50": 2.5,
        "step_seconds_p90": 5.1,
        "step_seconds_p99": 5.91,
        "compile_seconds": 8.0,
        "save_seconds": 4.0,
    }
    advance(3.0)
    assert clock.lap(5, "evaluation_seconds") == {"evaluation_seconds": 3.0}


def test_clock_notices_a_compilation():
    clock = clocks.Clock()
    clock.started(0, 0.0)
    step = jax.jit(lambda x, _: (x + time.monotonic_ns() % 1000, x))
    for _ in range(3):
        clock.run(step, jnp.ones(3), None)
    found = clock.lap(3)
    assert 0 < found["compile_seconds"] <= found["seconds"]
    clock.run(step, jnp.ones(3), None)
    assert "compile_seconds" not in clock.lap(4)


def test_a_batch_is_prepared_while_a_step_runs_on_a_cpu():
    prepared = threading.Event()

    def step(state, batch):
        assert prepared.wait(60)
        return state + batch, {"loss": batch}

    clock = clocks.Clock()
    state = clock.run(step, 1, 2)
    prepared.set()
    assert clock.finish(clock.run(step, state, 3)) == (6, [{"loss": 2}, {"loss": 3}])
    assert clock.finish(7) == (7, [])


@pytest.mark.parametrize("seeds", [None, 2])
def test_an_error_of_a_step_is_raised_before_its_results_are_used(seeds):
    def step(state, batch):
        raise UserError(f"no step with {batch}")

    clock = clocks.Clock(seeds)
    with pytest.raises(UserError, match="no step with 2"):
        clock.finish(clock.run(step, 1, 2))


def test_report_shows_times(tmp_path):
    rows = {name: value for name, value, _ in report.times(monitoring.summarize(KILLED))}
    assert rows["goodput"] == "53.3%"
    assert rows["lost"] == "60.0 s"
    assert rows["peak memory"] == "300 MB"
    assert report.times({}) == []
    (tmp_path / "timing.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in KILLED))
    assert "<img" in report.step_times(tmp_path)
    (tmp_path / "timing.jsonl").unlink()
    assert report.step_times(tmp_path) == ""


@pytest.mark.parametrize("text", ["", "0", "-3", "ten", "1.5", "110-100", "5-", "1-2-3", "0-4"])
def test_values_of_profile_that_are_refused(text):
    with pytest.raises(UserError, match=rf"^--profile={text}: expected a number of steps such as"):
        profiling.parse(text)


@pytest.mark.parametrize(
    ("text", "done", "last", "steps"),
    [
        ("10", 0, 100, range(11, 21)),
        ("10", 50, 100, range(61, 71)),
        ("10", 0, 12, range(3, 13)),
        ("10", 0, 10, range(1, 11)),
        ("100-110", 0, 110, range(100, 111)),
        ("7-7", 6, 9, range(7, 8)),
    ],
)
def test_steps_of_a_profile(text, done, last, steps):
    assert profiling.parse(text).steps(done, last) == steps


@pytest.mark.parametrize(
    ("text", "done", "last", "message"),
    [
        ("10", 0, 9, "got 10 steps, expected some of steps 1 to 9"),
        ("100-110", 0, 109, "got steps 100 to 110, expected some of steps 1 to 109"),
        ("100-110", 100, 200, "got steps 100 to 110, expected some of steps 101 to 200"),
        ("5", 200, 200, "training has ended at step 200; name another --workdir"),
    ],
)
def test_steps_that_are_not_trained_are_refused(text, done, last, message):
    with pytest.raises(UserError, match=rf"^--profile={text}: {message}"):
        profiling.parse(text).steps(done, last)


def test_trace_is_written_and_named(tmp_path, capsys):
    drained = []
    profiler = profiling.Profiler(profiling.parse("2-3"), tmp_path, 0, 5)
    for step in range(1, 6):
        profiler.before(step, lambda step=step: drained.append(step))
        jnp.ones(3).block_until_ready()
        profiler.after(step, lambda step=step: drained.append(step))
    profiler.stop()
    assert drained == [2, 3]
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    assert f"steps 2 to 3 in {trace.parent};" in capsys.readouterr().err
