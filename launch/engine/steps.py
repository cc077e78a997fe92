"""Compiled functions of an experiment: init, train, evaluate, predict and attention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.engine import nonfinite, sharding
from launch.engine import state as states
from launch.engine.config import Experiment
from launch.engine.memory import return_free_memory
from launch.engine.optimizers import make_optimizer, make_schedule
from tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Steps:
    """Compiled functions of one experiment and the sharding of their arrays.

    Attributes:
      mesh: device mesh.
      abstract_state: shapes, dtypes and shardings of the train state.
      init: () -> state; its program, which runs once, is deleted after the call.
      train: (state, batch) -> (state, metrics); the old state is donated. The metric `nonfinite` is
        0 if loss and gradients are finite; see `launch.engine.nonfinite`.
      evaluate: (variables, batch) -> (statistics, outputs); see `Task.evaluate`.
      predict: (variables, inputs) -> outputs of each example; see `Task.predict`.
      predict_fast: `predict` with `fast=True`.
      attention: (variables, inputs) -> attention weights by name.
      initial: (seed) -> state, for any seed.
      stacked: (states, batches, seeds, mask) -> (states, metrics), for several seeds at once; see
        `stacked_train`.
      select: (states, lane) -> state.
      resolve: (state) -> arrays of a state that `train` returned; the identity except for stacked
        seeds.
    """

    mesh: Any
    abstract_state: Any
    init: Any
    train: Any
    evaluate: Any
    predict: Any
    predict_fast: Any
    attention: Any
    initial: Any
    stacked: Any
    select: Any
    resolve: Any = lambda state: state

    @property
    def batch_shards(self) -> int:
        """Number of shards of a batch; the number of rows of a batch is a multiple of it."""
        return sharding.batch_shards(self.mesh)

    @property
    def local_shards(self) -> Sequence[int]:
        """Indices of those shards of a batch that are on the devices of this process."""
        return sharding.local_shards(self.mesh)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Copies the rows of `local_shards` to the mesh, sharded over the axes data and fsdp."""
        return sharding.place(batch, self.mesh)

    def fetch(self, tree: Any) -> Any:
        """Copies complete arrays from the mesh to the host of every process."""
        if self.mesh.is_multi_process:
            tree = jax.jit(_identity, out_shardings=sharding.replicated(self.mesh))(tree)
        return jax.device_get(tree)


def _identity(tree: Any) -> Any:
    return tree


def loss_function(task: Task, graphdef: Any, seed: int) -> Any:
    """Returns the loss function that training differentiates.

    The loss function maps (params, statistics, step, batch) to (loss, (metrics, new statistics)).

    Args:
      task: the task.
      graphdef: graph definition of the model.
      seed: seed of the dropout, whose key also depends on `step`.
    """

    def objective(params, statistics, step, batch):
        dropout_key = jax.random.fold_in(jax.random.key(seed), step)
        model = states.merge_model(graphdef, params, statistics)
        loss, metrics = task.loss(model, batch, dropout_key)
        _, _, statistics = states.split_model(model)
        return loss, (metrics, statistics)

    return objective


def _released(function: Any) -> Callable[..., Any]:
    """Returns a jitted function for one call per run: its program is deleted after each call."""

    def call(*arguments: Any) -> Any:
        results = jax.block_until_ready(function(*arguments))
        function.clear_cache()
        return_free_memory()
        return results

    return call


