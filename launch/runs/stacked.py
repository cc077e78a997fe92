"""Placement of runs that trains all seeds of an experiment in one program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from launch.engine.config import Experiment
from launch.engine.errors import Interrupted
from launch.engine.loop import forward_signal
from launch.engine.stack import Member, Stack
from launch.reporting.comparison import Outcome
from launch.reporting.formatting import mean_and_spread
from launch.runs.jobs import Ended, InProcess, Job, Options, perform
from tasks.common.errors import UserError

# Longest time in seconds until a signal is forwarded to the threads.
_INTERVAL = 0.2


def check(config: Experiment, seeds: int, track: Sequence[str] = ()) -> None:
    """Raises if the seeds of an experiment cannot be stacked.

    Args:
      config: the experiment.
      seeds: number of seeds.
      track: trackers of the runs.

    Raises:
      UserError: there is a single seed, or a setting is not supported.
    """
    import jax

    if seeds < 2:
        raise UserError("--stack_seeds: got 1 seed, expected several; set --seeds=2 or more")
    if jax.process_count() > 1:
        raise UserError(
            f"--stack_seeds: got {jax.process_count()} processes, expected 1; leave out "
            "--stack_seeds"
        )
    for axis in ("fsdp", "tensor", "sequence"):
        if (size := getattr(config.mesh, axis)) > 1:
            raise UserError(
                f"config.mesh.{axis}: got {size}, expected 1 with --stack_seeds, which puts whole "
                f"models on devices; set config.mesh.{axis} to 1, or leave out --stack_seeds"
            )
    if config.training.refit:
        raise UserError(
            "config.training.refit: got True, expected False with --stack_seeds, because the "
            "second training has another number of steps for each seed; leave out --stack_seeds"
        )
    if "wandb" in track:
        raise UserError(
            "--track=wandb: supports one run at a time; use --track=mlflow, or leave out "
            "--stack_seeds"
        )


class StackedSeeds:
    """Placement in this process: one experiment after another, with all its seeds together.

    On several devices, the seeds are distributed over them.
    """

    def run(
        self, jobs: Sequence[Job], options: Options, done: Callable[[Job, Ended], None]
    ) -> None:
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.name, []).append(job)
        for name, group in groups.items():
            rest = [job for job in group if not job.finished]
            alone = [job for job in group if job.finished or len(rest) == 1]
            InProcess().run(alone, options, done)
            if len(rest) > 1:
                seeds = ", ".join(str(job.config.seed) for job in rest)
                options.say(f"{name}: seeds {seeds} in one program, in {options.folder}")
                self._run_together(rest, options, done)

    def _run_together(
        self, jobs: Sequence[Job], options: Options, done: Callable[[Job, Ended], None]
    ) -> None:
        ended: dict[Job, Ended | BaseException] = {}

        def work(job: Job, member: Member) -> None:
            with member:
                try:
                    ended[job] = perform(job, options, member)
                except BaseException as error:  # raised again in the main thread
                    ended[job] = error

        threads = [
            threading.Thread(target=work, args=pair, name=pair[0].label, daemon=True)
            for pair in _members(jobs)
        ]
        with _forwarded() as received:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(_INTERVAL / len(threads))
                if received:
                    # Repeated, because training loops may have begun after the signal.
                    forward_signal(received[0])
        for job in jobs:
            result = ended[job]
            if isinstance(result, Ended):
                if result.failure.startswith("--stack_seeds:"):
                    raise UserError(result.failure)
                done(job, result)
                if result.failure:
                    options.say(f"{job.label}: failed: {result.failure}")
        errors = [result for result in ended.values() if isinstance(result, BaseException)]
        if errors:
            raise next((e for e in errors if isinstance(e, Interrupted)), errors[0])


def _members(jobs: Sequence[Job]) -> Iterator[tuple[Job, Member]]:
    """Yields each job with its member of a stack; there is a stack on each device."""
    import jax

    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        devices = devices[: jobs[0].config.mesh.cpu_devices or None]
    turn = threading.Condition()
    for number, device in enumerate(devices):
        if mine := jobs[number :: len(devices)]:
            stack = Stack([job.config for job in mine], device, turn, len(jobs))
            yield from zip(mine, stack.members, strict=True)


@contextlib.contextmanager
def _forwarded() -> Iterator[list[int]]:
    """Records SIGINT or SIGTERM in the yielded list; a second signal kills the process."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    before = {}
    # Only the main thread can handle signals.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def notes(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Returns, for each experiment with stacked seeds, a line with the seconds per seed.

    Args:
      outcomes: results by name.
    """
    found = []
    for name, outcome in outcomes.items():
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for record in outcome.records.values():
            kinds["stacked_seeds" in record.get("timing", {})].append(record["seconds"])
        if not kinds[True]:
            continue
        line = f"{name}: {mean_and_spread(kinds[True])[0]:.1f} seconds per stacked seed"
        if kinds[False]:
            alone = mean_and_spread(kinds[False])[0]
            line += f", {alone:.1f} per seed trained alone ({len(kinds[False])} of the seeds)"
        found.append(line)
    return found
