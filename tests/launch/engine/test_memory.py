"""Settings of glibc malloc, in a process of its own because they stay, and memory of programs."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from launch.engine import sharding
from launch.engine import steps as engine
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


SMALL_BLOCKS = """
import numpy as np
from launch.engine.memory import keep_large_buffers, separate_small_blocks

assert keep_large_buffers()
if SEPARATE:
    assert separate_small_blocks()
first = np.empty(100 << 20, np.uint8)
address, after = first.ctypes.data, np.empty(40 << 20, np.uint8)
del first
batch = np.empty(2 << 20, np.uint8)
print(np.empty(100 << 20, np.uint8).ctypes.data == address)
"""


IN_CALLS = """
import jax
from launch.engine.memory import keep_large_buffers, peak_memory, run_in_calls

assert keep_large_buffers()
run_in_calls()

import jax.numpy as jnp
from launch.engine.clock import Clock

@jax.jit
def step(state, batch):
    matrix = jnp.sin(batch * jnp.arange(1 << 25)).reshape(8192, 4096)
    loss = (matrix @ jnp.ones(4096)).sum()
    return state + loss, {"loss": loss}

size = step.lower(1.0, jnp.ones(())).compile().memory_analysis().temp_size_in_bytes
clock, state = Clock(), jnp.zeros(())
state, _ = clock.finish(clock.run(step, state, jnp.ones(())))
first = peak_memory().process
for _ in range(6):
    state = clock.run(step, state, jnp.ones(()))
clock.finish(state)
print(size, peak_memory().process - first)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc malloc")
def test_temporaries_of_a_step_are_freed_before_the_next_step():
    done = subprocess.run(
        [sys.executable, "-c", IN_CALLS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    temporaries, growth = map(int, done.stdout.split())
    assert temporaries > 100 << 20
    assert growth < temporaries / 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc malloc")
@pytest.mark.parametrize("separate", [False, True])
def test_a_small_allocation_does_not_split_a_large_free_block(separate):
    script = SMALL_BLOCKS.replace("SEPARATE", str(separate))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The first case shows that without the separate block the allocation does split it.
    assert done.stdout.strip() == str(separate)


def test_memory_is_returned_once_the_first_results_are_computed(monkeypatch):
    order, wait = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: order.append("computed") or wait(x))
    monkeypatch.setattr(sharding, "return_free_memory", lambda: order.append("returned"))
    doubled = sharding.OnMesh(jax.jit(lambda x: 2 * x), sharding.make_mesh(sharding.MeshConfig()))
    assert [float(doubled(np.float32(x))) for x in (1, 2)] == [2, 4]
    assert order == ["computed", "returned"]  # nothing is done in the second call


def test_the_program_of_a_function_that_runs_once_is_deleted():
    program = jax.jit(lambda x: 2 * x)
    function = engine._released(program)
    assert [float(function(np.float32(x))) for x in (1, 2)] == [2, 4]
    assert program._cache_size() == 0
