"""Compilation of an experiment's steps for devices that may be absent."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from attention import tracing
from attention.kernels.dispatch import RecordedChoice, record_choices
from launch.engine import sharding
from launch.engine import state as states
from launch.engine.collectives import Collective, collectives
from launch.engine.config import Experiment
from launch.engine.environment import ROOT
from launch.engine.evaluation import prediction_inputs
from launch.engine.flops import count_flops
from launch.engine.steps import Steps, make_steps
from launch.engine.topologies import Topology, compiler_versions
from tasks.common.data.pipeline import example_batches
from tasks.common.errors import UserError
from tasks.task import Task

STEPS = ("train", "evaluate", "predict")

# XLA:GPU measures the tilings of its Triton matrix products on the device. Without a device, some
# products have no valid tiling, and the compilation fails. With the option for "cuda", cuBLAS
# computes these products instead.
# XLA:TPU unrolls the windows of convolutions and matrix products until it estimates that no other
# window is faster, and most of the compile time is spent on the unrolled code. With the option for
# "tpu", a window is accepted if its estimated time is at most 1 / 0.8 of the fastest, which takes a
# fraction of that compile time. Runs are compiled without these options. Their programs have the
# same bytes, operations and collectives.
_COMPILER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cuda": {"xla_gpu_enable_triton_gemm": False},
    "tpu": {"xla_jf_convolution_performance_target": 0.8},
}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step compiled for a topology.

    Attributes:
      step: one of `STEPS`.
      batch: shapes of the batch by field, over all devices.
      bytes_per_device: bytes by kind: the parts of the train state or the variables, "batch",
        "arguments" (all of these), "outputs" (without outputs that reuse the memory of arguments),
        "temporaries" and "code".
      flops: floating-point operations on all devices, see `launch.engine.flops`.
      collectives: collectives of the program.
      choices: kernels that `attend` selects, with their numbers of calls.
      seconds: seconds by phase: "trace", "lower" and "compile".
      cpu_seconds: CPU seconds of all phases, over all threads.
      failure: message of the compiler if the program does not fit into the memory, else "".
    """

    step: str
    batch: Mapping[str, str]
    bytes_per_device: Mapping[str, int]
    flops: float
    collectives: Sequence[Collective]
    choices: Sequence[tuple[RecordedChoice, int]]
    seconds: Mapping[str, float]
    cpu_seconds: float
    failure: str = ""

    @property
    def peak(self) -> int:
        """Bytes per device at the peak: arguments, outputs, temporaries and code."""
        names = ("arguments", "outputs", "temporaries", "code")
        return sum(self.bytes_per_device.get(name, 0) for name in names)


@dataclasses.dataclass(frozen=True)
class Compilation:
    """Steps of an experiment compiled for a topology.

    Attributes:
      topology: the devices.
      mesh: sizes of the mesh axes.
      parameters: (path, shape, dtype, sharding, bytes per device) of each parameter.
      steps: the compiled steps.
    """

    topology: Topology
    mesh: Mapping[str, int]
    parameters: Sequence[tuple[str, tuple[int, ...], str, str, int]]
    steps: Sequence[CompiledStep]


