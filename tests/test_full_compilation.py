"""Comparisons of the contract with the equations, compiled with XLA's default passes.

The flags of conftest.py skip passes that could change results."""

import os
import subprocess
import sys

import pytest

from tests.attention.test_registry import ROOT

CONTRACT = "tests/attention/test_contract.py"


@pytest.mark.slow
def test_the_contract_holds():
    quick = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {key: value for key, value in os.environ.items() if key not in quick}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", CONTRACT, "-k", "equations", "-m", "not oracle"],
        cwd=ROOT,
        env=environment | {"FULL_COMPILATION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
