"""Writes the folder of an export: programs, weights, signature, golden inputs and outputs.

A program is `Task.predict` or `Task.attention` as a function of parameters and inputs by name,
serialized as StableHLO by `jax.export` with a symbolic batch size. There is one program for each
combination of the other variable sizes; see `Processor.export_sizes`. For tasks that decode token
by token, prefill and a single decoding step are exported as programs, too.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
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
from launch.exports import reader
from tasks.common.errors import UserError
from tasks.task import ArraySpec, ProcessingSteps, Task

PLATFORMS = ("cpu", "cuda", "tpu")
# Allowed difference between machines and versions, relative to the largest value of an output.
TOLERANCE = 1e-4
# JAX loads a serialized program in its releases of the next half year.
COMPATIBLE_DAYS = 180
_GOLDEN_ROWS = 2
# Errors of operations that do not support a symbolic batch size.
_NOT_EXPORTABLE = (
    NotImplementedError, TypeError, ValueError, jax.errors.InconclusiveDimensionOperation,
)  # fmt: skip


def write_export(
    task: Task,
    config: Experiment,
    variables: Any,
    target: Path,
    *,
    with_attention: bool = False,
    examples: Sequence[str] = (),
    card: Callable[[Mapping[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """Writes an export, which appears under its name only when complete.

    Args:
      task: task with a fitted processor; needs no data.
      config: experiment of the run.
      variables: variables of the model for evaluation.
      target: folder that does not exist, or is empty.
      with_attention: whether to export `Task.attention`, too.
      examples: raw inputs for the golden outputs; programs whose size none of them has get random
        input arrays.
      card: function that returns the text of README.md for a signature.

    Returns:
      The content of signature.json.

    Raises:
      UserError: the task or its model cannot be exported, or `target` is not an empty folder.
    """
    check_target(target)
    steps = task.processor.steps()
    sizes = task.processor.export_sizes()
    weights = named_weights(variables)
    methods = {"predict": task.predict}
    if with_attention:
        methods["attention"] = task.attention
    specs, programs = task.processor.signature(), {}
    for kind, method in methods.items():
        function = _function(task, config, variables, method)
        programs[kind] = [
            _exported(function, task, weights, input_shapes(specs, one), kind) for one in sizes
        ]
    decoding = _export_decoder(task, config, variables, sizes, programs)
    if with_attention and not programs["attention"][0].out_avals:
        raise UserError(
            f"--with_attention: config.model.name={config.model.name} has no attention weights; "
            "leave the flag out"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        folder.chmod(0o755)
        signature = _signature(task, config, steps, sizes, programs, decoding)
        _write_files(folder, steps, weights, programs, signature)
        _write_golden(folder, signature, examples)
        for path in folder.rglob("*"):
            # Some libraries write files for their owner alone.
            path.chmod(0o755 if path.is_dir() else 0o644)
        signature["sha256"] = _hashes(folder)
        text = json.dumps(signature, indent=1, ensure_ascii=False)
        (folder / "signature.json").write_text(text + "\n", encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_text(card(signature), encoding="utf-8")
        if target.exists():
            target.rmdir()
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return signature


def check_target(target: Path) -> None:
    """Checks that the folder does not exist, or is empty.

    Raises:
      UserError: a file or a folder with content has this name.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output={target}: already exists; name a new directory")


def named_weights(variables: Any) -> dict[str, np.ndarray]:
    """Returns the variables of a model by path, such as "params/encoder/0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
    return {states.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _function(task: Task, config: Experiment, variables: Any, method: Callable) -> Callable:
    """Converts a task's method with a model argument to a function of named weights and inputs."""
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
    """Returns the input shapes of a program, with a symbolic batch size and the given `sizes`."""
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
) -> jax.export.Exported:
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    try:
        with kernels.portable():
            exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(shapes, inputs)
    except _NOT_EXPORTABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{kind} of config.model.name={task.model.name}: {reason}") from None
    return exported


