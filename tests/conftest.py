"""Settings of all tests: CPU by default, quick compilation, and a persistent compilation cache.

Most of the time of the tests goes into compiling programs that run once, so XLA is asked for few
passes. With FULL_COMPILATION=1 programs are compiled with XLA's defaults, as for users: `make
test-oracles` sets it, and a slow test sets it for the contract's comparisons with the equations.
"""

import gc
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


def accepted(flags, cache):
    """Returns those of `flags` that the installed XLA knows: it aborts the process at others.

    Each flag is tried once in a process of its own; the result is stored in the folder `cache`.
    """
    kept = pathlib.Path(cache) / f"xla_flags-{importlib.metadata.version('jaxlib')}.json"
    try:
        known = json.loads(kept.read_text())
    except (OSError, ValueError):
        known = {}
    if missing := [flag for flag in flags if flag not in known]:
        for flag in missing:
            tried = subprocess.run(
                [sys.executable, "-c", "import jax; jax.devices()"],
                env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
            )
            known[flag] = "Unknown flag" not in tried.stderr
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.replace(kept)
    return [flag for flag in flags if known[flag]]


# Tracing creates many objects and few cycles: collections at Python's threshold take about 5 %.
gc.set_threshold(100_000, 50, 50)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nothing is downloaded from the Hugging Face Hub, even if there is a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Set in the environment, so that subprocesses of tests inherit them.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if not os.environ.get("FULL_COMPILATION"):
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    given = os.environ.get("XLA_FLAGS", "").split()
    quick = accepted(QUICK, os.environ["JAX_COMPILATION_CACHE_DIR"])
    os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in quick if flag not in given)])


def pytest_collection_modifyitems(items):
    """Moves the tests of this folder to the front: they are the longest, and end beside others."""
    items.sort(key=lambda item: item.path.parent != pathlib.Path(__file__).parent)


@pytest.fixture(scope="session")
def server():
    """Returns a process whose forks run commands."""
    from tests.fork_server import ForkServer

    started = ForkServer()
    yield started
    started.close()