def make_steps(task: Task, config: Experiment, devices: Sequence[Any] | None = None) -> Steps:
    """Returns the functions of an experiment, which are compiled once for each input shape.

    Args:
      task: the task, with its processor.
      config: the experiment.
      devices: devices of the mesh, see `launch.engine.sharding.make_mesh`.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    schedule = make_schedule(config.optimizer, config.training.steps)
    average_decay = config.optimizer.average_decay
    graphdef = states.graph_definition(task, config.seed)

    def initial(seed):
        return states.initial_state(task, optimizer, seed, average_decay > 0)

    def init():
        return initial(config.seed)

    shapes = jax.eval_shape(init)
    state_shardings = sharding.tree_shardings(shapes, mesh, task.sharding_rules)
    variables_shardings = states.evaluation_variables(state_shardings)
    over_batch, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def train(state, batch, seed=config.seed):
        objective = jax.value_and_grad(loss_function(task, graphdef, seed), has_aux=True)
        (loss, (metrics, statistics)), gradients = objective(
            state["params"], state["statistics"], state["step"], batch
        )
        if mesh.size > 1:
            # Otherwise XLA may reshard a gradient in each operation of the optimizer.
            gradients = jax.lax.with_sharding_constraint(gradients, state_shardings["params"])
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {
            "params": params,
            "statistics": statistics,
            "optimizer": optimizer_state,
            "step": state["step"] + 1,
        }
        if average_decay:
            # The decay is smaller in early steps, so that the average forgets the initialization.
            decay = jnp.minimum(average_decay, (1 + state["step"]) / (10 + state["step"]))
            new["average"] = optax.incremental_update(params, state["average"], 1 - decay)
        norm, flag = nonfinite.gradient_check(loss, gradients)
        if config.training.on_nan == "skip":
            new = nonfinite.keep_if_nonfinite(flag, new, state)
        metrics = {
            "loss": loss,
            **metrics,
            "gradient_norm": norm,
            "learning_rate": schedule(state["step"]),
            nonfinite.FLAG: flag,
        }
        return new, metrics

    def with_model(function):
        def call(variables, batch):
            model = states.merge_model(graphdef, variables["params"], variables["statistics"])
            return function(model, batch)

        return call

    def evaluation(function, out):
        compiled = jax.jit(
            with_model(function), in_shardings=(variables_shardings, over_batch), out_shardings=out
        )
        return sharding.OnMesh(compiled, mesh)

    compiled = jax.jit(
        train,
        in_shardings=(state_shardings, over_batch),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )

    return Steps(
        mesh=mesh,
        abstract_state=jax.tree.map(
            lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
            shapes,
            state_shardings,
        ),
        init=_released(jax.jit(init, out_shardings=state_shardings)),
        train=sharding.OnMesh(compiled, mesh),
        evaluate=evaluation(task.evaluate, whole),
        predict=evaluation(task.predict, whole),
        predict_fast=evaluation(functools.partial(task.predict, fast=True), whole),
        attention=evaluation(task.attention, whole),
        initial=jax.jit(lambda seed: initial(jax.random.key(seed)), out_shardings=state_shardings),
        stacked=sharding.OnMesh(jax.jit(stacked_train(train), donate_argnums=0), mesh),
        select=jax.jit(
            lambda stack, lane: jax.tree.map(lambda leaf: leaf[lane], stack),
            out_shardings=state_shardings,
        ),
    )


def stacked_train(train: Any) -> Any:
    """Returns a train step that is batched over seeds.

    Args:
      train: train step of one seed, a function (state, batch, seed) -> (state, metrics).

    Returns:
      A function (states, batches, seeds, mask) -> (states, metrics) for S seeds. The arrays in
      `states` have a leading dimension S. `batches` is a tuple of S batches of the same shape, and
      `seeds` is [S]. `mask` [S] is True for the seeds that take the step; None means all seeds. The
      metrics are a list with an entry for each seed.
    """

    def step(states_of_seeds, batches, seeds, mask):
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        new, metrics = jax.vmap(train)(states_of_seeds, stack, seeds)
        if mask is not None:
            new = jax.tree.map(
                lambda after, before: jnp.where(
                    mask.reshape(-1, *[1] * (after.ndim - 1)), after, before
                ),
                new,
                states_of_seeds,
            )
        return new, [
            {name: value[lane] for name, value in metrics.items()} for lane in range(len(batches))
        ]

    return step
