"""Checkpoint handler for the position of a data iterator, with any number of processes.

grain writes one file for each process, and can read the files only with the same number of
processes. The state of `tasks.common.data.pipeline.train_iterator` is the same on all processes.
So the first process writes one file, as grain does for a single process, and all processes read
this file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from launch.engine import processes

_FILE = "process_0-of-1.json"


class Handler:
    """Orbax checkpoint handler of the state of a data iterator."""

    def save(self, directory: Any, item: Any = None, args: Any = None) -> None:
        """Writes the state, on the first process."""
        if processes.is_first():
            state = (item or args.item).get_state()
            (directory / _FILE).write_text(json.dumps(state, indent=4))

    def restore(self, directory: Any, item: Any = None, args: Any = None) -> Any:
        """Sets the iterator to the saved state, and returns it.

        Raises:
          ValueError: there is no state.
        """
        iterator = item or args.item
        file = directory / _FILE
        if not file.exists():
            raise ValueError(f"{file} does not exist")
        iterator.set_state(json.loads(file.read_text()))
        iterator.start_prefetch()
        return iterator

    def structure(self, directory: Any) -> None:
        """Returns None, since the state has no arrays."""

    def metadata(self, directory: Any) -> None:
        """Returns None, since the state has no arrays."""

    def finalize(self, directory: Any) -> None:
        """Does nothing, since `save` writes one file."""

    def close(self) -> None:
        """Does nothing, since no file is kept open."""

    @classmethod
    def typestr(cls) -> str:
        """Returns the name of the handler in the metadata of a checkpoint."""
        return f"{cls.__module__}.{cls.__qualname__}"


@dataclasses.dataclass(frozen=True)
class Handlers:
    """Types of the arguments of `orbax.checkpoint.args.Composite`.

    Attributes:
      Save: Save(iterator) saves its state.
      Restore: Restore(iterator) sets the iterator to the saved state.
    """

    Save: Any
    Restore: Any


@functools.cache
def handlers() -> Handlers:
    """Registers the handler with Orbax at the first call; returns the types of its arguments."""
    import orbax.checkpoint as ocp

    def registered(**kind: bool) -> Any:
        @ocp.args.register_with_handler(Handler, **kind)  # pyright: ignore
        @dataclasses.dataclass
        class Arguments(ocp.args.CheckpointArgs):
            item: Any

        return Arguments

    return Handlers(registered(for_save=True), registered(for_restore=True))
