"""Optimizers and learning rate schedules of optax, built from a config."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tasks.common.configs import (
    LATER,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Rate,
    one_of,
)
from tasks.common.errors import UserError

# Schedules that decay within a number of steps.
_DECAYING = ("linear", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Config):
    """Optimizer and learning rate schedule.

    Attributes:
      name: "adamw", "lion" or "sgd".
      learning_rate: learning rate after the warm-up.
      schedule: "constant", "linear", "cosine" or "inverse_sqrt"; linear and cosine decay to
        `final_fraction` of the rate.
      warmup_steps: number of first steps in which the rate increases linearly; 0 disables it.
      decay_steps: steps of the linear or cosine decay after the warm-up; 0 for all remaining steps.
        If it is not 0, the schedule does not depend on training.steps, so that a finished run can
        be continued.
      final_fraction: final learning rate as a fraction of `learning_rate`.
      weight_decay: coefficient of decoupled weight decay for parameters that match
        `weight_decay_on`.
      weight_decay_on: regular expression searched in the '/'-joined path of each parameter; each
        layer in a stacked parameter has the path that it would have as a separate layer.
      clip_norm: largest global norm of the gradient; 0 disables clipping.
      beta1: decay of the first moment (the momentum of sgd).
      beta2: decay of the second moment.
      average_decay: decay of the exponential moving average (EMA) of the parameters, which
        evaluation and prediction use; 0 disables it.
    """

    name: one_of("adamw", "lion", "sgd") = "adamw"
    learning_rate: PositiveFloat = 1e-3
    schedule: one_of("constant", "linear", "cosine", "inverse_sqrt") = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_steps: NonNegativeInt = dataclasses.field(default=0, metadata=LATER)
    final_fraction: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.0
    weight_decay_on: str = r"(kernel|embedding)$"
    clip_norm: NonNegativeFloat = 1.0
    beta1: Rate = 0.9
    beta2: Rate = 0.999
    average_decay: Rate = 0.0

    def __post_init__(self):
        super().__post_init__()
        try:
            re.compile(self.weight_decay_on)
        except re.error as error:
            self.expect("weight_decay_on", False, f"a regular expression ({error})")
        decays = not self.decay_steps or self.schedule in _DECAYING
        self.expect("decay_steps", decays, f"0 for the schedule {self.schedule}")

    @property
    def spans_all_steps(self) -> bool:
        """True if the learning rate of a step depends on the total number of steps."""
        return self.schedule in _DECAYING and not self.decay_steps

    @property
    def last_step(self) -> int | None:
        """Number of steps after which the learning rate is 0; None if it stays above 0."""
        if not self.decay_steps or self.final_fraction:
            return None
        return self.warmup_steps + self.decay_steps


def make_schedule(config: OptimizerConfig, steps: int):
    """Returns the learning rate schedule as an `optax` schedule, a function of the step."""
    import jax.numpy as jnp
    import optax

    warmup, peak = config.warmup_steps, config.learning_rate
    rest = config.decay_steps or max(steps - warmup, 1)
    if config.schedule == "inverse_sqrt":
        start = max(warmup, 1)

        def schedule(step):
            step = jnp.asarray(step, jnp.float32) + 1
            return peak * jnp.minimum(step / start, jnp.sqrt(start / step))

        return schedule
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_fraction, rest)
    else:
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    if not warmup:
        return after
    # The warm-up starts at peak / warmup, because a step with learning rate 0 would change nothing.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int):
    """Returns the `optax.GradientTransformation` described by a config.

    Weight decay applies only to parameters whose '/'-joined path matches `weight_decay_on`.

    Raises:
      UserError: raised by the result's `init` if `weight_decay_on` matches only some of the layers
        in a stacked parameter.
    """
    import optax

    schedule = make_schedule(config, steps)

    def decayed(params: Any) -> Any:
        import jax

        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _matches(config.weight_decay_on, path, leaf.shape), params
        )

    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adamw":
        parts.append(optax.scale_by_adam(b1=config.beta1, b2=config.beta2))
    elif config.name == "lion":
        parts.append(optax.scale_by_lion(b1=config.beta1, b2=config.beta2))
    elif config.beta1:
        parts.append(optax.trace(decay=config.beta1))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decayed))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def _matches(pattern: str, path: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Returns whether a pattern matches the path of a parameter.

    A stacked parameter has one path for each of its layers. All of them must match, or none.
    """
    from launch.engine.state import path_name
    from tasks.common.backbones.stacking import layer_paths

    paths = layer_paths(path_name(path), shape)
    found = [re.search(pattern, name) is not None for name in paths]
    if any(found) and not all(found):
        raise UserError(
            f"config.optimizer.weight_decay_on: got {pattern!r}, which matches "
            f"{paths[found.index(True)]} but not {paths[found.index(False)]}, expected a match of "
            "all layers or of none; set config.model.scan_layers to False"
        )
    return all(found)
