"""Shared by all tests: CPU unless told otherwise, quick compilation, compiled programs kept.

Most of the time of the tests goes into compiling programs that run once, so XLA is asked for few
passes. FULL_COMPILATION=1 compiles as users have it: `make test-oracles` and, for the contract's
comparisons with the equations, a slow test do.
"""

import os
import pathlib

QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# By environment, so that processes which tests start have them too.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if not os.environ.get("FULL_COMPILATION"):
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if QUICK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()
