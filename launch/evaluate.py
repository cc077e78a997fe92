"""Evaluates the best checkpoint of a run directory on a split.

python -m launch.evaluate --workdir=runs/sst2 --split=test

Writes evaluation-<split>.json to the run directory and prints its content.
"""

from __future__ import annotations

from absl import flags

from launch import cli
from launch.engine import output

cli.define_workdir()
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to evaluate on.")


def evaluate() -> None:
    """Runs the command `launch.evaluate`."""
    from launch.runs import directory
    from launch.runs.evaluation import evaluate_run

    folder = cli.workdir()
    config = directory.saved_config(folder)
    cli.set_up_jax(config)
    print(output.as_json(evaluate_run(config, folder, cli.FLAGS.split, cli.paths()), indent=1))


if __name__ == "__main__":
    cli.main(evaluate, __doc__)
