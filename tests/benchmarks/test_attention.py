"""Attention benchmarks on tiny sizes, without torch: checks, timing, storage, messages."""

import dataclasses
import json
import subprocess
import sys

import pytest

from attention.kernels import dispatch
from benchmarks import attention as command
from benchmarks import attention_backends, report, tune
from benchmarks.attention_cases import Case, arrays, cases
from benchmarks.interleaved import slope, summary, time_interleaved
from tests.attention.test_registry import ROOT

TINY = Case("causal", 1, 2, 16, 8, causal=True, targets={"both": 1.25}, growth=True)


@pytest.fixture
def without_torch(monkeypatch):
    """Simulates that the package is not installed."""
    monkeypatch.setattr(attention_backends, "installed", lambda module: False)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": False, "window": 4},
        {"causal": False, "lengths": True},
        {"causal": False, "bias": "learned"},
        pytest.param({"key_value_heads": 1, "dtype": "bfloat16"}, marks=pytest.mark.slow),
        {"queries": 1, "keys": 32, "causal": False, "lengths": True, "cached": True}
        | {"passes": ("forward",)},
        pytest.param({"causal": False, "scattered": True}, marks=pytest.mark.slow),
        pytest.param({"queries": 256, "causal": False, "big_bird": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_way_is_held_to_the_reference_and_timed(changes):
    case = dataclasses.replace(TINY, **({"keys": None} | changes))
    known = attention_backends.backends("cpu")
    assert {"reference", "jax.nn", "flax.linen"} <= known.keys()
    for passed in case.passes:
        row = command.measure(case, passed, known, 1, "cpu")
        assert row["ways"]["auto"]["kernel"] in known
        for name in ("auto", "reference", "jax.nn", "flax.linen"):
            assert row["ways"][name]["milliseconds"] > 0, row["ways"][name]
            assert row["ways"][name]["difference"] < 0.03
        assert case.label in report.show(row)


@pytest.mark.usefixtures("without_torch")
def test_what_is_wrong_or_fails_is_not_timed():
    known = attention_backends.backends("cpu")

    def wrong(case, passed, drawn, limit):
        right = known["reference"](case, passed, drawn, limit)
        return dataclasses.replace(
            right, result=lambda given: [x + 1e-2 for x in right.result(given)]
        )

    def failing(case, passed, drawn, limit):
        raise RuntimeError("out of order\nmore")

    known = {"reference": known["reference"], "wrong": wrong, "failing": failing}
    row = command.measure(TINY, "both", known, 1, "cpu")
    assert row["ways"]["wrong"]["skipped"].startswith("got an error of ")
    assert row["ways"]["failing"]["skipped"] == "failed: RuntimeError: out of order"
    needy = command.measure(
        TINY,
        "both",
        {
            "reference": known["reference"],
            "needy": lambda case, passed, drawn, limit: attention_backends.backends("cpu")[
                "jax.nn"
            ](case, passed, drawn, 1),
        },
        1,
        "cpu",
    )
    assert needy["ways"]["needy"]["skipped"].startswith("would need ")


def test_cases_are_what_the_tables_promise():
    labels = [case.label for case in cases()]
    assert len(set(labels)) == len(labels)
    for case in cases():
        assert set(case.targets) <= set(case.passes)
    decode = next(case for case in cases() if case.name == "decode")
    drawn = arrays(dataclasses.replace(decode, keys=32))
    assert drawn["mask"].shape == (1, 1, 1, 32)
    assert drawn["mask"].sum() == drawn["lengths"][0]


def test_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = time_interleaved(runs, rounds=3, least=0.0)
    assert [len(times) for times in seconds.values()] == [3, 3]
    # Two calls each to estimate the time; then one warm-up call and one timed call.
    assert "".join(order) == "aabb" + "aabb" * 3
    found = summary({"here": [2.0, 4.0, 3.0], "torch": [1.0, 2.0, 3.0]}, "torch")
    assert found["here"]["milliseconds"] == 3000
    assert found["here"]["ratio"] == 1.5
    assert found["here"]["ratio_range"] == [1.0, 2.0]
    assert slope([512, 1024, 2048], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_growth():
    def row(length):
        way = {"milliseconds": length / 10, "temporaries": length**2}
        case = {"grows": True, "pass": "both", "sizes": [1, 8, 8, length, length, 64]}
        return case | {"ways": {"native": way, "other": {"skipped": "no"}}}

    found = command.growth([row(n) for n in (512, 2048, 1024)])
    assert found == {"native": {"lengths": [512, 1024, 2048], "time": 1.0, "memory": 2.0}}


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    ("module", "flag", "words"),
    [
        ("attention", "--suite=abacus", ["suite", "abacus"]),
        ("attention", "--cases=(", ["--cases"]),
        ("attention", "--cases=nothing", ["nothing", "BigBird"]),
        ("tune", "--options=sparce", ["sparce"]),
        ("train_step", "--batch_size=0", ["--batch_size=0"]),
        ("train_choices", "--batch_size=0", ["--batch_size=0"]),
    ],
)
def test_a_mistake_is_one_line(module, flag, words, server):
    done = server.run([f"benchmarks.{module}", flag])
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_the_command_writes_rows_page_and_figure(tmp_path):
    file = tmp_path / "cpu.json"
    options = ["--shrink=64", "--rounds=1", r"--cases=causal \(1, .* 32, .*float32", "--nomemory"]
    done = run("attention", *options, "--readme", f"--json={file}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["attention"]["rows"]
    assert [(row["label"], row["pass"]) for row in rows] == [
        ("causal (1, 8, 32, 64) float32", "forward"),
        ("causal (1, 8, 32, 64) float32", "both"),
    ]
    assert "| causal (1, 8, 32, 64) float32 |" in (tmp_path / "README.md").read_text()
    if not attention_backends.installed("torch"):
        assert "torch is not installed" in done.stdout


@pytest.mark.slow
def test_memory_growth_and_figure(tmp_path):
    file = tmp_path / "cpu.json"
    options = ["--shrink=64", "--rounds=1", r"--cases=causal \(1, .*float32", "--readme"]
    done = run("attention", *options, f"--json={file}")
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    lengths = [row["sizes"][3] for row in found["attention"]["rows"]]
    assert sorted(set(lengths)) == [8, 16, 32, 64, 128]
    assert {"time", "memory", "lengths"} == found["attention"]["growth"]["reference"].keys()
    assert found["memory"]["rows"]["reference"]["grown"] >= 0
    assert (tmp_path / "attention.png").stat().st_size > 1000


def test_tune_writes_what_auto_reads(tmp_path):
    file = tmp_path / "timings.json"
    old = {"options": "dense", "batch": 1, "heads": 1, "queries": 4, "keys": 4, "size": 8}
    old |= {"dtype": "single", "forward": {"x": 1.0}, "both": {"x": 2.0}}
    tune.write(file, "abacus", [old])
    entry = tune.measure("causal", TINY, 1, 0.0)
    assert entry["forward"].keys() == entry["both"].keys() >= {"reference"}
    tune.write(file, "cpu", [entry])
    tune.write(file, "cpu", [entry | {"both": {"reference": 7.0}}])
    read = dispatch.read(file)
    assert read["abacus"] == (dispatch.Timing(**old),)
    assert [one.both for one in read["cpu"]] == [{"reference": 7.0}]
    assert {options for options, _ in tune.grid()} == set(dispatch.WORKLOADS) == set(tune.CLASSES)
    for options, case in tune.grid():
        if case.keys <= 128:
            drawn = arrays(case)
            mask = attention_backends.structured_mask(case, drawn["lengths"], drawn["mask"])
            taken = dispatch.workload_class(case.queries, case.keys, mask, drawn["bias"])
            assert taken == options
