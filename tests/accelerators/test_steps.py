"""The steps of the default configs, compiled for GPUs and TPUs that are not present.

Each case is a process of `launch.compile`, as a user runs it. Records are kept for the tables of
benchmarks/README.md.
"""

import json
import os
import resource
import subprocess
import sys

import pytest

from launch.engine.topologies import is_installed
from tests.accelerators import records

pytestmark = pytest.mark.accelerator

CONFIGS = sorted(path.stem for path in (records.ROOT / "configs").glob("*.py"))
# Without "slow": a few minutes on two cores.
FAST = ("forecasting", "language_modeling", "text_classification")
MACHINES = {"cuda": ("h100x1", "h100x8"), "tpu": ("v5e:1", "v5e:4x4")}
LIMIT = 90.0
FUSED = {"cudnn", "triton", "splash", "tokamax"}
LONG = 512


def cases():
    for platform, machines in MACHINES.items():
        missing = not is_installed(platform)
        reason = f"requirements-{platform}.txt is not installed"
        for machine in machines:
            for config in CONFIGS:
                marks = [pytest.mark.skipif(missing, reason=reason)]
                if config not in FAST or machine == machines[0]:
                    marks.append(pytest.mark.slow)
                yield pytest.param(config, machine, id=f"{config}-{machine}", marks=marks)


def compiled(config, machine, folder, *flags):
    """Runs launch.compile; returns what it wrote, and the CPU seconds of the process."""
    target = folder / "steps.json"
    words = [sys.executable, "-m", "launch.compile", f"--config=configs/{config}"]
    words += [f"--topology={machine}", f"--json={target}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        words, cwd=records.ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(target.read_text(encoding="utf-8")), spent


def check(written):
    """Checks what holds for every config and machine."""
    for step in written["steps"]:
        assert not step["failure"]
        assert step["advice"] == []
        for kernel in step["kernels"]:
            sizes = kernel["sizes"]
            if min(sizes["T"], sizes["S"]) >= LONG:
                assert kernel["kernel"] in FUSED, kernel


@pytest.mark.parametrize(("config", "machine"), list(cases()))
def test_default_config(config, machine, tmp_path):
    written, spent = compiled(f"{config}.py", machine, tmp_path)
    name = f"{config}-{machine.replace(':', '_')}"
    records.write("steps", name, written | {"config": config, "cpu_seconds": round(spent, 1)})
    check(written)
    for step in written["steps"]:
        # On a machine with other work the time of the clock says little.
        assert min(sum(step["seconds"].values()), spent) <= LIMIT, step["seconds"]
    other = records.read("steps", f"{config}-h100x1")
    if machine == "v5e:1" and other is not None:
        for here, there in zip(written["steps"], other["steps"], strict=True):
            mine, theirs = (each["bytes_per_device"]["temporaries"] for each in (here, there))
            assert mine <= 2 * theirs + 2**20, (here["step"], mine, theirs)
