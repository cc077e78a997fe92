"""Runs a command on several processes of this machine.

python -m launch.local --processes=2 --devices=2 -- python -m launch.train --config=configs/text_classification.py:sst2 --workdir=runs/sst2

Starts `launch.train` or `launch.evaluate` once for each process, with --distributed. The output of
the first process and the errors of all processes are shown. SIGINT and SIGTERM are passed on, so
training saves a checkpoint and stops. If a process ends with an error, the other processes are
ended too; the exit status is that of the first error. The same command continues the run, even if
the number of processes is changed.
"""  # noqa: E501

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags

from launch import cli, command_line

flags.DEFINE_integer("processes", 2, "Number of processes.", lower_bound=1)
flags.DEFINE_integer(
    "devices",
    1,
    "Number of devices of each process: virtual CPU devices, or consecutive GPUs of this machine.",
    lower_bound=1,
)
cli.define_arguments()


def local() -> None:
    """Runs the command `launch.local`."""
    from launch.engine import supervision

    words = _command(cli.arguments())
    count, devices = cli.FLAGS.processes, cli.FLAGS.devices
    port = supervision.free_port()
    print(
        f"{count} processes with {devices} devices each, process {os.getpid()}",
        file=sys.stderr,
        flush=True,
    )
    jobs = []
    for index in range(count):
        ids = range(index * devices, (index + 1) * devices)
        environment = {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, ids)),
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        }
        flag = f"--distributed=127.0.0.1:{port},{count},{index}"
        jobs.append(([*words, flag], environment))
    sys.exit(supervision.supervise_all(jobs))


def _command(words: Sequence[str]) -> list[str]:
    """Returns the command line of one process.

    Raises:
      UserError: the words are not a command that supports --distributed, or contain this flag.
    """
    from tasks.common.errors import UserError

    known = [f"launch.{name}" for name, names in command_line.flags_of_commands().items()
             if "distributed" in names]  # fmt: skip
    example = f"python -m launch.local --processes=2 -- python -m {known[-1]} --config=..."
    if not words:
        raise UserError(f"the command is missing; write {example}")
    if len(words) < 3 or words[1] != "-m" or words[2] not in known:
        given = " ".join(words[:3])
        raise UserError(f"{given}: expected python -m {' or '.join(known)}; write {example}")
    if any(word.partition("=")[0] in ("--distributed", "-distributed") for word in words):
        raise UserError("--distributed: is set by launch.local; leave it out of the command")
    return [sys.executable, *words[1:]]


if __name__ == "__main__":
    cli.main(local, __doc__)
