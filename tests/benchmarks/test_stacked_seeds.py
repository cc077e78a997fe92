"""Times per seed from records of runs, by hand."""

from benchmarks import stacked_seeds


def test_step_times_of_a_stack_are_divided_by_its_seeds():
    alone = [
        {"seconds": 10.0, "timing": {"step_seconds_p50": 0.02}},
        {"seconds": 20.0, "timing": {"step_seconds_p50": 0.04}},
    ]
    assert stacked_seeds.summarize(alone) == {
        "seconds_per_seed": 15.0,
        "milliseconds_per_step_and_seed": 30.0,
    }
    stacked = [
        {"seconds": 6.0, "timing": {"step_seconds_p50": 0.05, "stacked_seeds": 5}} for _ in range(5)
    ]
    found = stacked_seeds.summarize(stacked)
    assert found == {"seconds_per_seed": 6.0, "milliseconds_per_step_and_seed": 10.0}
    way = found | {"cpu_seconds_per_seed": 9.5, "load_before": 1.0}
    shown = stacked_seeds.show({"model": "m", "seeds": 5, "steps": 100, "ways": {"stacked": way}})
    assert shown.splitlines()[1].strip() == (
        "stacked: 6.0 s per seed, 10.00 ms per step and seed, 9.5 CPU s per seed (load 1.0)"
    )
