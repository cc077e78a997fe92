"""Layers of equal structure with stacked variables, applied by `jax.lax.scan`.

The program of a scan contains one layer, so that its size and the time to compile it do not depend
on the number of layers L. The variables of all layers are stored in one array with a leading axis
L, under the name `STACKED`. For example, "layers/stacked/attention/out/kernel" [L, ...] replaces
"layers/0/attention/out/kernel" to "layers/L-1/attention/out/kernel". `with_layout` converts trees
of parameters between the two layouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import recording

STACKED = "stacked"

Module = TypeVar("Module", bound=nnx.Module)


class LayerStack(nnx.Module):
    """L layers whose variables are stacked.

    The initial values equal those of layers that are built one after another. Iteration yields the
    separate layers, for programs that do not scan, such as decoding.

    Args:
      build: function that builds one layer; all layers have the same structure.
      length: L.
      rngs: random number generators that are passed to `build`.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], length: int, *, rngs: nnx.Rngs):
        streams, state = nnx.split(rngs)
        found: dict[str, Any] = {}

        def one(state: Any, _: None) -> tuple[Any, Any]:
            drawn = nnx.merge(streams, state)
            found["graphdef"], variables = nnx.split(build(drawn))
            return nnx.state(drawn), variables

        # The state of the random streams is carried from layer to layer, so that layers differ.
        state, variables = jax.lax.scan(one, state, length=length)
        nnx.update(rngs, state)
        self.length = length
        self.stacked = nnx.merge(found["graphdef"], variables)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[nnx.Module]:
        graphdef, variables = nnx.split(self.stacked)
        for number in range(self.length):
            layer = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=number: leaf[i], variables))
            recording.rename(layer, str(number))
            yield layer

    def scan(
        self,
        call: Callable[[jax.Array, nnx.Module, Any], tuple[Any, Any]],
        x: Any,
        *,
        rematerialize: bool,
    ) -> tuple[Any, Any]:
        """Applies the layers one after another.

        Args:
          call: function of the index of a layer (an int32 scalar), the layer, and its input. It
            returns the input of the next layer and another result.
          x: input of the first layer.
          rematerialize: whether activations of a layer are recomputed in the backward pass.

        Returns:
          The output of the last layer, and the other results, stacked along a leading axis L.

        Raises:
          NotImplementedError: a layer updates its variables.
        """
        graphdef, variables = nnx.split(self.stacked)

        def body(x: Any, given: tuple[Any, jax.Array]) -> tuple[Any, Any]:
            variables, number = given
            before = jax.tree.leaves(variables)
            layer = nnx.merge(graphdef, variables)
            result = call(number, layer, x)
            _expect_unchanged(before, jax.tree.leaves(nnx.state(layer)))
            return result

        if rematerialize:
            # Inside a scan, XLA cannot merge the recomputation with the forward pass, so
            # prevent_cse is not needed.
            body = jax.checkpoint(body, prevent_cse=False)
        return jax.lax.scan(body, x, (variables, jnp.arange(self.length)))


def unstacked(module: Module) -> Module:
    """Returns a copy of a module in which each `LayerStack` is a list of layers.

    In loops that apply the layers many times, such as decoding, the weights of each layer are then
    selected once, and not in each iteration. A module without a `LayerStack` is returned unchanged.
    """
    nodes = [node for _, node in nnx.iter_graph(module) if isinstance(node, LayerStack)]
    if not nodes:
        return module
    copy = nnx.merge(*nnx.split(module))
    for _, node in list(nnx.iter_graph(copy)):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, LayerStack):
                    setattr(node, name, nnx.List(list(value)))
    return copy


def _expect_unchanged(before: list[Any], after: list[Any]) -> None:
    if any(old is not new for old, new in zip(before, after, strict=True)):
        raise NotImplementedError(
            "scan_layers: got a layer that updates its variables, expected one that does not; set "
            "scan_layers to False"
        )


def layer_paths(path: str, shape: tuple[int, ...]) -> list[str]:
    """Returns the paths of the arrays of separate layers that an array of stacked layers contains.

    Args:
      path: '/'-joined path, such as "encoder/layers/stacked/attention/out/kernel".
      shape: shape of the array, with a leading axis for each `STACKED` in the path.

    Returns:
      One path for each layer; [path] for an array that is not stacked.
    """
    parts = path.split("/")
    places = [place for place, part in enumerate(parts) if part == STACKED]
    found = []
    for numbers in itertools.product(*(range(size) for size in shape[: len(places)])):
        for place, number in zip(places, numbers, strict=True):
            parts[place] = str(number)
        found.append("/".join(parts))
    return found


def with_layout(
    tree: Any,
    like: Any,
    *,
    stack: Callable[..., Any] = lambda *leaves: jnp.stack(leaves),
    select: Callable[[Any, int], Any] = lambda leaf, number: leaf[number],
) -> Any:
    """Converts a tree of parameters to the layout of another tree, with stacked or separate layers.

    Args:
      tree: nested dicts, in which layers have string keys, "0" to "L-1", or the key `STACKED`.
      like: nested dicts with the wanted layout, whose keys may be integers. Other differences
        between the trees are ignored.
      stack: function that takes the corresponding leaves of all layers and stacks them.
      select: function that takes a stacked leaf and the index of a layer, and returns the leaf of
        this layer.
    """
    if not isinstance(tree, Mapping) or not isinstance(like, Mapping):
        return tree
    like = {str(name): value for name, value in like.items()}
    options = {"stack": stack, "select": select}
    if set(tree) == {STACKED} and _are_layers(like):
        layers = {
            number: jax.tree.map(lambda leaf, i=int(number): select(leaf, i), tree[STACKED])
            for number in like
        }
        return with_layout(layers, like, **options)
    if _are_layers(tree) and set(like) == {STACKED}:
        layers = [tree[str(number)] for number in range(len(tree))]
        return with_layout({STACKED: jax.tree.map(stack, *layers)}, like, **options)
    return {name: with_layout(value, like.get(name), **options) for name, value in tree.items()}


def separated(tree: Any) -> Any:
    """Converts a tree of parameters to nested dicts in which no layers are stacked.

    The arrays of separated layers become NumPy arrays.
    """
    if not isinstance(tree, Mapping):
        return tree
    if set(tree) == {STACKED}:
        inner = separated(tree[STACKED])
        return {
            str(number): jax.tree.map(lambda leaf, i=number: np.asarray(leaf)[i], inner)
            for number in range(len(jax.tree.leaves(inner)[0]))
        }
    return {name: separated(value) for name, value in tree.items()}


def _are_layers(tree: Mapping[str, Any]) -> bool:
    return bool(tree) and set(tree) == {str(number) for number in range(len(tree))}
