"""Converts programs to ONNX with jax2onnx, and compares their results with those of XLA.

A program is traced without the patches that jax2onnx applies to JAX, rewritten (`rewriting`), and
then converted one primitive at a time. Weights are inputs of the conversion, so that they keep
their names. In the written files they are initializers, whose external data is one file for all
programs.

In shapes, B is the batch size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from attention import kernels
from launch.exports import reader
from launch.exports.rewriting import rewrite
from tasks.common.errors import UserError

OPSET = 23
# Maximum allowed difference from XLA, relative to the largest output.
TOLERANCE = 1e-5
# File of the weights, beside the programs.
WEIGHTS = "programs/weights.safetensors"
# Loggers that warn, during a conversion, about shapes that cannot be inferred.
_LOGGERS = ("jax2onnx", "onnx_ir", "root")


class NotConvertible(Exception):
    """Error, in one line, for a program that cannot be converted or whose results differ."""


@dataclasses.dataclass(frozen=True)
class OnnxProgram:
    """A converted program.

    Attributes:
      model: an `onnx.ModelProto` whose inputs are weights and arrays by name.
      batch_size: the only batch size that the program accepts; None if it accepts any.
      deviation: largest difference from XLA, relative to the largest output.
    """

    model: Any
    batch_size: int | None
    deviation: float


def check_installed() -> None:
    """Checks that the libraries are installed.

    Raises:
      UserError: one is missing.
    """
    for name in ("jax2onnx", "onnx", "onnxruntime"):
        if util.find_spec(name) is None:
            raise UserError(
                f"--format=onnx: {name} is not installed; pip install -r requirements-onnx.txt"
            )


def describe() -> dict[str, Any]:
    """Returns the versions of ONNX and of the libraries, for signature.json."""
    return {
        "opset": OPSET,
        "converter": f"jax2onnx {metadata.version('jax2onnx')}",
        "verified_with": f"onnxruntime {metadata.version('onnxruntime')}",
        "weights": WEIGHTS,
    }


def convert(
    function: Callable[..., Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    expected: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]],
    example: Mapping[str, np.ndarray],
    batch_size: int,
) -> OnnxProgram:
    """Converts a program for any batch size or, if that fails, for one batch size.

    Args:
      function: program to convert, a function of two mappings, weights and inputs by name. It
        returns arrays [B, ...] by name.
      weights: arrays by name.
      inputs: shapes of the inputs by name; their first size is the symbolic batch size.
      expected: the same program, compiled by XLA.
      example: inputs with a few rows, on which the results are compared.
      batch_size: the only batch size of the program if the conversion for any batch size fails.

    Raises:
      NotConvertible: an operation has no conversion, or results differ.
    """
    try:
        return _converted(function, weights, inputs, expected, example, None)
    except NotConvertible:
        fixed = {n: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
                 for n, x in inputs.items()}  # fmt: skip
        return _converted(function, weights, fixed, expected, example, batch_size)


def _converted(
    function: Callable[..., Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    expected: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]],
    example: Mapping[str, np.ndarray],
    batch_size: int | None,
) -> OnnxProgram:
    import jax2onnx

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    arguments = ({name: shapes[name] for name in sorted(shapes)},
                 {name: inputs[name] for name in sorted(inputs)})  # fmt: skip
    try:
        with kernels.portable():
            traced, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
        program = core.jaxpr_as_fun(rewrite(traced))
        with _quiet():
            model = jax2onnx.to_onnx(
                lambda *arrays: program(*arrays),
                inputs=jax.tree.leaves(arguments),
                input_names=[*arguments[0], *arguments[1]],
                model_name="program",
                opset=OPSET,
            )
    except Exception as error:
        # Conversions of operations raise errors of any type.
        raise NotConvertible(_reason(error)) from error
    _name_outputs(model.graph, sorted(results))
    _remove_unused(model.graph)
    try:
        run = reader.onnx_program(model.SerializeToString(), batch_size, weights)
        deviation = _compare(run, expected, weights, example)
    except reader.InputError as error:
        raise NotConvertible(str(error)) from error
    return OnnxProgram(model, batch_size, deviation)


def _compare(
    run: Callable[..., Mapping[str, Any]],
    expected: Callable[..., Mapping[str, Any]],
    weights: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> float:
    """Returns the largest difference between the outputs of ONNX and those of XLA.

    Raises:
      NotConvertible: the difference exceeds the tolerance.
    """
    found, largest = run(arrays), 0.0
    for name, value in expected(weights, arrays).items():
        difference = reader.difference(found[name], np.asarray(value))
        if not difference <= TOLERANCE:
            raise NotConvertible(
                f"output {name!r} differs from that of XLA by {difference:.2g}, expected at most "
                f"{TOLERANCE:g}"
            )
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of the conversion, whose results are compared anyway."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Returns one line that names the operation at which a conversion failed."""
    operation = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # Frames of jax2onnx hold the primitive's name in this variable. The innermost comes last.
        operation = frame.f_locals.get("primitive_name", operation)
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    line = re.sub(r"^\[\w+\] ", "", line)
    if "No plugins registered" in line:
        return f"operation {operation!r} has no conversion to ONNX"
    return line if operation is None else f"operation {operation!r}: {line}"


