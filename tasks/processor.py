"""Processors, which convert raw inputs to arrays and model outputs to predictions on the host."""

from __future__ import annotations

import abc
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.data.pipeline import Examples
from tasks.common.data.user_files import find_file
from tasks.common.errors import UserError

Arrays = Mapping[str, np.ndarray]
"""Arrays on the host by name."""


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Description of an input or output array.

    Attributes:
      shape: dimensions, such as ("batch", 28, 28, 1); a dimension that varies has a name.
      dtype: name of the dtype.
      padding: padding value; None if the array is not padded.
    """

    shape: tuple[str | int, ...]
    dtype: str
    padding: Any = None


@dataclasses.dataclass(frozen=True)
class ProcessingSteps:
    """Preprocessing and postprocessing as lists of operations.

    `launch.exports.reader` executes the operations. Every export contains a copy of this reader,
    which does not need the code of the processor.

    Attributes:
      kind: kind of a raw input: "text", "image", "sound" or "table".
      encode: operations that convert a raw input to the arrays of `Processor.signature`, in order.
        Each is a JSON object with the name of the operation as "op", and its options.
      decode: operations that convert the outputs to the prediction, in the same form.
      files: content of each file that an operation refers to: a text, or arrays by name.
      libraries: packages that the operations import, besides jax and numpy.
    """

    kind: str
    encode: Sequence[Mapping[str, Any]]
    decode: Sequence[Mapping[str, Any]]
    files: Mapping[str, str | Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    libraries: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Processor(abc.ABC):
    """Base class of processors, which convert raw inputs to arrays, and outputs to predictions.

    A subclass is a frozen dataclass. Its fields after `data` and `model` are fitted on the training
    split and stored in assets.json; they are JSON values, NumPy arrays, or objects with `to_json`
    and `from_json`. If batches are padded, a field or property `buckets` contains their lengths,
    ascending.

    Attributes:
      data, model: configs of the data set and of the model.
    """

    data: Any
    model: Any

    @property
    def input_column(self) -> str | None:
        """Column of tables with the raw inputs for `launch.predict`; None if it reads no tables."""
        return None

    @property
    def input_suffixes(self) -> Sequence[str]:
        """Extensions of input files; empty if raw inputs are texts instead of paths.

        For tasks that read files, an input may also be a folder or a glob pattern.
        """
        return ()

    def assets(self) -> dict[str, Any]:
        """Returns the fitted fields as JSON values."""
        found = {}
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            found[field.name] = value.to_json() if hasattr(value, "to_json") else value
        return found

    @classmethod
    def from_assets(cls, data: Any, model: Any, assets: Mapping[str, Any]) -> Processor:
        """Builds a processor from its configs and the result of `assets`.

        Raises:
          KeyError: a field is missing.
        """
        types, found = typing.get_type_hints(cls), {}
        for field in dataclasses.fields(cls)[2:]:
            value, kind = assets[field.name], types[field.name]
            if types[field.name] is np.ndarray:
                value = np.asarray(value, np.float32)
            found[field.name] = kind.from_json(value) if hasattr(kind, "from_json") else value
        return cls(data, model, **found)

    @abc.abstractmethod
    def encode(self, raw: Sequence[str]) -> Examples:
        """Converts raw inputs to examples without labels.

        Raises:
          UserError: an input cannot be read.
        """

    @abc.abstractmethod
    def decode(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Converts the outputs of the model to predictions.

        Args:
          raw: inputs, as for `encode`.
          outputs: outputs of `Task.predict`, with one row per input.

        Returns:
          One JSON object per input; its "text" is the line to print.
        """

    @abc.abstractmethod
    def signature(self) -> dict[str, ArraySpec]:
        """Returns descriptions of the arrays that `Task.predict` takes, by name."""

    def steps(self) -> ProcessingSteps:
        """Returns the operations of `encode` and `decode` as JSON objects, for exports.

        Raises:
          UserError: the processor does not support exports.
        """
        raise UserError(f"{type(self).__name__}.steps: not implemented, so nothing can be exported")

    def export_sizes(self) -> list[dict[str, int]]:
        """Returns the sizes of the named dimensions for each program that is exported.

        The batch dimension is not included. By default there is one program for each of the
        `buckets`, shortest first, or a single program if only the batch dimension has a name.
        """
        named = {
            name: {size for size in spec.shape[1:] if isinstance(size, str)}
            for name, spec in self.signature().items()
        }
        if not any(named.values()):
            return [{}]
        found = []
        for bucket in getattr(self, "buckets", None) or ():
            lengths = bucket if isinstance(bucket, Mapping) else dict.fromkeys(named, bucket)
            sizes = {
                size: lengths[name] for name in lengths if name in named for size in named[name]
            }
            if sizes not in found:
                found.append(sizes)
        return found

    def table_input(self, value: str, folder: Path) -> str:
        """Converts a cell of `input_column` to a raw input.

        If there are `input_suffixes`, the cell names a file and the result is its path. Otherwise
        the cell is returned unchanged.

        Args:
          value: content of the cell.
          folder: folder of the table, to which paths in cells are relative.
        """
        return str(find_file(folder, value.strip())) if self.input_suffixes else value
