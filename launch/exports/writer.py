"""Writes the folder of an export: programs, weights, signature, golden inputs and outputs.

A program is `Task.predict` or `Task.attention` as a function of parameters and inputs by name,
serialized as StableHLO by `jax.export` with a symbolic batch size. There is one program for each
combination of the other variable sizes; see `Processor.export_sizes`. For tasks that decode token
by token, prefill and a single decoding step are exported as programs, too. With the format "onnx",
the programs are converted by `onnx_programs`.

In shapes, B is the batch size and V the size of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.errors
import jax.export
import jax.numpy as jnp
import numpy as np

from attention import kernels
from launch.engine import state as states
from launch.engine.config import Experiment
from launch.engine.new_folder import check_new, new_folder
from launch.exports import onnx_programs, reader
from launch.exports.onnx_programs import NotConvertible, OnnxProgram
from tasks.common.errors import UserError
from tasks.task import ArraySpec, ProcessingSteps, Task

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
# Maximum allowed difference between the outputs of different machines and library versions,
# relative to the largest value of an output.
TOLERANCE = 1e-4
# Number of days for which JAX promises that its new releases load a serialized program.
COMPATIBLE_DAYS = 180
_GOLDEN_ROWS = 2
# Errors of operations that do not support a symbolic batch size.
_NOT_EXPORTABLE = (
    NotImplementedError, TypeError, ValueError, jax.errors.InconclusiveDimensionOperation,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to export.

    Attributes:
      function: function of two mappings, weights and inputs by name, which returns arrays [B, ...]
        by name.
      inputs: shapes of the inputs by name; their first size is the symbol of the batch size.
      exported: the function as StableHLO.
    """

    function: Callable[..., dict[str, Any]]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    exported: jax.export.Exported

    @functools.cached_property
    def call(self) -> Callable[..., dict[str, Any]]:
        """The program as a compiled function of weights and inputs."""
        return jax.jit(self.exported.call)

    @property
    def outputs(self) -> dict[str, Any]:
        """Shapes of the outputs by name."""
        return jax.tree.unflatten(self.exported.out_tree, self.exported.out_avals)


