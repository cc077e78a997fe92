"""Runs a config for several seeds and values of its keys.

python -m launch.sweep --config=configs/text_classification.py:sst2 --workdir=runs/sweep
    --seeds=3 --set model.num_layers=1,2

One table is printed: validation and test metrics, and differences from the first combination with
95 % confidence intervals, paired by test example. The files table.md, table.csv, table.json and
report.html in --workdir contain the same table. The same command resumes an interrupted sweep.

Several --set flags run every combination of values. The values of a key are a list or a range. For
example, log(1e-5,1e-2,7) is 7 numbers with equal ratios, and linear(0,0.5,7) is 7 numbers with
equal distances:

python -m launch.sweep --config=configs/text_classification.py:sst2 --workdir=runs/rates
    --set "optimizer.learning_rate=log(1e-4,1e-2,5)" --set "model.dropout_rate=linear(0,0.4,3)"

--on=local:4 executes four runs at once, and --on=ray executes runs on a Ray cluster, see
docs/CLUSTER.md. --stack_seeds trains the seeds of a combination in one program, with the same
losses.

--search=optuna runs --trials combinations, each chosen by the validation metrics of the earlier
ones (pip install -r requirements-optuna.txt). A range without a count, such as log(1e-4,1e-2),
then stands for all values between its ends. The same command with a larger --trials continues the
search:

python -m launch.sweep --config=configs/text_classification.py:sst2 --workdir=runs/search
    --set "optimizer.learning_rate=log(1e-4,1e-2)" --set "model.num_layers=linear(1,4)"
    --search=optuna --trials=20
"""

from __future__ import annotations

import sys

from absl import flags

from launch import cli, several

cli.define_config()
cli.define_workdir()
flags.DEFINE_integer(
    "seeds", 1, "Number of seeds, starting at the seed of the config.", lower_bound=1
)
flags.DEFINE_multi_string(
    "set",
    [],
    "Values of a config key: key=a,b,c, key=log(FIRST,LAST,COUNT) or key=linear(FIRST,LAST,COUNT).",
)
flags.DEFINE_enum("search", None, ["optuna"], "Choose the combinations by a search, with Optuna.")
flags.DEFINE_integer(
    "trials", 20, "Number of combinations of --search, including those of earlier commands.",
    lower_bound=1,
)  # fmt: skip
cli.define_match()
cli.define_stack()
cli.define_placement()
cli.define_record()
cli.define_track()


def sweep() -> None:
    """Runs the command `launch.sweep`."""
    from launch.runs import sweeps
    from tasks.common.errors import UserError

    config = cli.experiment()
    cli.workdir()  # Raises if the flag is missing, before the experiments are resolved.
    title = f"{config.task}: {config.data.name}"
    if cli.FLAGS.search:
        search(config, title)
    if not cli.FLAGS["trials"].using_default_value:
        raise UserError("--trials: needs --search=optuna; --set alone runs every combination")
    several.run_all(sweeps.resolve_sweep(config, cli.FLAGS.set), cli.FLAGS.seeds, title)


def search(config, title: str) -> None:
    """Runs the trials of --search, prints their table and exits.

    Args:
      config: experiment of the config file.
      title: title of the table.

    Raises:
      UserError: a flag cannot be combined with --search.
    """
    from launch.engine.config import task_class
    from launch.runs import search as searches
    from tasks.common.errors import UserError

    if cli.FLAGS.stack_seeds:
        raise UserError("--stack_seeds: cannot be combined with --search; leave out one of them")
    if cli.FLAGS.match:
        raise UserError("--match: cannot be combined with --search; leave out one of them")
    searches.check_installed()
    cli.check_recordable()
    placed = several.placement()
    several.set_up_for(placed, config)
    options = several.run_options(placed, cli.tracked())
    outcomes, stopped, trials = searches.run_search(
        config,
        cli.FLAGS.set,
        cli.FLAGS.trials,
        cli.FLAGS.seeds,
        options,
    )
    if not outcomes:
        sys.exit(128 + stopped)
    note = (
        f"{trials} trials of {len(outcomes)} combinations, chosen by Optuna (TPE) by "
        f"{task_class(config.task).primary_metric} on validation; a larger --trials continues"
    )
    several.finish_runs(outcomes, stopped, title, against_best=True, notes=[note])


if __name__ == "__main__":
    cli.main(sweep, __doc__)
