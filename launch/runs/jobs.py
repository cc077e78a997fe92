"""Jobs: the runs of a sweep or an ablation, which any process can execute, and their results."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.engine.config import Experiment
from launch.engine.errors import Interrupted, causes, system_error
from launch.engine.stack import Member
from launch.reporting import results
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError

# Errors of a machine or its file systems, after which another attempt may succeed.
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENODEV, errno.ETIMEDOUT)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: an experiment with one seed.

    Attributes:
      name: name of the experiment in status lines.
      config: the experiment, with its seed.
      folder: run directory.
    """

    name: str
    config: Experiment
    folder: Path

    @property
    def label(self) -> str:
        """Name of the run in status lines."""
        return f"{self.name}, seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        """State of the run: True if its directory has a result."""
        return (self.folder / results.RESULT).exists()


@dataclasses.dataclass(frozen=True)
class Ended:
    """Result of a job.

    Attributes:
      record: result record; None if the run failed.
      failure: error message; '' if the run finished.
      retriable: whether the machine caused the failure, so that another attempt may succeed.
    """

    record: Mapping[str, Any] | None = None
    failure: str = ""
    retriable: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """Directories, command, messages and placement that the runs of all experiments share.

    Attributes:
      folder: parent of the run directories, one per config hash.
      paths: directories of data sets and caches.
      command: command line to store in the records.
      say: called with a status line about each run.
      track: trackers of each run, see `launch.runs.run.run`.
      known: cache of data descriptions, see `launch.runs.run.run`.
      placement: processes that execute the runs; None for this process, one run after another.
      retries: number of times that a run is started again after a failure of the machine.
    """

    folder: Path
    paths: Paths
    command: str
    say: Callable[[str], Any]
    track: Sequence[str] = ()
    known: dict[str, Any] = dataclasses.field(default_factory=dict)
    placement: Placement | None = None
    retries: int = 1


class Placement(Protocol):
    """Processes that execute jobs."""

    def run(
        self, jobs: Sequence[Job], options: Options, done: Callable[[Job, Ended], None]
    ) -> None:
        """Executes jobs.

        Args:
          jobs: jobs in the order in which they are started.
          options: directories, command and messages.
          done: called with each job and its result, in the order in which the jobs end.

        Raises:
          Interrupted: a signal stopped the runs; checkpoints were saved.
          KeyboardInterrupt: a signal stopped runs that other processes execute.
          UserError: no process can execute the jobs.
        """
        ...


class InProcess:
    """Placement that executes jobs in this process, one after another."""

    def run(
        self, jobs: Sequence[Job], options: Options, done: Callable[[Job, Ended], None]
    ) -> None:
        for job in jobs:
            finished = "finished already" if job.finished else job.folder
            options.say(f"{job.label}: {finished}")
            ended = perform(job, options)
            for attempt in range(options.retries):
                if not ended.retriable:
                    break
                options.say(retried(job, ended.failure, attempt, options.retries))
                ended = perform(job, options)
            done(job, ended)
            if ended.failure:
                options.say(f"{job.label}: failed: {ended.failure}")


def retried(job: Job, failure: str, attempt: int, retries: int) -> str:
    """Returns the status line that announces another attempt.

    Args:
      job: the job.
      failure: error message of the last attempt.
      attempt: number of earlier retries.
      retries: largest number of retries.
    """
    return f"{job.label}: {failure}; retry {attempt + 1} of {retries}"


def perform(job: Job, options: Options, member: Member | None = None) -> Ended:
    """Executes a job in this process.

    Args:
      job: the job.
      options: directories and command.
      member: member of a stack of seeds, which trains the job together with other seeds; None to
        train it alone.

    Raises:
      Interrupted: a signal stopped training; a checkpoint was saved.
      BrokenPipeError: the output pipe was closed by its reader.
    """
    from launch.runs.run import run

    try:
        return Ended(
            run(
                job.config,
                job.folder,
                options.paths,
                options.command,
                known=options.known,
                track=options.track,
                member=member,
            )
        )
    except (BrokenPipeError, Interrupted):
        raise
    except UserError as error:
        return Ended(failure=str(error))
    except Exception as error:
        reason = system_error(error) or f"{type(error).__name__}: {error}"
        return Ended(failure=reason, retriable=is_of_machine(error))


def is_of_machine(error: BaseException) -> bool:
    """Returns whether a machine or its file system caused an exception, rather than the run."""
    for found in causes(error):
        if isinstance(found, MemoryError) or "RESOURCE_EXHAUSTED: Out of memory" in str(found):
            return True
        if isinstance(found, OSError) and found.errno in _TRANSIENT:
            return True
    return False