def _export_decoder(
    task: Task,
    config: Experiment,
    variables: Any,
    sizes: Sequence[Mapping[str, int]],
    programs: dict[str, list[jax.export.Exported]],
) -> dict[str, Any] | None:
    """Adds the programs "prefill" and "step" of a task that decodes token by token.

    Prefill maps the inputs to the state before the first step: arrays "state/..." [B, ...], such as
    caches, and "token" [B], the first input token. A step maps state and token to the next state
    and to "scores" [B, V], the log-probabilities of the next token; tokens that are never decoded
    have -inf. The caller chooses the next token from the scores.

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
    made: dict[str, list[jax.export.Exported]] = {"prefill": [], "step": []}
    lengths: list[int] = []
    for one in sizes:
        inputs = input_shapes(specs, one)
        before = _exported(first, task, weights, inputs, "prefill")
        if found[-1] is None:
            return None
        lengths.append(found[-1].max_length)

        def step(model: Any, now: Mapping[str, Any], inputs: Any = inputs) -> dict[str, Any]:
            # The closure of the step only depends on the model: the state is replaced.
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
            excluded = jnp.zeros(scores.shape[-1], bool)
            excluded = excluded.at[jnp.array(decoder.forbidden, jnp.int32)].set(True)
            after = jax.tree_util.tree_leaves_with_path(state)
            named = {f"state/{states.path_name(path)}": leaf for path, leaf in after}
            return {**named, "scores": jnp.where(excluded, -jnp.inf, scores)}

        arrays = jax.tree.unflatten(before.out_tree, before.out_avals)
        (batch,) = jax.export.symbolic_shape("batch")
        shapes = {
            name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in arrays.items()
        }
        after = _exported(_function(task, config, variables, step), task, weights, shapes, "step")
        made["prefill"].append(before)
        made["step"].append(after)
    programs.update(made)
    return {"end": found[-1].end, "max_length": lengths}


def _signature(
    task: Task,
    config: Experiment,
    steps: ProcessingSteps,
    sizes: Sequence[Mapping[str, int]],
    programs: Mapping[str, Sequence[jax.export.Exported]],
    decoding: Mapping[str, Any] | None,
) -> dict[str, Any]:
    until = datetime.date.today() + datetime.timedelta(days=COMPATIBLE_DAYS)
    return {
        "format": reader.FORMAT,
        "task": config.task,
        "data": config.data.name,
        "model": config.model.name,
        "input": steps.kind,
        "column": task.processor.input_column,
        "jax": {"version": jax.__version__, "compatible_until": until.isoformat()},
        "platforms": list(PLATFORMS),
        "libraries": list(steps.libraries),
        "batch_size": config.training.evaluation_batch_size,
        "tolerance": TOLERANCE,
        "inputs": {
            name: {"shape": list(spec.shape), "dtype": spec.dtype, "padding": spec.padding}
            for name, spec in task.processor.signature().items()
        },
        "outputs": _outputs(programs["predict"][-1]),
        "programs": {
            kind: [
                {"sizes": dict(one), "file": f"programs/{kind}-{number}.stablehlo"}
                for number, one in enumerate(sizes)
            ]
            for kind in programs
        },
        "decoding": decoding,
        "encode": list(steps.encode),
        "decode": list(steps.decode),
    }


def _outputs(program: jax.export.Exported) -> dict[str, Any]:
    tree = jax.tree.unflatten(program.out_tree, program.out_avals)
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
    programs: Mapping[str, Sequence[jax.export.Exported]],
    signature: Mapping[str, Any],
) -> None:
    (folder / "programs").mkdir()
    for kind, exported in programs.items():
        for one, entry in zip(exported, signature["programs"][kind], strict=True):
            (folder / entry["file"]).write_bytes(bytes(one.serialize()))
    write_tensors(weights, folder / "weights.safetensors")
    write_step_files(folder, steps)
    shutil.copyfile(reader.__file__, folder / "predict.py")
    needed = ["jax", "flatbuffers", "numpy", *steps.libraries]
    lines = [f"{name}=={_version(name)}" for name in needed]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tensors(tensors: Mapping[str, Any], file: Path) -> None:
    """Writes arrays as safetensors, with their shapes: `np.ascontiguousarray` has no scalars."""
    from safetensors.numpy import save_file

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


def _write_golden(folder: Path, signature: dict[str, Any], examples: Sequence[str]) -> None:
    """Writes golden.safetensors: examples, or random inputs, with the outputs of the programs."""
    text = json.dumps({**signature, "sha256": {}})
    (folder / "signature.json").write_text(text, encoding="utf-8")
    export, found = reader.Export(folder), {}
    given = [row for raw in examples for row in export.encode(raw).rows]
    for index in range(len(signature["programs"]["predict"])):
        rows = [row for row in given if export.bucket(row) == index] or _made_up(signature, index)
        rows = rows[:_GOLDEN_ROWS]
        batch = export.batch(rows, list(range(len(rows))), index, len(rows))
        outputs = jax.device_get(export.program("predict", index)(batch))
        found |= {f"{index}/inputs/{name}": value for name, value in batch.items()}
        found |= {f"{index}/outputs/{name}": np.asarray(x) for name, x in outputs.items()}
    write_tensors(found, folder / "golden.safetensors")


def _made_up(signature: Mapping[str, Any], index: int) -> list[dict[str, Any]]:
    """Returns rows of random input arrays with small values for a program."""
    sizes = signature["programs"]["predict"][index]["sizes"]
    random, rows = np.random.default_rng(index), []
    for _ in range(_GOLDEN_ROWS):
        row: dict[str, Any] = {}
        for name, spec in signature["inputs"].items():
            shape = [sizes.get(n, n) if isinstance(n, str) else n for n in spec["shape"][1:]]
            if name in ("id", "weight"):
                continue
            if not shape:
                # Lengths and positions.
                row[name] = np.dtype(spec["dtype"]).type(max(sizes.values(), default=1) // 2)
            elif spec["dtype"].startswith("float"):
                row[name] = random.standard_normal(shape).astype(spec["dtype"])
            else:
                top = 256 if spec["dtype"] == "uint8" else 2
                row[name] = random.integers(0, top, shape).astype(spec["dtype"])
        rows.append(row)
    return rows


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("signature.json", "README.md"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found
