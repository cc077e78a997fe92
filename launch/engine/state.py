"""From nnx modules to plain nested dicts and back, and the train state made of them.

The only module that splits and merges. A train state is a dict of `params`, `statistics` (what a
module updates beside its parameters), `optimizer`, `step` and, where asked for, `average`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx


def path_name(path: tuple[Any, ...]) -> str:
    """'/'-joined name of a key path of `jax.tree_util`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def split_model(model: nnx.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Graph definition, parameters and other variables of a module, as nested dicts of arrays.

    Keys of lists become strings, which Orbax and path patterns need.
    """
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    return (
        graphdef,
        _string_keys(nnx.to_pure_dict(params)),
        _string_keys(nnx.to_pure_dict(statistics)),
    )


def merge_model(graphdef: Any, params: Mapping, statistics: Mapping) -> nnx.Module:
    """The module again; the inverse of `split_model`."""
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
    """The static half of the task's model; no weight is drawn."""
    found = {}

    def build():
        found["graphdef"], params, statistics = split_model(task.build_model(nnx.Rngs(seed)))
        return params, statistics

    jax.eval_shape(build)
    return found["graphdef"]


def initial_state(
    task: Any, optimizer: optax.GradientTransformation, seed: int, average: bool
) -> dict[str, Any]:
    """The state before the first step; to be called under `jax.jit` or `jax.eval_shape`."""
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


def evaluation_variables(state: Mapping[str, Any]) -> dict[str, Any]:
    """What evaluation reads of a state: the averaged parameters where there are some."""
    return {"params": state.get("average", state["params"]), "statistics": state["statistics"]}


def parameter_count(state: Mapping[str, Any]) -> int:
    """Number of trained weights of a state, or of the variables of evaluation."""
    return sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
