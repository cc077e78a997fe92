"""Repeats a step whose loss or gradients were not finite.

python -m launch.replay --workdir=runs/sst2 --step=123

Training saves the batch of such a step in the run directory, under nonfinite/step-N. This command
restores the newest checkpoint before that step, or else the initial parameters, and repeats the
steps since then. It prints which parameters have non-finite gradients, and which operation, module
and source line produce the first non-finite value.
"""

from __future__ import annotations

import sys

from absl import flags

from launch import cli

cli.define_workdir()
flags.DEFINE_integer("step", None, "Saved step to repeat; the first one by default.")


def replay() -> None:
    """Runs the command `launch.replay`."""
    from launch.runs import replaying
    from launch.runs.directory import saved_config

    folder = cli.workdir()
    cli.set_up_jax(saved_config(folder))
    found = replaying.replay(folder, cli.FLAGS.step, cli.paths(), cli.status)
    for line in found.lines():
        print(line)
    if found.finite:
        sys.exit(1)


if __name__ == "__main__":
    cli.main(replay, __doc__)
