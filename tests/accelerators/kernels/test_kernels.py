"""Kernels of `attend` compiled for absent GPUs and TPUs: every option, dtype and head size.

A kernel compiles each case within the limits of the device, or refuses it with the reason that
`cases.refusal` lists. Records are kept for the tables of benchmarks/README.md.
"""

import importlib.metadata
import importlib.util
import re

import pytest

from launch.engine.topologies import GPUS, is_installed
from tests.accelerators import records, workers
from tests.accelerators.kernels import cases

pytestmark = pytest.mark.accelerator

WORKER = "tests.accelerators.kernels.worker"
# CPU seconds of a compilation.
LIMIT = 20.0
# Bytes of spilled registers of a thread: 16 of its 255 registers.
SPILLS = 64
# XLA for TPUs copies the bias [1, 4, 4096, 4096], but not that of a shorter case.
COPIED = {"v5e-blockwise-bias-bfloat16-64-backward-4096"}
# Custom calls in the program of the forward pass, and in that of both passes.
CALLS = {
    "triton": ("__gpu$xla.gpu.triton", 1, 3),
    "cudnn": ("__cudnn$fmha", 1, 2),
    "splash": ("tpu_custom_call", 1, 3),
}


def marks(case_or_platform, slow, kernel=""):
    """Returns the marks of a test: skipped without its compiler or library, slow or not."""
    platform = cases.PLATFORMS.get(case_or_platform, case_or_platform)
    found = [pytest.mark.slow] * slow
    if not is_installed(platform):
        reason = f"requirements-{platform}.txt is not installed"
        found.append(pytest.mark.skip(reason=reason))
    elif kernel == "tokamax" and importlib.util.find_spec("tokamax") is None:
        found.append(pytest.mark.skip(reason="tokamax is not installed"))
    return found


def each_case():
    for device in cases.DEVICES:
        quick = set(cases.quick_cases(device))
        for case in cases.all_cases(device):
            chosen = marks(device, case not in quick, case.kernel)
            yield pytest.param(case.name, id=case.name, marks=chosen)


def each_pair():
    for device in cases.DEVICES:
        for short, long in cases.growing_cases(device):
            chosen = marks(device, short.option != "causal", short.kernel)
            yield pytest.param((short.name, long.name), id=long.name, marks=chosen)


def each_mesh():
    for platform in ("cuda", "tpu"):
        for name in cases.mesh_cases(platform):
            yield pytest.param(name, id=name, marks=marks(platform, False))


@pytest.fixture(scope="session")
def compiled(request, tmp_path_factory, worker_id):
    """Returns the record of each selected case, from processes that compile many cases."""
    names = {}
    for item in request.session.items:
        if item.path.name == "test_kernels.py" and not any(item.iter_markers("skip")):
            given = getattr(item, "callspec", None)
            for value in given.params.values() if given else ():
                names |= dict.fromkeys(value if isinstance(value, tuple) else (value,))
    found = workers.compiled_once(tmp_path_factory, worker_id, "kernels", WORKER, list(names))
    if worker_id in ("master", "gw0"):
        keep(found)
    return found


def keep(found):
    """Adds the records to the file of each device; a case replaces its earlier record."""
    packages = ("jax", "jaxlib", "libtpu", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for device in cases.DEVICES:
        mine = {name: one for name, one in found.items() if name.startswith(f"{device}-")}
        if mine:
            before = (records.read("kernels", device) or {}).get("cases", {})
            record = {"versions": versions, "cases": dict(sorted((before | mine).items()))}
            records.write("kernels", device, record)


@pytest.mark.parametrize("name", list(each_case()))
def test_it_compiles_or_is_refused(name, compiled):
    case, record = cases.parse(name), compiled[name]
    assert "error" not in record, record["error"]
    expected = cases.refusal(case)
    if expected is not None or "refused" in record:
        assert expected is not None, record["refused"]
        assert re.match(f"{case.kernel}: {expected}.*; supported by: ", record["refused"])
        return
    # On a machine with other work the time of the clock says little.
    assert min(record["seconds"], record["cpu_seconds"]) <= LIMIT
    if case.kernel in CALLS:
        target, *counts = CALLS[case.kernel]
        found = sum(n for name, n in record["targets"].items() if name.startswith(target))
        assert found == counts[cases.PASSES.index(case.which)]
    if case.kernel == "triton":
        backward = {"attend_dq", "attend_dkdv"} if case.which == "backward" else set()
        assert record["programs"].keys() == {"attend_forward"} | backward
        for program in record["programs"].values():
            assert program["spill_stores"] <= SPILLS
            assert program["shared"] <= GPUS[case.device].shared_memory - 1024


@pytest.mark.parametrize("names", list(each_pair()))
def test_temporaries_are_linear_in_the_length(names, compiled):
    short, long = (compiled[name]["temporaries"] for name in names)
    ratio = cases.LONG / cases.T
    # Arrays of a fixed size are part of both.
    limit = 1.1 * ratio * short + 2**20
    if names[1] in COPIED and long > limit:
        pytest.xfail(f"got {long:,} bytes, expected at most {limit:,.0f}")
    assert long <= limit


@pytest.mark.parametrize("name", list(each_mesh()))
def test_sharded_arrays_stay_where_they_are(name, compiled):
    record = compiled[name]
    assert "error" not in record, record["error"]
    assert record["collectives"] == []
    *_, kernel = name.split("-")
    wanted = {"auto": tuple(target for target, *_ in CALLS.values())}.get(kernel)
    wanted = wanted or CALLS[kernel][0]
    assert any(target.startswith(wanted) for target in record["targets"])
