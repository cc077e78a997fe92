"""Compiles the cases that it reads, and prints the record of each as a line of JSON."""

import functools
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

DUMP = pathlib.Path(tempfile.mkdtemp())
# PTX and the list of launches of each program.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={DUMP}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from attention import attend, masks  # noqa: E402
from launch.engine.collectives import collectives  # noqa: E402
from launch.engine.topologies import topology  # noqa: E402
from tests.accelerators.kernels import cases  # noqa: E402


@functools.cache
def mesh_of(device):
    found = topology(cases.DEVICES[device])
    return Mesh(np.array(found.devices), ("data",)), found.platform


def arguments(case):
    """Returns shapes and dtypes of the arguments by name."""
    B, N, T = cases.B, cases.N, case.length
    S = cases.S if case.option == "cross" else T
    K = 2 if case.option == "grouped" else N
    found = {
        "query": ((B, T, N, case.size), case.dtype),
        "key": ((B, S, K, case.size), case.dtype),
        "value": ((B, S, K, case.size), case.dtype),
    }
    found |= {
        "lengths": {"lengths": ((B,), "int32")},
        "segments": {"segments": ((B, T), "int32")},
        "dense": {"dense": ((B, N, T, S), "bool")},
        "bias": {"bias": ((1, N, T, S), case.dtype)},
        "learned_bias": {"bias": ((1, N, T, S), case.dtype)},
        "sinks": {"sinks": ((N,), "float32")},
    }.get(case.option, {})
    return found


def program(case):
    """Returns the function to compile and the names of the arguments that it differentiates."""
    made = {
        "causal": lambda given: masks.causal(),
        "window": lambda given: masks.window(200, 0),
        "lengths": lambda given: masks.lengths(given["lengths"], given["lengths"]),
        "segments": lambda given: masks.segments(given["segments"], given["segments"]),
        "dense": lambda given: masks.dense(given["dense"]),
    }

    def output(learned, given):
        given = learned | given
        options = {name: given[name] for name in ("bias", "sinks") if name in given}
        if case.option in made:
            options["mask"] = made[case.option](given)
        if case.option == "logit_cap":
            options["logit_cap"] = 30.0
        arrays = (given["query"], given["key"], given["value"])
        return attend(*arrays, **options, implementation=case.kernel)

    names = ["query", "key", "value", "sinks"] + ["bias"] * (case.option == "learned_bias")
    if case.which == "forward":
        return output, names

    def gradient(learned, given, cotangent):
        out, backward = jax.vjp(lambda learned: output(learned, given), learned)
        return out, backward(cotangent)[0]

    return gradient, names


def record(case):
    """Compiles a case and returns its record."""
    shutil.rmtree(DUMP, ignore_errors=True)
    mesh, platform = mesh_of(case.device)
    where = NamedSharding(mesh, PartitionSpec())
    given = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)
        for name, (shape, dtype) in arguments(case).items()
    }
    function, names = program(case)
    learned = {name: given.pop(name) for name in names if name in given}
    extra = [learned["query"]] if case.which == "backward" else []
    found = {"case": case.name}
    began, used = time.monotonic(), cpu_seconds()
    with jax.set_mesh(mesh):
        try:
            traced = jax.jit(function).trace(learned, given, *extra)
        except NotImplementedError as error:
            return found | {"refused": str(error)}
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    found["seconds"] = round(time.monotonic() - began, 2)
    found["cpu_seconds"] = round(cpu_seconds() - used, 2)
    memory = compiled.memory_analysis()
    found["temporaries"] = memory.temp_size_in_bytes
    targets = re.findall(r'custom_call_target="([^"]*)"', compiled.as_text())
    found["targets"] = {name: targets.count(name) for name in sorted(set(targets))}
    if case.kernel == "triton":
        found["programs"] = gpu_programs()
    return found


def record_mesh(name):
    """Compiles both passes of a call whose arrays are sharded by examples and heads."""
    _, where, kernel = name.split("-")
    platform, sizes, _ = cases.MESHES[where]
    devices = np.array(topology(where).devices).reshape(tuple(sizes.values()))
    mesh = Mesh(devices, tuple(sizes))

    def loss(query, key, value, lengths):
        mask = masks.causal() & masks.lengths(key=lengths)
        out = attend(query, key, value, mask=mask, implementation=kernel)
        return jnp.sum(out.astype(jnp.float32))

    def struct(dtype, spec, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    rows = PartitionSpec(("data", "fsdp"), None, "tensor")
    arrays = [struct("bfloat16", rows, 8, cases.T, heads, 64) for heads in (8, 2, 2)]
    lengths = struct("int32", PartitionSpec(("data", "fsdp")), 8)
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays, lengths)
        text = traced.lower(lowering_platforms=(platform,)).compile().as_text()
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    kinds = sorted({one.kind for one in collectives(text)})
    return {"case": name, "collectives": kinds, "targets": {n: targets.count(n) for n in targets}}


def cpu_seconds():
    """Returns the time of all threads and of ended child processes."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def gpu_programs():
    """Returns registers, spills and shared memory of each program of the kernel, in bytes."""
    found = {}
    for path in DUMP.glob("*.ptx"):
        text = path.read_text()
        name = re.search(r"\.entry (attend_\w+)", text)
        if name:
            arch = re.search(r"\.target (\w+)", text)[1]
            done = subprocess.run(
                [ptxas(), "-v", f"-arch={arch}", str(path), "-o", os.devnull],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found[name[1]] = resources(done.stderr)
    for path in DUMP.glob("*thunk_sequence.txt"):
        launches = re.finditer(
            r"(attend_\w+) grid: (\[.*?\]) threads: \[(\d+).*shared_memory: (\d+)", path.read_text()
        )
        for name, grid, threads, shared in (launch.groups() for launch in launches):
            found[name] |= {
                "grid": json.loads(grid),
                "threads": int(threads),
                "shared": int(shared),
            }
    return found


def resources(text):
    """Returns the numbers of the messages of `ptxas -v`."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    return {name: int(re.search(pattern, text)[1]) for name, pattern in patterns.items()}


@functools.cache
def ptxas():
    """Returns the path of the assembler in the packages of NVIDIA, or of an installation."""
    import nvidia

    for folder in nvidia.__path__:
        for path in sorted(pathlib.Path(folder).glob("*/bin/ptxas")):
            return str(path)
    return shutil.which("ptxas")


def main():
    """Answers each line of the input."""
    for line in sys.stdin:
        name = line.strip()
        try:
            mesh = name.startswith("mesh-")
            found = record_mesh(name) if mesh else record(cases.parse(name))
        except Exception as error:
            found = {"case": name, "error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(DUMP, ignore_errors=True)
