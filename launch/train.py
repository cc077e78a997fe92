"""Trains one experiment and prints the test table, the baselines beside.

python -m launch.train --config=configs/text_classification.py:sst2 --workdir=runs/sst2

The same command on the same folder goes on where it stopped, and does nothing once it is done.
"""

from __future__ import annotations

from absl import flags

from launch import cli

cli.define_config()
cli.define_workdir()
cli.define_record()
flags.DEFINE_bool("baselines", True, "Fit the cheap baselines (once) and show them beside.")


def train() -> None:
    """The verb."""
    from launch.engine.config import task_class
    from launch.reporting import tables
    from launch.runs.run import run

    config, folder = cli.experiment(), cli.workdir()
    cli.check_recordable()
    cli.set_up_jax(config)
    record = run(config, folder, cli.paths(), cli.command(), cli.FLAGS.baselines)
    tables.show(record, task_class(config.task).table_metrics)
    print(f"report: {folder / 'report.html'}")
    cli.record([record])


if __name__ == "__main__":
    cli.main(train, __doc__)