def compile_steps(
    task: Task, config: Experiment, topology: Topology, names: Sequence[str] = STEPS[:2]
) -> Compilation:
    """Compiles steps of an experiment for a topology, with the largest batch of the training split.

    Args:
      task: prepared task, with its data.
      config: the experiment.
      topology: the devices.
      names: names of steps in `STEPS`.

    Raises:
      UserError: the mesh does not fit the topology, or the compiler fails.
    """
    steps = make_steps(task, config, topology.devices)
    params = steps.abstract_state["params"]
    parameters = [
        (states.path_name(path), leaf.shape, str(leaf.dtype), _spec(leaf), _shard_bytes(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    compiled = [_compile(task, config, steps, topology, name) for name in names]
    return Compilation(topology, dict(steps.mesh.shape), parameters, compiled)


def _compile(
    task: Task, config: Experiment, steps: Steps, topology: Topology, name: str
) -> CompiledStep:
    batch = _largest_batch(task, config, steps, name)
    first = steps.abstract_state
    if name != "train":
        first = states.evaluation_variables(first)
    if name == "predict":
        batch = prediction_inputs(task, batch)
    function = getattr(steps, name)
    seconds: dict[str, float] = {}
    began, spent = time.monotonic(), time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        now = time.monotonic()
        seconds[name], began = round(now - began, 2), now

    here = topology.platform == "cpu"
    with record_choices() as found:
        traced = function.trace(first, batch)
        lap("trace")
        lowered = traced.lower() if here else traced.lower(lowering_platforms=(topology.platform,))
        lap("lower")
    failure, program = "", None
    try:
        program = compile_program(lowered, topology.platform)
    except jax.errors.JaxRuntimeError as error:
        failure = _failure(error, topology)
    lap("compile")
    spent = time.process_time() - spent
    parts = first if name == "train" else {**first, "parameters": first["params"]}
    size = {
        _KINDS.get(part, part): sum(map(_shard_bytes, jax.tree.leaves(parts[part])))
        for part in parts
        if part not in ("step", "parameters")
    }
    size["batch"] = sum(map(_shard_bytes, jax.tree.leaves(batch)))
    if program is not None:
        memory = program.memory_analysis()
        size |= {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        }
    return CompiledStep(
        step=name,
        batch={key: _shape(value) for key, value in batch.items()},
        bytes_per_device=size,
        flops=_flops(function, steps.mesh, first, batch),
        collectives=[] if program is None else list(map(_relative, collectives(program.as_text()))),
        choices=_counted(found),
        seconds=seconds,
        cpu_seconds=round(spent, 2),
        failure=failure,
    )


def compile_program(lowered: Any, platform: str) -> Any:
    """Compiles a `jax.stages.Lowered` with the `_COMPILER_OPTIONS` of a platform.

    Options that this version of the compiler lacks are left out.
    """
    try:
        return lowered.compile(dict(_COMPILER_OPTIONS.get(platform, {})))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()


# Attributes of `CompiledStep` that `as_json` copies.
_WRITTEN = ("step", "batch", "bytes_per_device", "flops", "seconds", "cpu_seconds", "failure")
_KINDS = {"params": "parameters", "average": "average of parameters"}


def _largest_batch(task: Task, config: Experiment, steps: Steps, name: str) -> dict[str, Any]:
    """Returns the shape and sharding of each field of a batch in the longest bucket."""
    training = name == "train"
    plan = config.training
    split = "train" if training else "validation"
    size = plan.batch_size if training else plan.evaluation_batch_size
    host = example_batches(
        task.examples(split), batch_size=size, buckets=task.buckets, multiple=steps.batch_shards
    )[-1]
    where = sharding.batch_sharding(steps.mesh)
    return {
        key: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where)
        for key, value in host.items()
    }


def _failure(error: Exception, topology: Topology) -> str:
    """Returns the compiler's message if its error is that a program does not fit into the memory.

    Raises:
      UserError: the compiler failed for another reason.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return re.sub(r"^.*?RESOURCE_EXHAUSTED:\s*", "", text.splitlines()[0])
    raise UserError(
        f"--topology={topology.name}: the compiler failed: {text.splitlines()[0]}"
    ) from error


def _flops(function: Any, mesh: Any, *arguments: Any) -> float:
    python = function.__wrapped__.__wrapped__
    # A new function at each call: JAX caches traces by function, and this trace, which uses the
    # reference kernel, must not be reused.
    with tracing.shapes_only(), jax.set_mesh(mesh):
        return count_flops(jax.make_jaxpr(lambda *given: python(*given))(*arguments))


def _counted(found: Sequence[RecordedChoice]) -> list[tuple[RecordedChoice, int]]:
    kinds: list[RecordedChoice] = []
    for each in found:
        if each not in kinds:
            kinds.append(each)
    return [(each, found.count(each)) for each in kinds]


def _relative(one: Collective) -> Collective:
    return dataclasses.replace(one, source=one.source.removeprefix(f"{ROOT}/"))


def _shape(array: Any) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _spec(array: Any) -> str:
    """Formats the sharding of an array as the axes of each dimension, such as "fsdp, tensor, -"."""
    spec = (*array.sharding.spec, *[None] * array.ndim)[: array.ndim]
    words = ("x".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in spec)
    return ", ".join(words)


def _shard_bytes(array: Any) -> int:
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def advice(compilation: Compilation, one: CompiledStep) -> list[str]:
    """Returns advice, as lines of text, for a step that does not fit into the memory of a device.

    The result is empty if the step fits.
    """
    memory = compilation.topology.memory
    if memory is None or (one.peak <= memory and not one.failure):
        return []
    mesh, found = compilation.mesh, []
    state = sum(
        size for kind, size in one.bytes_per_device.items() if kind not in _NOT_STATE
    )  # fmt: skip
    rest = one.bytes_per_device.get("temporaries", 0)
    if state > memory / 4 and mesh["data"] > 1:
        found.append(
            f"the state takes {human(state)} per device: set --config.mesh.fsdp={mesh['fsdp'] * 2} "
            f"and --config.mesh.data={mesh['data'] // 2} to halve it"
        )
    elif state > memory / 4:
        found.append(
            f"the state takes {human(state)} per device: use more devices, or a smaller model"
        )
    if rest > memory / 4 or one.failure:
        name = "batch_size" if one.step == "train" else "evaluation_batch_size"
        taken = f"take {human(rest)} per device" if rest else "do not fit into the memory"
        remat = "" if one.step != "train" else ", or recompute layers (rematerialize)"
        found.append(f"temporaries {taken}: lower --config.training.{name}{remat}")
    return found


_NOT_STATE = ("batch", "arguments", "outputs", "temporaries", "code")


def human(size: float) -> str:
    """Formats bytes, such as '1.2 MB'."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"


def as_json(compilation: Compilation) -> dict[str, Any]:
    """Returns the content of the file that `launch.compile --json` writes."""
    topology = compilation.topology
    return {
        "topology": topology.name,
        "device": topology.kind,
        "memory": topology.memory,
        "versions": compiler_versions(topology.platform),
        "mesh": dict(compilation.mesh),
        "parameters": [
            dict(zip(("path", "shape", "dtype", "sharding", "bytes_per_device"), row, strict=True))
            for row in compilation.parameters
        ],
        "steps": [
            {
                **{name: getattr(one, name) for name in _WRITTEN},
                "peak": one.peak,
                "advice": advice(compilation, one),
                "collectives": [dataclasses.asdict(each) for each in one.collectives],
                "kernels": [
                    {
                        "calls": calls,
                        "sizes": dict(zip("BNKTSH", each.sizes, strict=True)),
                        "dtype": each.dtype,
                        "options": each.options,
                        "kernel": each.choice.name,
                        "reason": each.choice.reason,
                        "unsupported": each.choice.unsupported,
                    }
                    for each, calls in one.choices
                ],
            }
            for one in compilation.steps
        ],
    }
