"""Settings of glibc malloc, in a process of its own because they stay."""

import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT

SCRIPT = """
import resource
import numpy as np
from launch.engine.memory import keep_large_buffers

assert keep_large_buffers()
faults = []
for size in SIZES:
    block = np.empty(size, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block[::4096] = 1
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del block
print(*faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc malloc")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(40 << 20, id="40 MB"),
        pytest.param(2200 << 20, id="2.2 GB", marks=pytest.mark.slow),
    ],
)
def test_a_freed_block_is_used_again_without_page_faults(size):
    script = SCRIPT.replace("SIZES", str([size] * 3))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *others = map(int, done.stdout.split())
    assert max(others) < 100 < first
