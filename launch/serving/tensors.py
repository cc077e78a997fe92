"""Tensors of the Open Inference Protocol, version 2, as JSON data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.exports.reader import Row
from launch.serving.problems import invalid, known_keys

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16",
}  # fmt: skip
# Inputs that the server fills in: the number that seeds random samples, and the weight of a row.
OPTIONAL = ("id", "weight")


def metadata(specs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the name, datatype and shape of each array; variable sizes are -1 in a shape."""
    return [
        {
            "name": name,
            "datatype": DATATYPES[spec["dtype"]],
            "shape": [size if isinstance(size, int) else -1 for size in spec["shape"]],
        }
        for name, spec in specs.items()
    ]


def read_inputs(
    given: Any, specs: Mapping[str, Mapping[str, Any]], longest: Mapping[str, int], most: int
) -> list[Row]:
    """Reads the tensors of a request and splits them into rows along the batch axis.

    Args:
      given: value of "inputs" in the request.
      specs: value of "inputs" in the export's signature.
      longest: maximum sizes of the variable dimensions, by name.
      most: maximum number of rows.

    Raises:
      Problem: a tensor is missing, unknown, or has another datatype, shape or count.
    """
    if not isinstance(given, list) or not given:
        raise invalid("inputs: expected a list of tensors", "inputs")
    arrays: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for number, tensor in enumerate(given):
        field = f"inputs[{number}]"
        known_keys(tensor, ("name", "shape", "datatype", "data", "parameters"), field)
        name = tensor.get("name")
        if not isinstance(name, str) or name not in specs:
            raise invalid(f"{field}.name: expected one of {', '.join(specs)}", f"{field}.name")
        if name in arrays:
            raise invalid(f"{field}.name: {name} is given twice", f"{field}.name")
        if tensor.get("parameters"):
            raise invalid(f"{field}.parameters: not supported", f"{field}.parameters")
        arrays[name] = _array(tensor, specs[name], sizes, {**longest, "batch": most}, field)
    for name in specs:
        if name not in arrays and name not in OPTIONAL:
            raise invalid(f"inputs: tensor {name} is missing", "inputs")
    return [{name: array[n] for name, array in arrays.items()} for n in range(sizes["batch"])]


def _array(
    tensor: Mapping[str, Any],
    spec: Mapping[str, Any],
    sizes: dict[str, int],
    longest: Mapping[str, int],
    field: str,
) -> np.ndarray:
    datatype = DATATYPES[spec["dtype"]]
    if tensor.get("datatype") != datatype:
        raise invalid(f"{field}.datatype: expected {datatype}", f"{field}.datatype")
    shape, where = tensor.get("shape"), f"{field}.shape"
    expected = spec["shape"]
    if (
        not isinstance(shape, list)
        or len(shape) != len(expected)
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
    ):
        raise invalid(f"{where}: expected positive integers [{_shown(expected)}]", where)
    for size, length in zip(expected, shape, strict=True):
        if isinstance(size, int):
            if size != length:
                raise invalid(f"{where}: expected [{_shown(expected)}]", where)
        elif sizes.setdefault(size, length) != length:
            message = f"{where}: got {size}={length}, expected {sizes[size]} as in earlier tensors"
            raise invalid(message, where)
        elif length > longest.get(size, length):
            raise invalid(f"{where}: got {size}={length}, expected at most {longest[size]}", where)
    values, where = tensor.get("data"), f"{field}.data"
    if not isinstance(values, list):
        raise invalid(f"{where}: expected a list of values", where)
    flat: list[Any] = []
    nested = len(shape) > 1 and bool(values) and isinstance(values[0], list)
    _flatten(values, shape if nested else [math.prod(shape)], flat, where)
    return _typed(flat, spec["dtype"], where).reshape(shape)


def _shown(shape: Sequence[int | str]) -> str:
    return ", ".join(map(str, shape))


def _flatten(values: Any, shape: Sequence[int], flat: list[Any], field: str) -> None:
    if not isinstance(values, list) or len(values) != shape[0]:
        got = len(values) if isinstance(values, list) else "no list"
        raise invalid(f"{field}: got {got}, expected {shape[0]} values as the shape states", field)
    if len(shape) == 1:
        flat.extend(values)
        return
    for value in values:
        _flatten(value, shape[1:], flat, field)


def _typed(flat: Sequence[Any], dtype: str, field: str) -> np.ndarray:
    """Converts values to an array of a dtype, without rounding to integers and without overflow.

    Raises:
      Problem: a value does not fit the dtype.
    """
    if dtype == "bool":
        if not all(isinstance(value, bool) for value in flat):
            raise invalid(f"{field}: expected true and false only", field)
        return np.array(flat, bool)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in flat)
    if dtype.startswith(("int", "uint")):
        limits = np.iinfo(dtype)
        if not numbers or not all(
            isinstance(value, int) and limits.min <= value <= limits.max for value in flat
        ):
            raise invalid(f"{field}: expected integers from {limits.min} to {limits.max}", field)
        return np.array(flat, dtype)
    if not numbers:
        raise invalid(f"{field}: expected numbers only", field)
    try:
        array = np.array(flat, np.float64)
    except OverflowError:
        array = np.array([np.inf])
    with np.errstate(over="ignore"):
        array = array.astype(_float(dtype))
    if not np.isfinite(array.astype(np.float64)).all():
        raise invalid(f"{field}: expected numbers that are finite in {DATATYPES[dtype]}", field)
    return array


def _float(dtype: str) -> Any:
    if dtype == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return dtype


def write_outputs(
    outputs: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Stacks the outputs of all rows as JSON tensors; numbers that are not finite become null.

    Args:
      outputs: for each row, its output arrays by name.
      names: outputs to return.
    """
    found = []
    for name in names:
        array = np.stack([row[name] for row in outputs])
        flat = array.ravel()
        if DATATYPES[str(array.dtype)] in ("FP16", "BF16"):
            flat = flat.astype(np.float32)
        values = flat.tolist()
        if array.dtype.kind not in "biu":
            values = [value if math.isfinite(value) else None for value in values]
        found.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPES[str(array.dtype)],
                "data": values,
            }
        )
    return found


def output_names(given: Any, known: Sequence[str]) -> list[str]:
    """Returns the names of the outputs that a request asks for.

    Args:
      given: value of "outputs" in the request; None for all outputs.
      known: names of all outputs.

    Raises:
      Problem: an output is unknown.
    """
    if given is None:
        return list(known)
    if not isinstance(given, list) or not given:
        raise invalid("outputs: expected a list of objects with a name", "outputs")
    names = []
    for number, one in enumerate(given):
        field = f"outputs[{number}]"
        name = known_keys(one, ("name", "parameters"), field).get("name")
        if not isinstance(name, str) or name not in known:
            raise invalid(f"{field}.name: expected one of {', '.join(known)}", f"{field}.name")
        if one.get("parameters"):
            raise invalid(f"{field}.parameters: not supported", f"{field}.parameters")
        names.append(name)
    return names