def write_export(
    task: Task,
    config: Experiment,
    variables: Any,
    target: Path,
    *,
    with_attention: bool = False,
    examples: Sequence[str] = (),
    card: Callable[[Mapping[str, Any]], str] | None = None,
    format: str = "stablehlo",
    batch_size: int = 1,
) -> dict[str, Any]:
    """Writes an export; the folder `target` is created only when all of its files are written.

    Args:
      task: task with a fitted processor; needs no data.
      config: experiment of the run.
      variables: variables of the model for evaluation.
      target: folder that does not exist, or is empty.
      with_attention: whether to export `Task.attention`, too.
      examples: raw inputs for the golden outputs. A program that runs none of these inputs gets
        random input arrays.
      card: function that returns the text of README.md, given the content of signature.json.
      format: format of the programs, one of `FORMATS`.
      batch_size: batch size of ONNX programs that cannot be converted for any batch size.

    Returns:
      The content of signature.json.

    Raises:
      UserError: the task or its model cannot be exported, or `target` is not an empty folder.
    """
    check_new("output", target)
    if format == "onnx":
        onnx_programs.check_installed()
    steps = task.processor.steps()
    sizes = task.processor.export_sizes()
    weights = named_weights(variables)
    specs = task.processor.signature()
    programs, decoding = build_programs(task, config, variables, with_attention)
    if with_attention and not programs["attention"][0].outputs:
        raise UserError(
            f"--with_attention: config.model.name={config.model.name} has no attention weights; "
            "leave the flag out"
        )
    converted = None
    if format == "onnx":
        entries = input_entries(specs)
        made_up = [made_up_inputs(entries, one, n) for n, one in enumerate(sizes)]
        converted = convert(programs, weights, made_up, batch_size)
        if converted.required is not None:
            name = config.model.name
            raise UserError(f"--format=onnx: config.model.name={name}: {converted.required}")
        programs = {kind: programs[kind] for kind in converted.programs}
        decoding = decoding if "step" in programs else None
    with new_folder("output", target) as folder:
        signature = _signature(task, config, steps, sizes, programs, decoding, converted)
        _write_files(folder, steps, weights, programs, signature, converted)
        _write_golden(folder, signature, examples, weights, programs["predict"])
        for path in folder.rglob("*"):
            # Some libraries write files that only their owner can read.
            path.chmod(0o755 if path.is_dir() else 0o644)
        signature["sha256"] = _hashes(folder)
        text = json.dumps(signature, indent=1, ensure_ascii=False)
        (folder / "signature.json").write_text(text + "\n", encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_text(card(signature), encoding="utf-8")
    return signature


def build_programs(
    task: Task, config: Experiment, variables: Any, with_attention: bool
) -> tuple[dict[str, list[Program]], dict[str, Any] | None]:
    """Returns the programs of a task, and the entry "decoding" of the signature.

    Each kind of program has a list with one program for each combination of sizes.

    Raises:
      UserError: the task or its model cannot be exported.
    """
    sizes, specs = task.processor.export_sizes(), task.processor.signature()
    weights = named_weights(variables)
    methods = {"predict": task.predict}
    if with_attention:
        methods["attention"] = task.attention
    programs: dict[str, list[Program]] = {}
    for kind, method in methods.items():
        function = _function(task, config, variables, method)
        programs[kind] = [
            _exported(function, task, weights, input_shapes(specs, one), kind) for one in sizes
        ]
    return programs, _export_decoder(task, config, variables, sizes, programs)


def named_weights(variables: Any) -> dict[str, np.ndarray]:
    """Returns the variables of a model by path, such as "params/encoder/0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
    return {states.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _function(task: Task, config: Experiment, variables: Any, method: Callable) -> Callable:
    """Converts a task's method of (model, inputs) to a function of weights and inputs by name."""
    graphdef = states.graph_definition(task, config.seed)
    names, tree = list(named_weights(variables)), jax.tree.structure(variables)

    def run(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = jax.tree.unflatten(tree, [weights[name] for name in names])
        model = states.merge_model(graphdef, given["params"], given["statistics"])
        return method(model, inputs)

    return run


def input_shapes(
    signature: Mapping[str, ArraySpec], sizes: Mapping[str, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the input shapes of a program for given sizes, with a symbolic batch size."""
    (batch,), found = jax.export.symbolic_shape("batch"), {}
    for name, spec in signature.items():
        rest = [sizes[n] if isinstance(n, str) else n for n in spec.shape[1:]]
        found[name] = jax.ShapeDtypeStruct((batch, *rest), np.dtype(spec.dtype))
    return found


def _exported(
    function: Callable,
    task: Task,
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    kind: str,
) -> Program:
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    try:
        with kernels.portable():
            exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(shapes, inputs)
    except _NOT_EXPORTABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{kind} of config.model.name={task.model.name}: {reason}") from None
    return Program(function, inputs, exported)


def _export_decoder(
    task: Task,
    config: Experiment,
    variables: Any,
    sizes: Sequence[Mapping[str, int]],
    programs: dict[str, list[Program]],
) -> dict[str, Any] | None:
    """Adds the programs "prefill" and "step" of a task that decodes token by token.

    "prefill" maps the inputs to the state before the first step. The state consists of arrays
    "state/..." [B, ...], such as caches; another output, "token" [B], is the first input token.
    "step" maps state and token to the next state and to "scores" [B, V], the log-probabilities of
    the next token; tokens that are never decoded have -inf. The caller chooses the next token from
    the scores.

    Returns:
      The entry "decoding" of the signature; None for other tasks.
    """
    weights, specs = named_weights(variables), task.processor.signature()
    found: list[Any] = []

    def prefill(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        decoder = task.decoder(model, inputs)
        found.append(decoder)
        if decoder is None:
            return {}
        start = jnp.asarray(decoder.start, jnp.int32)
        leaves = jax.tree_util.tree_leaves_with_path(decoder.state)
        named = {f"state/{states.path_name(path)}": leaf for path, leaf in leaves}
        return {**named, "token": jnp.broadcast_to(start, (decoder.batch_size,))}

    first = _function(task, config, variables, prefill)
    made: dict[str, list[Program]] = {"prefill": [], "step": []}
    lengths: list[int] = []
    for one in sizes:
        inputs = input_shapes(specs, one)
        before = _exported(first, task, weights, inputs, "prefill")
        if found[-1] is None:
            return None
        lengths.append(found[-1].max_length)

        def step(model: Any, now: Mapping[str, Any], inputs: Any = inputs) -> dict[str, Any]:
            # The decoder is created from inputs of zeros. Only its step function is used, which
            # does not depend on the inputs, and its state is replaced by the given state.
            zeros = {n: jnp.zeros((now["token"].shape[0], *x.shape[1:]), x.dtype)
                     for n, x in inputs.items()}  # fmt: skip
            decoder = task.decoder(model, zeros)
            tree, leaves = jax.tree.structure(decoder.state), []
            for path, _ in jax.tree_util.tree_leaves_with_path(decoder.state):
                leaves.append(now[f"state/{states.path_name(path)}"])
            scores, state, _ = decoder.step(now["token"], jax.tree.unflatten(tree, leaves))
            scores = scores.astype(jnp.float32)
            if not decoder.scores_are_log_probs:
                scores = jax.nn.log_softmax(scores)
            excluded = np.isin(np.arange(scores.shape[-1]), decoder.forbidden)
            after = jax.tree_util.tree_leaves_with_path(state)
            named = {f"state/{states.path_name(path)}": leaf for path, leaf in after}
            return {**named, "scores": jnp.where(excluded, -jnp.inf, scores)}

        (batch,) = jax.export.symbolic_shape("batch")
        shapes = {
            name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
            for name, x in before.outputs.items()
        }
        after = _exported(_function(task, config, variables, step), task, weights, shapes, "step")
        made["prefill"].append(before)
        made["step"].append(after)
    programs.update(made)
    return {"end": found[-1].end, "max_length": lengths}


@dataclasses.dataclass(frozen=True)
class Converted:
    """Programs converted to ONNX.

    Attributes:
      programs: converted programs by kind, in the order of sizes.
      reasons: one line for each kind that cannot be converted.
      deviation: largest difference from XLA, relative to the largest output.
    """

    programs: Mapping[str, Sequence[OnnxProgram]]
    reasons: Mapping[str, str]
    deviation: float

    @property
    def required(self) -> str | None:
        """Reason why the export is impossible; None if "predict" and "attention" are converted."""
        for kind in ("predict", "attention"):
            if kind in self.reasons:
                return f"{kind}: {self.reasons[kind]}"
        return None


def convert(
    programs: Mapping[str, Sequence[Program]],
    weights: Mapping[str, np.ndarray],
    examples: Sequence[Mapping[str, np.ndarray]],
    batch_size: int,
) -> Converted:
    """Converts programs to ONNX, and compares their results with those of XLA.

    Args:
      programs: programs by kind, one for each input size, in ascending order.
      weights: arrays by name.
      examples: inputs, one batch for each size, on which the results are compared.
      batch_size: fixed batch size of programs that cannot be converted with a variable one.
    """
    found: dict[str, list[OnnxProgram]] = {}
    reasons: dict[str, str] = {}
    for kind, many in programs.items():
        found[kind] = []
        for number, program in enumerate(many):
            example = examples[number]
            if kind == "step":
                example = reader.fetched(programs["prefill"][number].call(weights, example))
            try:
                one = onnx_programs.convert(
                    program.function, weights, program.inputs, program.call, example, batch_size
                )
            except NotConvertible as error:
                reasons[kind] = str(error)
                break
            found[kind].append(one)
    for one, other in (("prefill", "step"), ("step", "prefill")):
        if one in reasons and other in found and other not in reasons:
            reasons[other] = f"is of no use without {one}, which is not converted"
    done = {kind: many for kind, many in found.items() if kind not in reasons}
    deviations = (program.deviation for many in done.values() for program in many)
    return Converted(done, reasons, max(deviations, default=0.0))


def _signature(
    task: Task,
    config: Experiment,
    steps: ProcessingSteps,
    sizes: Sequence[Mapping[str, int]],
    programs: Mapping[str, Sequence[Program]],
    decoding: Mapping[str, Any] | None,
    converted: Converted | None,
) -> dict[str, Any]:
    return {
        "format": reader.FORMAT,
        "task": config.task,
        "data": config.data.name,
        "model": config.model.name,
        "input": steps.kind,
        "column": task.processor.input_column,
        **_described(converted),
        "libraries": list(steps.libraries),
        "batch_size": config.training.evaluation_batch_size,
        "tolerance": TOLERANCE if converted is None else onnx_programs.TOLERANCE,
        "inputs": input_entries(task.processor.signature()),
        "outputs": _outputs(programs["predict"][-1]),
        "programs": {
            kind: [_entry(kind, number, one, converted) for number, one in enumerate(sizes)]
            for kind in programs
        },
        "decoding": decoding,
        "encode": list(steps.encode),
        "decode": list(steps.decode),
    }


def input_entries(specs: Mapping[str, ArraySpec]) -> dict[str, dict[str, Any]]:
    """Returns the entry "inputs" of the signature."""
    return {
        name: {"shape": list(spec.shape), "dtype": spec.dtype, "padding": spec.padding}
        for name, spec in specs.items()
    }


def _described(converted: Converted | None) -> dict[str, Any]:
    """Returns the entries of the signature that describe the format, versions and platforms."""
    if converted is not None:
        reasons = {"not_converted": dict(converted.reasons)}
        return {"onnx": {**onnx_programs.describe(), "deviation": converted.deviation, **reasons}}
    until = datetime.date.today() + datetime.timedelta(days=COMPATIBLE_DAYS)
    return {
        "jax": {"version": jax.__version__, "compatible_until": until.isoformat()},
        "platforms": list(PLATFORMS),
    }


def _entry(
    kind: str, number: int, sizes: Mapping[str, int], converted: Converted | None
) -> dict[str, Any]:
    """Returns the signature's entry for a program, with "batch_size" if the batch size is fixed."""
    name = f"programs/{kind}-{number}"
    if converted is None:
        return {"sizes": dict(sizes), "file": f"{name}.stablehlo"}
    batch_size = converted.programs[kind][number].batch_size
    fixed = {} if batch_size is None else {"batch_size": batch_size}
    return {"sizes": dict(sizes), "file": f"{name}.onnx", **fixed}


def _outputs(program: Program) -> dict[str, Any]:
    tree = program.outputs
    return {
        name: {
            "shape": ["batch", *(n if isinstance(n, int) else str(n) for n in aval.shape[1:])],
            "dtype": str(aval.dtype),
        }
        for name, aval in tree.items()
    }


def _write_files(
    folder: Path,
    steps: ProcessingSteps,
    weights: Mapping[str, np.ndarray],
    programs: Mapping[str, Sequence[Program]],
    signature: Mapping[str, Any],
    converted: Converted | None,
) -> None:
    (folder / "programs").mkdir()
    files = {
        kind: [entry["file"] for entry in entries]
        for kind, entries in signature["programs"].items()
    }
    if converted is not None:
        write_tensors(weights, folder / onnx_programs.WEIGHTS)
        onnx_programs.write(folder, weights, converted.programs, files)
    else:
        write_tensors(weights, folder / "weights.safetensors")
        for kind, many in programs.items():
            for program, file in zip(many, files[kind], strict=True):
                (folder / file).write_bytes(bytes(program.exported.serialize()))
    write_step_files(folder, steps)
    shutil.copyfile(reader.__file__, folder / "predict.py")
    runtime = ["jax", "flatbuffers"] if converted is None else ["onnxruntime"]
    needed = [*runtime, "numpy", *steps.libraries]
    lines = [f"{name}=={_version(name)}" for name in needed]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tensors(tensors: Mapping[str, Any], file: Path) -> None:
    """Writes arrays to a safetensors file."""
    from safetensors.numpy import save_file

    # `np.ascontiguousarray` would turn scalars into arrays with one dimension.
    save_file({name: np.asarray(x, order="C") for name, x in tensors.items()}, file)


def write_step_files(folder: Path, steps: ProcessingSteps) -> None:
    """Writes the files of pre- and postprocessing: texts as UTF-8, arrays as safetensors."""
    for name, content in steps.files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_tensors(content, folder / name)


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def _write_golden(
    folder: Path,
    signature: dict[str, Any],
    examples: Sequence[str],
    weights: Mapping[str, np.ndarray],
    programs: Sequence[Program],
) -> None:
    """Writes golden.safetensors: examples or random inputs, with the outputs that XLA computes.

    Raises:
      UserError: the outputs of the ONNX programs differ from those of XLA.
    """
    text = json.dumps({**signature, "sha256": {}})
    (folder / "signature.json").write_text(text, encoding="utf-8")
    export, found = reader.Export(folder), {}
    given = [row for raw in examples for row in export.encode(raw).rows]
    for index, program in enumerate(programs):
        sizes = signature["programs"]["predict"][index]["sizes"]
        batch = made_up_inputs(signature["inputs"], sizes, index)
        rows = [row for row in given if export.bucket(row) == index][:_GOLDEN_ROWS]
        if rows:
            batch = export.batch(rows, list(range(len(rows))), index, len(rows))
        if export.is_onnx:
            outputs = program.call(weights, batch)
        else:
            outputs = export.program("predict", index)(batch)
        outputs = reader.fetched(outputs)
        found |= {f"{index}/inputs/{name}": value for name, value in batch.items()}
        found |= {f"{index}/outputs/{name}": value for name, value in outputs.items()}
    write_tensors(found, folder / "golden.safetensors")
    if export.is_onnx:
        try:
            largest = export.verify()
        except reader.InputError as error:
            reason = str(error).removeprefix(f"{folder}: ")
            raise UserError(f"--format=onnx: {reason}; leave the flag out") from None
        signature["onnx"]["deviation"] = max(signature["onnx"]["deviation"], largest)


def made_up_inputs(
    inputs: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """Returns a batch of random input arrays with small values for a program.

    Args:
      inputs: entry "inputs" of the signature.
      sizes: sizes of the program.
      seed: seed of the arrays.
    """
    random, rows = np.random.default_rng(seed), []
    largest = max((n for spec in inputs.values() for n in spec["shape"] if isinstance(n, int)),
                  default=1)  # fmt: skip
    for _ in range(_GOLDEN_ROWS):
        row: dict[str, Any] = {}
        for name, spec in inputs.items():
            shape = [sizes.get(n, n) if isinstance(n, str) else n for n in spec["shape"][1:]]
            dtype = np.dtype(spec["dtype"])
            if name in ("id", "weight"):
                continue
            if not shape:
                # Lengths and positions.
                row[name] = dtype.type(max(sizes.values(), default=1) // 2)
            elif dtype.kind == "f":
                row[name] = random.standard_normal(shape).astype(dtype)
            elif dtype == np.int32 and spec["padding"] is None:
                # Sizes of images, and positions of windows in them.
                row[name] = np.full(shape, largest, dtype)
            else:
                # Sounds, images, and tokens that every vocabulary has.
                ranges = {"int16": (-(1 << 13), 1 << 13), "uint8": (0, 256)}
                row[name] = random.integers(*ranges.get(dtype.name, (0, 2)), shape).astype(dtype)
        rows.append(row)
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if "id" in inputs:
        found["id"] = np.arange(_GOLDEN_ROWS, dtype=inputs["id"]["dtype"])
    if "weight" in inputs:
        found["weight"] = np.ones(_GOLDEN_ROWS, inputs["weight"]["dtype"])
    return {name: found[name] for name in inputs}


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("signature.json", "README.md"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found
