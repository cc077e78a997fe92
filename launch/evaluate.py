"""Evaluates the best checkpoint of a run folder on a split.

python -m launch.evaluate --workdir=runs/sst2 --split=test

Writes evaluation-<split>.json into the folder and prints it.
"""

from __future__ import annotations

import sys

from absl import flags

from launch.engine import cli, output

cli.define_workdir()
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which split.")


def evaluate() -> None:
    """The verb."""
    from launch.engine import evaluation, run
    from launch.engine.writers import write_json

    folder, split = cli.workdir(), cli.FLAGS.split
    config = run.saved_config(folder)
    cli.set_up_jax(config)
    task = run.prepared_task(config, cli.paths(), folder)
    if config.training.refit:
        task = task.with_validation()
        if split == "validation":
            print(
                "this run was refitted on train and validation; use --split=test for an unbiased "
                "estimate",
                file=sys.stderr,
            )
    run.check_assets(task, folder)
    steps, variables, best = run.load_variables(task, config, folder)
    result = evaluation.evaluate(
        task, steps, variables, split, config.training.evaluation_batch_size
    )
    run.save_outputs(folder, task, result, split)
    record = {"split": split, "step": best, "metrics": result.metrics}
    write_json(folder / f"evaluation-{split}.json", record)
    print(output.as_json(record, indent=1))


if __name__ == "__main__":
    cli.main(evaluate, __doc__)
