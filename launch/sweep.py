"""Runs a config for several seeds and values of its keys.

python -m launch.sweep --config=configs/text_classification.py:sst2 --workdir=runs/sweep
    --seeds=3 --set model.num_layers=1,2

One table is printed. Several --set flags run every combination of values; each is compared with the
first combination.
"""

from __future__ import annotations

from absl import flags

from launch import cli

cli.define_config()
cli.define_workdir()
flags.DEFINE_integer(
    "seeds", 1, "Number of seeds, starting at the seed of the config.", lower_bound=1
)
flags.DEFINE_multi_string("set", [], "key=a,b,c")
cli.define_record()
cli.define_track()


def sweep() -> None:
    """Runs the command `launch.sweep`."""
    from launch.runs import ablation as ablations

    config = cli.experiment()
    cli.workdir()  # before the experiments are resolved
    experiments = ablations.resolve_sweep(config, cli.FLAGS.set)
    cli.run_all(experiments, cli.FLAGS.seeds, f"{config.task}: {config.data.name}")


if __name__ == "__main__":
    cli.main(sweep, __doc__)
