"""Orbax checkpoints of the train state and the data iterator, at the newest and best steps.

Saving is atomic: if the process is killed while saving, the previous checkpoint remains. A file
next to the directory of the checkpoints has the file sizes and CRC-32 checksums of every
checkpoint, which are verified before reading. A damaged checkpoint is reported, and the newest
undamaged one before it is used.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.engine import positions, processes
from launch.engine import state as states
from launch.engine.writers import read_mapping, write_json
from tasks.common.checksums import file_sums
from tasks.common.errors import UserError

COMMITTED = "_CHECKPOINT_METADATA"


class Checkpoints:
    """The checkpoints/ directory of a run."""

    def __init__(self, folder: Path):
        """Opens the directory, which may not exist yet."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        _quiet()
        self._ocp = ocp
        self._folder = folder.absolute()
        self._sums = sums_file(self._folder)
        self._saving: int | None = None
        policies: list[Any] = [
            # The second newest checkpoint is used if the newest is damaged.
            checkpoint_managers.LatestN(2),
            # Ties are resolved in favor of the earliest step, as in `best_step`.
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]),  # pyright: ignore
                n=1,
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._sum_incomplete),
            ),
        )

    def save(self, step: int, state: Any, iterator: Any, score: float) -> None:
        """Copies the state from the devices, and starts to save it asynchronously.

        Args:
          step: number of finished steps.
          state: train state.
          iterator: data iterator after the batch of this step; None for a checkpoint from which
            training is never resumed.
          score: value to maximize; the checkpoint with the highest score is kept.
        """
        self.wait()
        known = self._written_down()
        if known.pop(str(step), None) is not None and processes.is_first():
            # A removed checkpoint of the same step may have left its checksums.
            write_json(self._sums, known)
        self._saving = step
        args = self._ocp.args
        items: dict[str, Any] = {"state": args.StandardSave(state)}
        if iterator is not None:
            items["data"] = positions.handlers().Save(iterator)
        self._manager.save(
            step, args=args.Composite(**items), metrics={"score": score, "step": step}, force=True
        )

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(
        self,
        step: int,
        abstract_state: Any,
        iterator: Any = None,
        remedy: str = "restore it, or train in another --workdir",
    ) -> Any:
        """Returns the train state at a step, and sets the data iterator to that step.

        Layers that were saved separately can be restored as stacked layers, and the reverse.

        Args:
          step: step of a complete checkpoint.
          abstract_state: shapes, dtypes and shardings of the state; see `launch.engine.steps`.
          iterator: data iterator; None if training is not resumed.
          remedy: advice appended to error messages.

        Raises:
          UserError: the checkpoint is missing or damaged.
        """
        args = self._ocp.args
        folder = self._folder / str(step)
        for part in (COMMITTED, "state/_METADATA"):
            if not (folder / part).is_file():
                raise UserError(f"{folder}: the checkpoint is damaged, {part} is missing; {remedy}")
        for name, sums in self._written_down().get(str(step), {}).items():
            file = folder / name
            if not file.is_file() or file_sums(file) != sums:
                raise UserError(
                    f"{folder}: the checkpoint is damaged, {name} has changed; {remedy}"
                )
        try:
            saved = states.with_layout(abstract_state, _saved_names(folder / "state/_METADATA"))
            items: dict[str, Any] = {"state": args.StandardRestore(saved)}
            if iterator is not None:
                items["data"] = positions.handlers().Restore(iterator)
            state = self._manager.restore(step, args=args.Composite(**items))["state"]
            return _in_layout(state, saved, abstract_state)
        except Exception as error:
            if processes.lost(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{folder}: the checkpoint cannot be read ({reason}); {remedy}"
            ) from None

    def restore_newest(self, abstract_state: Any, iterator: Any, warn: Any) -> tuple[int, Any]:
        """Returns step and state of the newest undamaged checkpoint; (0, None) if there is none.

        Args:
          abstract_state: shapes, dtypes and shardings of the state; see `launch.engine.steps`.
          iterator: data iterator, which is set to the step of the checkpoint.
          warn: called with a one-line warning for each damaged checkpoint.

        Raises:
          UserError: there are checkpoints, but none of them can be read.
        """
        fresh = iterator.get_state() if iterator is not None else None
        steps = self.steps()
        back = "the previous checkpoint is used"
        for step in reversed(steps):
            try:
                return step, self.restore(step, abstract_state, iterator, back)
            except UserError as error:
                warn(str(error))
                if iterator is not None:
                    iterator.set_state(fresh)
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints can be read; restore them, or name "
                "another --workdir"
            )
        return 0, None

    def delete_after(self, step: int) -> None:
        """Removes the checkpoints after a step, so that training writes them again."""
        for later in [later for later in self.steps() if later > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Waits until the pending checkpoint and its checksums are on disk."""
        self._manager.wait_until_finished()
        if not processes.is_first():
            return
        known = self._written_down()
        steps = [str(step) for step in self.steps()]
        found = {step: _with_sums(self._folder / step, known.get(step, {})) for step in steps}
        if any(found[step] != known.get(step) for step in steps):
            write_json(self._sums, found)

    def _sum_incomplete(self) -> None:
        """Writes the checksums of the pending checkpoint before Orbax renames its directory.

        Otherwise a run that is killed before the next save would leave a checkpoint without
        checksums.
        """
        if not processes.is_first():
            return
        step = str(self._saving)
        found = _with_sums(self._folder / f"{step}.orbax-checkpoint-tmp", {})
        # Orbax changes this file before it renames the directory.
        found.pop(COMMITTED, None)
        if found:
            write_json(self._sums, {**self._written_down(), step: found})

    def _written_down(self) -> dict[str, dict[str, list[int]]]:
        return read_sums(self._folder)

    def close(self) -> None:
        """Waits for the pending save and closes the directory."""
        self._manager.close()


def _with_sums(folder: Path, known: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Returns the checksum of each file in a directory; computes those that are not known yet."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    added = {str(file.relative_to(folder)): file for file in files}
    return {**known, **{name: file_sums(added[name]) for name in added.keys() - known.keys()}}


def sums_file(folder: Path) -> Path:
    """Returns the file with the checksums of the checkpoints in a directory."""
    return folder.with_name(f"{folder.name}.sums.json")


def read_sums(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Returns the size and checksum of each file, by checkpoint and file; {} if there are none."""
    # Missing checksums are not an error: then only Orbax's own checks detect damage.
    found = read_mapping(sums_file(folder))
    return found if all(isinstance(sums, dict) for sums in found.values()) else {}


def finished_steps(folder: Path) -> list[int]:
    """Returns the steps of complete checkpoints in ascending order; [] if there is no directory.

    Args:
      folder: the directory checkpoints/ of a run; nothing is written to it.
    """
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if (path / COMMITTED).exists()]
    return sorted(int(name) for name in names if name.isdigit())


def _saved_names(metadata: Path) -> dict[str, Any]:
    """Returns the names of the parameters and statistics in a checkpoint, as nested dicts."""
    names: dict[str, Any] = {}
    for entry in json.loads(metadata.read_text(encoding="utf-8"))["tree_metadata"].values():
        node = names
        for key in entry["key_metadata"]:
            node = node.setdefault(key["key"], {})
    return names


def _in_layout(state: Any, saved: Any, abstract_state: Any) -> Any:
    """Converts a restored state from the layout of its checkpoint to that of `abstract_state`."""
    import jax

    if jax.tree.structure(saved) == jax.tree.structure(abstract_state):
        return state
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    convert = functools.partial(states.with_layout, like=abstract_state)
    return jax.jit(convert, out_shardings=shardings)(state)


def _quiet() -> None:
    for name in ("orbax", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Writer threads log tracebacks of errors that the caller receives as exceptions.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
