"""Compares an experiment with changes to it, over several seeds.

python -m launch.ablate --config=configs/ablations/text_pooling.py --workdir=runs/text_pooling

The ablation file declares a base experiment and changes to it (deltas). One table is printed.
The table has validation and test metrics, and differences from the base with 95 % confidence
intervals, paired by test example. The files table.md, table.csv, table.json and report.html in
--workdir contain the same table. Finished runs are skipped, so the same command resumes an
interrupted ablation.

With --data and the flags of columns, such as --text and --label, all experiments use your own data:

python -m launch.ablate --config=configs/ablations/text_pooling.py --workdir=runs/mine
    --data=my.csv --text=review --label=stars

--match=parameters adjusts one dimension of each model so that each model has as many parameters as
that of the base experiment:

python -m launch.ablate --config=configs/ablations/text_pooling.py --workdir=runs/matched
    --match=parameters

--on=local:4 executes four runs at once, and --on=ray executes them on a Ray cluster:

python -m launch.ablate --config=configs/ablations/text_pooling.py --workdir=runs/text_pooling
    --on=local:4

configs/ablations/atlas.py has an ablation for each kind of mechanism. Each ablation has its own
directory and table, and report.html and ranking.md in --workdir rank the mechanisms of all kinds:

python -m launch.ablate --config=configs/ablations/atlas.py --workdir=runs/atlas
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import cli, several

cli.define_workdir()
cli.define_own_data()
cli.define_match()
cli.define_stack()
cli.define_placement()
cli.define_record()
cli.define_track()
flags.DEFINE_string("config", None, "Ablation file, for example configs/ablations/text_pooling.py.")
flags.DEFINE_integer(
    "seeds", None, "Number of seeds; overrides the number in the ablation file.", lower_bound=1
)
flags.DEFINE_multi_string(
    "set", [], "Config override key=value, applied to the base and to every delta."
)


def ablate() -> None:
    """Runs the command `launch.ablate`."""
    from launch.runs import ablation as ablations
    from launch.runs.experiments import Group
    from tasks.common.errors import UserError

    path = cli.required("config")
    cli.workdir()  # Raises if the flag is missing, before the ablations are loaded.
    found = ablations.load_ablations(path)
    if len(found) > 1 and (cli.FLAGS.data or cli.own_columns()):
        raise UserError(f"--data: {path} has ablations of several tasks, expected one ablation")
    groups = {}
    for name, ablation in found.items():
        ablation = ablations.with_own_data(ablation, cli.FLAGS.data, cli.own_columns())
        ablation = ablations.with_overrides(ablation, cli.FLAGS.set)
        experiments = ablations.resolve_ablation(ablation)
        groups[name] = Group(experiments, cli.FLAGS.seeds or ablation.seeds, ablation.match)
    several.run_groups(groups, Path(path).stem)


if __name__ == "__main__":
    cli.main(ablate, __doc__)
