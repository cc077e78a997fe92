"""Rows and tables of the accelerator suite, from a few records."""

import json

import pytest

from benchmarks import accelerators, report


def case(spills, registers=128, shared=40960, seconds=1.5):
    program = {"registers": registers, "spill_stores": spills, "shared": shared}
    return {"cpu_seconds": seconds, "programs": {"attend_forward": program}}


REFUSED = {"refused": "cudnn: sinks: not supported by cuDNN; supported by: triton, reference"}
CASES = {
    "h100-triton-none-float32-64-forward-1024": case(0),
    "h100-triton-causal-float32-64-forward-1024": case(8, 200, 20480, 4.0),
    "h100-cudnn-sinks-bfloat16-64-forward-1024": REFUSED,
    "h100-cudnn-sinks-bfloat16-80-forward-1024": REFUSED,
    "h100-cudnn-none-bfloat16-80-forward-1024": {"error": "exit status -6"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kernels").mkdir()
    record = {"versions": {"jax": "0.10.2"}, "cases": CASES}
    (tmp_path / "kernels" / "h100.json").write_text(json.dumps(record))
    return tmp_path


def test_programs_have_the_largest_numbers_over_the_options(folder):
    (row,) = accelerators.programs(folder)
    assert (row["device"], row["dtype"], row["size"], row["program"]) == (
        *("h100", "float32", 64, "forward"),
    )
    assert (row["registers"], row["spill_stores"], row["shared"]) == (200, 8, 40960)
    assert row["cases"] == 2


def test_refusals_are_counted_by_reason(folder):
    cudnn, triton = accelerators.kernels(folder)
    assert cudnn["refused"] == {"sinks: not supported by cuDNN": 2}
    assert (cudnn["compiled"], triton["compiled"]) == (0, 2)
    assert (triton["median_seconds"], triton["longest_seconds"]) == (4.0, 4.0)


def test_tables(folder):
    rows, programs = accelerators.kernels(folder), accelerators.programs(folder)
    section = {"compilers": accelerators.versions(folder), "rows": rows, "programs": programs}
    machine = {"device": "cpu", "processor": "Abacus 9", "cores": 2, "versions": {}, "commit": "0"}
    section |= {"machine": machine, "command": "python -m benchmarks.accelerators"}
    page = report.markdown({"accelerators": {"accelerator_kernels": section}})
    assert "## Compiled kernels: accelerators" in page
    assert "| cudnn | h100 | 0 | 0 | 0 | 2 sinks: not supported by cuDNN |" in page
    assert "| float32 | 64 | 200 / 8 / 40 |" in page
    assert "jax 0.10.2" in page