# ---------------------------------------------------------------- graphs


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Names the outputs; adds `reader.OUTPUT_SUFFIX` to a name that an input has too."""
    from onnx import helper

    taken = {value.name for value in graph.input}
    for output, name in zip(graph.output, names, strict=True):
        final = f"{name}{reader.OUTPUT_SUFFIX}" if name in taken else name
        # Each output gets its own node, because an output may be the same value as an input or as
        # another output.
        graph.node.append(helper.make_node("Identity", [output.name], [final]))
        output.name = final


def _remove_unused(graph: Any) -> set[str]:
    """Removes unused initializers, which onnxruntime warns about; returns the names in use."""
    used = {value.name for value in graph.output}
    for node in graph.node:
        used |= set(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                used |= _remove_unused(attribute.g)
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return used


# ---------------------------------------------------------------- files


def write(
    folder: Path,
    weights: Mapping[str, np.ndarray],
    programs: Mapping[str, Sequence[OnnxProgram]],
    files: Mapping[str, Sequence[str]],
) -> None:
    """Writes the programs; their external data is the existing file `WEIGHTS` with the weights.

    Args:
      folder: folder of the export, with the file `WEIGHTS`.
      weights: arrays by name.
      programs: programs by kind.
      files: paths of the programs by kind, relative to the folder.
    """
    placed = _positions(folder / WEIGHTS)
    for kind, many in programs.items():
        for program, file in zip(many, files[kind], strict=True):
            model = type(program.model)()
            model.CopyFrom(program.model)
            _bind(model.graph, weights, placed)
            (folder / file).write_bytes(model.SerializeToString())


def _positions(path: Path) -> dict[str, tuple[int, int]]:
    """Returns the position and the size, in bytes, of each array in a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            found[name] = (8 + size + start, stop - start)
    return found


def _bind(
    graph: Any, weights: Mapping[str, np.ndarray], placed: Mapping[str, tuple[int, int]]
) -> None:
    """Turns those inputs of a graph that are weights into initializers with external data."""
    import onnx
    from onnx import numpy_helper

    bound = [value for value in graph.input if value.name in weights]
    arrays = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(arrays)
    for value in bound:
        start, length = placed[value.name]
        if not length:
            graph.initializer.append(numpy_helper.from_array(weights[value.name], value.name))
            continue
        tensor = graph.initializer.add()
        tensor.name, tensor.data_type = value.name, value.type.tensor_type.elem_type
        tensor.dims.extend(weights[value.name].shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, content in (
            ("location", Path(WEIGHTS).name),
            ("offset", start),
            ("length", length),
        ):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(content)
