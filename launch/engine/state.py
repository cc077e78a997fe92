"""Train state, and conversion between nnx modules and nested dicts.

A train state is a dict of `params`, `statistics` (batch statistics and other non-parameter
variables), `optimizer`, `step` and optionally `average`, an exponential moving average of `params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tasks.common.backbones import stacking


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the "/"-joined name of a key path of `jax.tree_util`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def split_model(model: nnx.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Splits a module into its graph definition and nested dicts of parameters and other variables.

    List indices become string keys, as Orbax and path patterns require.
    """
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    return (
        graphdef,
        _string_keys(nnx.to_pure_dict(params)),
        _string_keys(nnx.to_pure_dict(statistics)),
    )


def merge_model(graphdef: Any, params: Mapping, statistics: Mapping) -> nnx.Module:
    """Builds the module from its parts; the inverse of `split_model`."""
    return nnx.merge(graphdef, _integer_keys(params), _integer_keys(statistics))


def _string_keys(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _string_keys(value) for key, value in tree.items()}
    return tree


def _integer_keys(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {
            int(key) if key.isdigit() else key: _integer_keys(value) for key, value in tree.items()
        }
    return tree


def graph_definition(task: Any, seed: int) -> Any:
    """Returns the graph definition of a task's model without initializing parameters."""
    found = {}

    def build():
        found["graphdef"], params, statistics = split_model(task.build_model(nnx.Rngs(seed)))
        return params, statistics

    jax.eval_shape(build)
    return found["graphdef"]


def initial_state(
    task: Any, optimizer: optax.GradientTransformation, seed: int, average: bool
) -> dict[str, Any]:
    """Returns the initial train state. Call it under `jax.jit` or `jax.eval_shape`."""
    _, params, statistics = split_model(task.build_model(nnx.Rngs(seed)))
    state = {
        "params": params,
        "statistics": statistics,
        "optimizer": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
    }
    if average:
        state["average"] = jax.tree.map(jnp.copy, params)
    return state


def with_layout(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Stacks or separates the layers of a train state to match the layout of another one.

    Args:
      state: arrays, or shapes, dtypes and shardings.
      like: a train state with the wanted layout; only the keys of `params` and `statistics` matter.
    """

    def converted(name: str, tree: Any) -> Any:
        wanted = like.get("statistics" if name == "statistics" else "params", {})

        def convert(node: Any) -> Any:
            return stacking.with_layout(node, wanted, stack=_stack, select=_select)

        # Optimizer states are named tuples that contain mappings like that of the parameters.
        return jax.tree.map(convert, tree, is_leaf=lambda node: isinstance(node, Mapping))

    return {name: converted(name, tree) for name, tree in state.items()}


def _stack(*leaves: Any) -> Any:
    first = leaves[0]
    if not isinstance(first, jax.ShapeDtypeStruct):
        return jnp.stack(leaves)
    return _abstract((len(leaves), *first.shape), first, lambda spec: (None, *spec))


def _select(leaf: Any, number: int) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf[number]
    return _abstract(leaf.shape[1:], leaf, lambda spec: spec[1:])


def _abstract(shape: tuple[int, ...], leaf: jax.ShapeDtypeStruct, change: Any) -> Any:
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*change(tuple(sharding.spec))))
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


def evaluation_variables(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables for evaluation, with the EMA of the parameters if there is one."""
    return {"params": state.get("average", state["params"]), "statistics": state["statistics"]}


def parameter_count(state: Mapping[str, Any]) -> int:
    """Returns the number of trained parameters in a train state or in evaluation variables."""
    return sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
