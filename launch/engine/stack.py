"""Training of several seeds in one program, with one training loop for each seed.

The loops run in threads, one at a time. Each loop calls its train step as if it trained alone. The
call waits until all other loops have called their train steps. Then one program, which is batched
over the seeds (`jax.vmap`), takes the steps of all seeds. Everything else, such as logs,
validation, checkpoints and early stopping, happens in the loop of each seed.

Batches of different shapes cannot be in one program, and padding would change random numbers whose
shape includes the length. So only the seeds with the most frequent batch shape take a step; the
other seeds keep their batch for a later step. The order of the batches of each seed is the same as
in a run of this seed alone.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from launch.engine import sharding
from launch.engine.config import Experiment
from launch.engine.steps import Steps, make_steps
from tasks.common.errors import UserError
from tasks.task import Task

_REMEDY = "leave out --stack_seeds to train the seeds one after another"


class Stack:
    """Seeds that are trained in one program on one device.

    The lane of a seed is its index in the leading dimension of the stacked train states.

    Attributes:
      configs: experiments that differ only in their seeds.
      turn: condition whose lock is held by the thread that runs.
      seeds: number of seeds that train together, on all devices.
      members: a `Member` for each seed, which its training loop uses.
    """

    def __init__(
        self,
        configs: Sequence[Experiment],
        device: Any,
        turn: threading.Condition,
        seeds: int | None = None,
    ):
        """Creates a stack whose members have not begun training.

        Args:
          configs: experiments that differ only in their seeds.
          device: device of the program.
          turn: condition whose lock is held by the thread that runs; stacks on other devices share
            it.
          seeds: number of seeds on all devices; None if this stack has all seeds.
        """
        self.seeds = seeds or len(configs)
        self.turn = turn
        self.configs, self._device = list(configs), device
        self._alive = set(range(len(configs)))
        self._shared: tuple[Task, Steps] | None = None
        self._waiting: dict[int, tuple[Any, Any]] = {}
        self._results: dict[int, Any] = {}
        self._lanes: list[int] = []
        self._state: Any = None
        self._masked = False
        self._error: BaseException | None = None
        self.members = [Member(self, number) for number in range(len(configs))]

    def task(self, prepare: Callable[[], Task]) -> Task:
        """Returns the task that all members share."""
        if self._shared is None:
            config = self.configs[0]
            task = prepare()
            # A mesh of one device, whose axes all have size 1.
            single = dataclasses.replace(config, mesh=sharding.MeshConfig())
            self._shared = task, make_steps(task, single, [self._device])
        return self._shared[0]

    @property
    def steps(self) -> Steps:
        """Compiled functions that all members share."""
        assert self._shared is not None
        return self._shared[1]

    def seed(self, member: int) -> np.ndarray:
        """Returns the seed of a member, as an integer of the type that `jax.random.key` uses."""
        return np.asarray(np.int64(self.configs[member].seed)).astype(np.int32)

    def step(self, member: int, state: Any, batch: Any) -> Any:
        """Takes the train step of a member together with other members; returns its metrics.

        Raises:
          UserError: the program cannot be batched over the seeds.
        """
        self._waiting[member] = state, batch
        self._advance()
        self.turn.wait_for(lambda: member in self._results or self._error is not None)
        if self._error is not None:
            raise self._error
        return self._results.pop(member)

    def leave(self, member: int) -> None:
        """Removes a member whose training has ended."""
        self._alive.discard(member)
        if self._error is None:
            try:
                self._advance()
            except BaseException:  # the waiting members raise it
                self.turn.notify_all()

    def _advance(self) -> None:
        """Takes a step if all members wait for one."""
        if not self._waiting or set(self._waiting) != self._alive:
            return
        try:
            self._take_step()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self.turn.notify_all()

    def _take_step(self) -> None:
        self._compact()
        for member, (state, _) in self._waiting.items():
            self._insert(member, state)
        members = _largest_group({m: _shapes(batch) for m, (_, batch) in self._waiting.items()})
        batches = [self._waiting[m if m in members else members[0]][1] for m in self._lanes]
        active = np.array([member in members for member in self._lanes])
        # The program with a mask can also take the steps of all lanes. Once it is compiled, it
        # replaces the program without a mask.
        self._masked |= not active.all()
        seeds = np.stack([self.seed(member) for member in self._lanes])
        mask = active if self._masked else None
        try:
            self._state, metrics = self.steps.stacked(self._state, tuple(batches), seeds, mask)
        except (NotImplementedError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"--stack_seeds: the train step cannot be batched over seeds ({reason}); {_REMEDY}"
            ) from error
        for lane, member in enumerate(self._lanes):
            if active[lane]:
                del self._waiting[member]
                self._results[member] = metrics[lane]

    def _compact(self) -> None:
        """Removes the lanes of members that have ended, if these are at least half of the lanes."""
        lanes = [member for member in self._lanes if member in self._alive]
        if self._lanes and 2 * len(lanes) <= len(self._lanes):
            kept = np.array([self._lanes.index(member) for member in lanes])
            self._state = jax.tree.map(lambda leaf: leaf[kept], self._state)
            self._lanes = lanes

    def _insert(self, member: int, state: Any) -> None:
        """Inserts a state into the stack if the training loop has initialized or restored it."""
        if self._state is None:
            self._lanes = sorted(self._waiting)
            states = [self._waiting[number][0] for number in self._lanes]
            _check_memory(states[0], len(states), self._device)
            self._state = jax.jit(_stacked)(states)
            for number in self._lanes:
                self.members[number].inside = self._waiting[number][0]
        elif state is not self.members[member].inside:
            lane = self._lanes.index(member)
            self._state = jax.tree.map(
                lambda stack, leaf: stack.at[lane].set(leaf), self._state, state
            )
            self.members[member].inside = state

    def state(self, member: int) -> Any:
        """Returns the train state of a member."""
        return self.steps.select(self._state, self._lanes.index(member))


class Member:
    """One seed of a stack, as seen by the training loop of this seed.

    Attributes:
      inside: object that the training loop holds in place of the member's state in the stack.
    """

    def __init__(self, stack: Stack, number: int):
        """Initializes the member with this number in a stack."""
        self._stack, self._number = stack, number
        self.inside: Any = None

    @property
    def size(self) -> int:
        """Number of seeds that train together, on all devices."""
        return self._stack.seeds

    @property
    def label(self) -> str:
        """Name of the member in messages."""
        return f"seed {self._stack.configs[self._number].seed}"

    @property
    def first(self) -> bool:
        """True for the member whose progress is displayed."""
        return self._number == min(self._stack._alive, default=self._number)

    def task(self, prepare: Callable[[], Task]) -> Task:
        """Returns the task that all seeds share; the first call prepares it."""
        return self._stack.task(prepare)

    def steps(self) -> Steps:
        """Returns the functions of the stack, with `init` and `train` replaced for this seed."""
        shared, seed = self._stack.steps, self._stack.seed(self._number)
        return dataclasses.replace(
            shared,
            init=lambda: shared.initial(seed),
            train=self._train,
            resolve=self._resolve,
        )

    def _train(self, state: Any, batch: Any) -> tuple[Any, Any]:
        metrics = self._stack.step(self._number, state, batch)
        # A placeholder for the state in the stack, until `_resolve` returns the arrays.
        self.inside = object()
        return self.inside, metrics

    def _resolve(self, state: Any) -> Any:
        if state is not self.inside:
            return state
        self.inside = self._stack.state(self._number)
        return self.inside

    def __enter__(self) -> Member:
        self._stack.turn.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.leave(self._number)
        self._stack.turn.release()


def _stacked(states: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *states)


def _shapes(batch: Mapping[str, Any]) -> Hashable:
    return tuple(sorted((name, value.shape, str(value.dtype)) for name, value in batch.items()))


def _largest_group(shapes: Mapping[int, Hashable]) -> list[int]:
    """Returns the members whose batches have the most frequent shape; the first shape wins ties."""
    (shape, _), = collections.Counter(shapes.values()).most_common(1)  # fmt: skip
    return [member for member, each in shapes.items() if each == shape]


def _check_memory(state: Any, size: int, device: Any) -> None:
    """Raises if the states of all seeds do not fit into the memory that the device reports.

    Raises:
      UserError: they do not fit.
    """
    statistics = device.memory_stats() or {}
    free = statistics.get("bytes_limit", 0) - statistics.get("bytes_in_use", 0)
    each = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    # While a step runs, the gradients of all seeds are in memory too.
    if statistics.get("bytes_limit") and 2 * size * each > free:
        raise UserError(
            f"--stack_seeds: the train states and gradients of {size} seeds need about "
            f"{2 * size * each / 2**30:.1f} GB, and the device has {free / 2**30:.1f} GB; "
            f"{_REMEDY}"
        )
