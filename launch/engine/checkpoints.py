"""Checkpoints by Orbax: the train state and the data iterator together, the newest and the best.

A save is atomic: a process killed in the middle leaves the step before. The sizes and CRC-32 sums
of a finished step's files are written down beside the folder, and checked before anything is read:
what is damaged is named in a line, and the newest whole step before it is taken.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

from launch.engine.writers import write_json
from tasks.common.errors import UserError

COMMITTED = "_CHECKPOINT_METADATA"


class Checkpoints:
    """The checkpoints/ folder of a run."""

    def __init__(self, folder: Path):
        """Opens the folder, which need not exist."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        _quiet()
        self._ocp = ocp
        self._folder = folder.absolute()
        self._sums = self._folder.with_name(f"{self._folder.name}.sums.json")
        policies = [
            # Two, so that there is one to go back to when the newest is damaged.
            checkpoint_managers.LatestN(2),
            # The earliest of equals, as `best_step` has it.
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]), n=1
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
            ),
        )

    def save(self, step: int, state: Any, iterator: Any, score: float) -> None:
        """Starts to save; the copy off the devices is done before this returns.

        Args:
          step: number of finished steps.
          state: train state.
          iterator: data iterator, as it stands after the batch of this step; None: no training is
            to go on from here.
          score: the higher, the longer the step is kept.
        """
        import grain.checkpoint

        self.wait()
        known = self._written_down()
        if known.pop(str(step), None) is not None:
            # Of a checkpoint of this step that was removed.
            write_json(self._sums, known)
        args = self._ocp.args
        items = {"state": args.StandardSave(state)}
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointSave(iterator)
        self._manager.save(
            step,
            args=args.Composite(**items),
            metrics={"score": score, "step": step},
            force=True,
        )

    def steps(self) -> list[int]:
        """Finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(
        self,
        step: int,
        abstract_state: Any,
        iterator: Any = None,
        remedy: str = "restore it, or train in another --workdir",
    ) -> Any:
        """The state at a step; the iterator, where given, is set to it too.

        Args:
          step: of a finished checkpoint.
          abstract_state: see `launch.engine.steps`.
          iterator: data iterator; None where no training goes on.
          remedy: end of the message.

        Raises:
          UserError: the step is missing or damaged.
        """
        import grain.checkpoint

        args = self._ocp.args
        items = {"state": args.StandardRestore(abstract_state)}
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(iterator)
        folder = self._folder / str(step)
        for part in (COMMITTED, "state/_METADATA"):
            if not (folder / part).is_file():
                raise UserError(f"{folder}: the checkpoint is damaged, {part} is missing; {remedy}")
        for name, sums in self._written_down().get(str(step), {}).items():
            file = folder / name
            if not file.is_file() or _file_sums(file) != sums:
                raise UserError(
                    f"{folder}: the checkpoint is damaged, {name} is not what was saved; {remedy}"
                )
        try:
            return self._manager.restore(step, args=args.Composite(**items))["state"]
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{folder}: the checkpoint cannot be read ({reason}); {remedy}"
            ) from None

    def restore_newest(self, abstract_state: Any, iterator: Any, warn: Any) -> tuple[int, Any]:
        """The newest whole step and its state; (0, None) where there is none at all.

        Args:
          abstract_state: see `launch.engine.steps`.
          iterator: set to the step.
          warn: called with a line for each damaged step passed over.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        fresh = iterator.get_state() if iterator is not None else None
        steps = self.steps()
        back = "going back to the one before"
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
        """Removes the steps after one: damaged ones that training will come to again."""
        for later in [later for later in self.steps() if later > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Until the save under way is on disk, and its sums beside it."""
        self._manager.wait_until_finished()
        known = self._written_down()
        steps = [str(step) for step in self.steps()]
        if all(step in known for step in steps):
            return
        sums = {
            step: known.get(step) or {
                str(file.relative_to(self._folder / step)): _file_sums(file)
                for file in sorted((self._folder / step).rglob("*"))
                if file.is_file()
            }
            for step in steps
        }  # fmt: skip
        write_json(self._sums, sums)

    def _written_down(self) -> dict[str, dict[str, list[int]]]:
        try:
            found = json.loads(self._sums.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # None yet, or not ours to read: then the reader itself has to find what is wrong.
            return {}
        whole = isinstance(found, dict) and all(isinstance(sums, dict) for sums in found.values())
        return found if whole else {}

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self._manager.close()


def finished_steps(folder: Path) -> list[int]:
    """Steps whose checkpoints were written to their end, ascending; none if there is no folder.

    Args:
      folder: checkpoints/ of a run. It is only looked at.
    """
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if (path / COMMITTED).exists()]
    return sorted(int(name) for name in names if name.isdigit())


def _file_sums(file: Path) -> list[int]:
    data = file.read_bytes()
    return [len(data), zlib.crc32(data)]


def _quiet() -> None:
    for name in ("orbax", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Threads that write log their traceback, which the caller gets as an exception anyway.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
