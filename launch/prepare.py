"""Downloads and builds the data set of a config.

python -m launch.prepare --config=configs/text_classification.py:sst2

The tokenizer is fitted too, if the task has one.
"""

from __future__ import annotations

from launch import cli

cli.define_config()


def prepare() -> None:
    """Runs the command `launch.prepare`."""
    from launch.runs.directory import prepared_task
    from launch.runs.run import described_data

    config = cli.experiment()
    cli.set_up_jax(config)
    task = prepared_task(config, cli.paths())
    print(f"{config.task}: {config.data.name} is ready")
    for line in described_data(task)[1]:
        print(line)


if __name__ == "__main__":
    cli.main(prepare, __doc__)
