"""Compiles an experiment for GPUs or TPUs that may be absent.

python -m launch.compile --config=configs/translation.py --topology=h100x8
python -m launch.compile --config=configs/translation.py --topology=v5e:4x4 --config.mesh.fsdp=4

--topology gives the kind and the number of devices: h100x8, a100x1, h200x16, v5e:4x4, v5p:2x2x2,
v5e:1 (one TPU core), or cpu:8 (virtual devices of this CPU). The compiler for GPUs is a package in
requirements-cuda.txt, and the compiler for TPUs is a package in requirements-tpu.txt. Install each
in a separate Python environment. Neither needs a GPU or TPU.

The output has, for each step: the bytes per device, the floating-point operations, the collectives
with their bytes and source lines, the kernels that `attend` selects and why, and the compile time.
If a step does not fit into the memory of the device, the output says what to change, and the exit
status is 1. --json=FILE also writes everything as JSON, with the sharding of each parameter.

For a TPU, loops are unrolled less than in a run, so that the compilation takes less time. This
changes only one of the reported numbers: the size of the compiled code.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from launch import cli

cli.define_config()
flags.DEFINE_string("topology", None, "Devices to compile for, such as h100x8, v5e:4x4 or cpu:8.")
flags.DEFINE_list(
    "steps", ["train", "evaluate"], "Steps to compile: some of train, evaluate and predict."
)
flags.DEFINE_string("json", None, "File to write, in addition to the printed lines.")


def compile_() -> None:
    """Runs the command `launch.compile`."""
    from launch.engine import compilation, sharding, topologies
    from launch.runs.directory import prepared_task
    from tasks.common.errors import UserError

    config, name = cli.experiment(), cli.required("topology")
    asked = list(dict.fromkeys(cli.FLAGS.steps))
    for step in asked or [""]:
        if step not in compilation.STEPS:
            raise UserError(
                f"--steps={step}: expected one or more of {', '.join(compilation.STEPS)}"
            )
    target = None if cli.FLAGS.json is None else Path(cli.FLAGS.json).expanduser()
    if target is not None and not target.parent.is_dir():
        raise UserError(f"--json={target}: the directory {target.parent} does not exist")
    if target is not None and target.is_dir():
        raise UserError(f"--json={target}: is a directory; name a file")
    # The compiled programs are not run, so JAX uses only the CPU. Accelerators of this machine may
    # be in use by another process.
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_platforms", "cpu")
    # Programs for absent devices cannot be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    topology = topologies.topology(name)
    cli.set_up_jax()
    sharding.make_mesh(config.mesh, topology.devices)
    task = prepared_task(config, cli.paths())
    found = compilation.compile_steps(task, config, topology, asked)
    for line in _lines(found):
        print(line)
    if target is not None:
        target.write_text(json.dumps(compilation.as_json(found), indent=1) + "\n", encoding="utf-8")
        print(f"written: {target}")
    if any(compilation.advice(found, one) for one in found.steps):
        sys.exit(1)


def _lines(found) -> Iterator[str]:
    from launch.engine.compilation import human

    topology, mesh = found.topology, found.mesh
    memory = "" if topology.memory is None else f", {human(topology.memory)} each"
    yield f"topology: {topology.name}: {len(topology.devices)} x {topology.kind}{memory}"
    yield "mesh: " + " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    rows = collections.Counter(
        (re.sub(r"(^|/)\d+(?=/)", r"\1*", path), shape, dtype, spec, size)
        for path, shape, dtype, spec, size in found.parameters
    )
    count = sum(math.prod(shape) for _, shape, *_ in found.parameters)
    yield f"parameters: {count:,}"
    for (path, shape, dtype, spec, size), number in rows.items():
        times = f" x {number}" if number > 1 else ""
        yield (f"  {path} {dtype}{list(shape)}{times}: sharding ({spec}), {human(size)} per device")
    for one in found.steps:
        yield from _step_lines(found, one)


def _step_lines(found, one) -> Iterator[str]:
    from launch.engine.compilation import advice, human

    topology = found.topology
    shapes = ", ".join(f"{name} {shape}" for name, shape in one.batch.items())
    yield f"\n{one.step}: {shapes}"
    sizes = ", ".join(
        f"{kind} {human(size)}"
        for kind, size in one.bytes_per_device.items()
        if kind != "arguments"
    )
    yield f"  bytes per device: {sizes}"
    if one.failure:
        yield f"  does not fit: {one.failure}"
    else:
        share = ""
        if topology.memory is not None:
            share = f" of {human(topology.memory)} ({100 * one.peak / topology.memory:.0f} %)"
        yield f"  peak per device: {human(one.peak)}{share}"
    for line in advice(found, one):
        yield f"  to change: {line}"
    devices = len(topology.devices)
    yield f"  operations: {one.flops:.3g} in all, {one.flops / devices:.3g} per device"
    rows: dict[tuple, list[int]] = {}
    for each in one.collectives:
        row = rows.setdefault((each.kind, each.shape, each.group_size, each.source), [0, 0])
        row[0] += each.count or 1
        row[1] += each.bytes * (each.count or 1)
    yield f"  collectives: {len(rows) or 'none'}"
    for (kind, shape, group, source), (number, size) in sorted(
        rows.items(), key=lambda item: -item[1][1]
    ):
        yield f"    {number} x {kind} {shape} of {group} devices, {human(size)}, {source}"
    yield f"  kernels: {sum(number for _, number in one.choices) or 'none'}"
    for each, number in one.choices:
        at = ", ".join(f"{name} {size}" for name, size in zip("BNKTSH", each.sizes, strict=True))
        used = "".join(f", {option}" for option in each.options)
        yield f"    {number} x {each.choice.name} ({at}, {each.dtype}{used}): {each.choice.reason}"
        for other, reason in each.choice.unsupported.items():
            yield f"      not {other}: {reason}"
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in one.seconds.items())
    yield f"  {seconds}"


if __name__ == "__main__":
    cli.main(compile_, __doc__)
