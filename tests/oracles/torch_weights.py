"""Our weights as those of a torch module with query, key, value and out projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def params(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns our parameters by path, "encoder/layers/0/attention/query/kernel"."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): leaf for path, leaf in flat}


class TorchWeights:
    """Gathers torch's weights by name, each a function of arrays by our path.

    Args:
      arrays: torch tensors, "encoder/layers/0/attention/query/kernel"; kernels are [in, out].

    Attributes:
      found: by torch's names; matrices are [out, in].
    """

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays, self.found = arrays, {}

    def linear(self, own: str, other: str, rows: int | None = None, bias: bool = True) -> None:
        """Returns a projection; rows is the product of its input's dimensions, where there are
        several."""
        kernel = self.arrays[f"{own}/kernel"]
        self.found[f"{other}.weight"] = kernel.reshape(rows or kernel.shape[0], -1).T
        if bias:
            self.found[f"{other}.bias"] = self.arrays[f"{own}/bias"].reshape(-1)

    def norm(self, own: str, other: str) -> None:
        """Returns a layer norm."""
        self.found[f"{other}.weight"] = self.arrays[f"{own}/scale"]
        self.found[f"{other}.bias"] = self.arrays[f"{own}/bias"]

    def attention(self, own: str, other: str, names: Mapping[str, str] = PROJECTIONS) -> None:
        """Converts multi-head attention, given our names of its projections and theirs."""
        for name, short in names.items():
            kernel = self.arrays[f"{own}/{name}/kernel"]
            rows = kernel.shape[0] * kernel.shape[1] if name == "out" else kernel.shape[0]
            self.linear(f"{own}/{name}", f"{other}.{short}", rows)
