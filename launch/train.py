"""Trains one experiment and prints its test metrics.

python -m launch.train --config=configs/text_classification.py:sst2 --workdir=runs/sst2

The metrics of the baselines are printed too. The same command resumes an interrupted run in the
same directory. For a finished run, it only checks that the data have not changed. With
--distributed, the same command is started once for each of several processes. Their number may
change when a run is resumed; see docs/CLUSTER.md.
"""

from __future__ import annotations

from absl import flags

from launch import cli

cli.define_config()
cli.define_workdir()
cli.define_record()
cli.define_track()
cli.define_distributed()
flags.DEFINE_string(
    "profile",
    None,
    "Write a trace of some training steps to profile/ in --workdir: a number of steps, such as 10, "
    "or a range, such as 100-110.",
)
flags.DEFINE_bool("baselines", True, "Fit the task's baselines (cached) and show their metrics.")


def train() -> None:
    """Runs the command `launch.train`."""
    from launch.engine import processes, profiling
    from launch.engine.config import task_class
    from launch.reporting import formatting
    from launch.reporting.results import training_notes
    from launch.runs.run import run

    config, folder = cli.experiment(), cli.workdir()
    cli.check_recordable()
    track, profile = cli.tracked(), profiling.parse(cli.FLAGS.profile)
    connection = cli.distributed()
    cli.set_up_jax(config, connection)
    record = run(
        config,
        folder,
        cli.paths(),
        cli.command(),
        cli.FLAGS.baselines,
        track=track,
        profile=profile if processes.is_first() else None,
    )
    if not processes.is_first():
        return
    formatting.show(record, task_class(config.task).table_metrics)
    for note in training_notes(record):
        print(note)
    print(f"report: {folder / 'report.html'}")
    cli.record([record])


if __name__ == "__main__":
    cli.main(train, __doc__)
