"""Detection of non-finite losses and gradients, and the files for `launch.replay`.

Each train step returns the number of the first parameter with a non-finite gradient. The training
loop reads it with the other metrics, so detection needs no synchronization. If the loss or a
gradient of step N is not finite, the batch of the step and the newest checkpoint before the step
are saved in the directory nonfinite/step-N of the run. Batches and steps are deterministic, so
`launch.replay` can repeat the steps from that checkpoint to step N.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.engine import processes
from launch.engine import state as states
from launch.engine.checkpoints import finished_steps, read_sums, sums_file
from launch.engine.config import Experiment
from launch.engine.writers import write_json
from tasks.common.errors import UserError

FOLDER, RECORD, BATCH = "nonfinite", "record.json", "batch.npz"
# Metric of a train step: 0 if loss and gradients are finite; n if the first non-finite gradient is
# that of the n-th parameter; -1 if only the loss is not finite.
FLAG = "nonfinite"
# Largest number of non-finite steps that are saved. It is small because each needs a checkpoint.
SAVED = 10


def gradient_check(loss: jax.Array, gradients: Any) -> tuple[jax.Array, jax.Array]:
    """Computes the global norm of the gradients, and the value of the metric `FLAG`.

    A gradient whose squares overflow counts as non-finite, since it makes the norm infinite.
    """
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)] or [jnp.zeros(())]
    bad = ~jnp.isfinite(jnp.stack(squares))
    first = jnp.where(jnp.any(bad), jnp.argmax(bad) + 1, jnp.where(jnp.isfinite(loss), 0, -1))
    return jnp.sqrt(functools.reduce(operator.add, squares)), first.astype(jnp.int32)


def keep_if_nonfinite(flag: jax.Array, new: Any, old: Any) -> Any:
    """Returns the new train state if the metric `FLAG` is 0, and the old one otherwise."""
    return jax.tree.map(lambda after, before: jnp.where(flag == 0, after, before), new, old)


@dataclasses.dataclass
class Guard:
    """Check of the metrics of train steps, which are read at log intervals.

    Attributes:
      folder: run directory.
      config: the experiment.
      abstract_state: shapes of the train state, for the names of the parameters.
      batch: function that returns the batch of a step, with the rows of all processes, given the
        number of the step.
      wait: function that waits until the pending checkpoint is written.
      say: function that prints a line; called for each skipped step that was saved.
      consecutive: number of non-finite steps since the last finite one.
    """

    folder: Path
    config: Experiment
    abstract_state: Any
    batch: Callable[[int], Mapping[str, np.ndarray]]
    wait: Callable[[], None] = lambda: None
    say: Callable[[str], None] = print
    consecutive: int = 0

    def finite(self, step: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Checks the metrics of steps; returns those of the steps that were not skipped.

        The metric `FLAG` is removed from the result.

        Args:
          step: number of finished steps.
          rows: metrics of each of the last steps.

        Raises:
          UserError: a step is not finite and config.training.on_nan is "stop", or too many
            consecutive steps were skipped.
        """
        plan, found = self.config.training, []
        for number, row in enumerate(rows, step - len(rows) + 1):
            values = dict(row)
            flag = int(values.pop(FLAG))
            if not flag:
                self.consecutive = 0
                found.append(values)
                continue
            self.consecutive += 1
            saved = self._save(number, flag, values)
            limit = plan.max_consecutive_skips
            if plan.on_nan == "stop" or self.consecutive >= limit:
                raise UserError(self._message(number, flag, values))
            if saved:
                self.say(f"step {number} is skipped: {self._found(flag, values)}")
        return found

    def check(self, step: int, state: Any) -> None:
        """Raises if the train state is not finite, so that it never replaces a finite checkpoint.

        Raises:
          UserError: an update made a parameter or a statistic non-finite.
        """
        leaves = jax.tree_util.tree_leaves_with_path(
            {name: state[name] for name in ("params", "statistics") if name in state}
        )
        flags = np.asarray(_all_finite([leaf for _, leaf in leaves]))
        if flags.all():
            return
        name = states.path_name(leaves[int(np.argmin(flags))][0])
        raise UserError(
            f"{name}: not finite after step {step}, expected finite values; lower "
            "config.optimizer.learning_rate; earlier checkpoints are kept"
        )

    def _parameter(self, flag: int) -> str | None:
        if flag < 0:
            return None
        paths = jax.tree_util.tree_leaves_with_path(self.abstract_state["params"])
        return states.path_name(paths[flag - 1][0])

    def _save(self, step: int, flag: int, values: Mapping[str, Any]) -> bool:
        """Writes the directory of a non-finite step.

        Returns:
          Whether it was written: only the first process writes it, and at most `SAVED` steps are
            saved.
        """
        folder = self.folder / FOLDER / f"step-{step}"
        if not processes.is_first() or len(saved_steps(self.folder)) >= SAVED:
            return False
        self.wait()
        whole = [each for each in finished_steps(self.folder / "checkpoints") if each < step]
        batch = self.batch(step)
        folder.mkdir(parents=True, exist_ok=True)
        _save_batch(folder / BATCH, batch)
        if whole:
            _keep(self.folder / "checkpoints", folder / "checkpoints", max(whole))
        # Written last, since this file marks the directory as complete.
        record = {
            "step": step,
            "checkpoint": max(whole, default=0),
            "loss": repr(float(values["loss"])),
            "gradient_norm": repr(float(values["gradient_norm"])),
            "first_nonfinite_gradient": self._parameter(flag),
            "on_nan": self.config.training.on_nan,
            "seed": self.config.seed,
            "examples": [int(index) for index in batch["id"]],
        }
        write_json(folder / RECORD, record)
        return True

    def _found(self, flag: int, values: Mapping[str, Any]) -> str:
        loss = float(values["loss"])
        if math.isfinite(loss):
            return f"the gradient of {self._parameter(flag)} is not finite"
        return f"the loss is {loss}"

    def _message(self, step: int, flag: int, values: Mapping[str, Any]) -> str:
        plan, loss = self.config.training, float(values["loss"])
        if math.isfinite(loss):
            found = f"gradient of {self._parameter(flag)}: not finite at step {step}"
        else:
            found = f"loss: got {loss} at step {step}, expected a finite number"
        remedy = "lower config.optimizer.learning_rate, check the data, or set "
        if plan.on_nan == "skip":
            found += f", the last of {self.consecutive} consecutive skipped steps"
            remedy = "lower config.optimizer.learning_rate, check the data, or raise "
            remedy += "config.training.max_consecutive_skips"
        else:
            remedy += "config.training.on_nan=skip"
        return (
            f"{found}; python -m launch.replay --workdir={self.folder} repeats the step and names "
            f"the operation that caused it; {remedy}; earlier checkpoints are kept"
        )


def saved_steps(folder: Path) -> list[int]:
    """Returns the saved non-finite steps of a run directory, ascending."""
    names = (path.parent.name for path in (folder / FOLDER).glob(f"step-*/{RECORD}"))
    return sorted(int(name.removeprefix("step-")) for name in names if name[5:].isdigit())


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def _save_batch(path: Path, batch: Mapping[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **dict[str, Any](batch))
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _keep(checkpoints: Path, target: Path, step: int) -> None:
    """Copies a checkpoint and its checksums to another directory.

    Hard links are used instead of copies if the file system has them.
    """

    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:
            shutil.copy2(source, copy)

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkpoints / str(step), target / str(step), copy_function=link)
    sums = read_sums(checkpoints).get(str(step))
    if sums is not None:
        write_json(sums_file(target), {str(step): sums})
