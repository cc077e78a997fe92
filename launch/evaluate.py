"""Evaluates a trained model on a split, or on a labeled file.

python -m launch.evaluate --workdir=runs/sst2 --split=test

Writes evaluation-<split>.json to the run directory and prints its content. With --distributed, the
same command is started once for each of several processes; see docs/CLUSTER.md.

A labeled file has the form of the files that the task accepts as --data: a table with the columns
of the run, a folder of class folders, images/ and masks/, a COCO file, a manifest, a series,
events, parallel files, or text. Classes, vocabulary and scales are those of the run. The
data of the run are not needed, and its records are not changed. Metrics have 95 % confidence
intervals:

python -m launch.evaluate --workdir=runs/mine --file=labeled.csv --output=rows.csv
python -m launch.evaluate --workdir=runs/spam --file=labeled.csv --positive=spam --threshold=0.2
"""

from __future__ import annotations

from absl import flags

from launch import cli
from launch.engine import output

cli.define_workdir()
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to evaluate on.")
flags.DEFINE_string("file", None, "Labeled file or folder to evaluate on, instead of --split.")
flags.DEFINE_string("images", None, "Folder of the images, if --file is an annotation file.")
flags.DEFINE_string(
    "output",
    None,
    "File to write, with target, prediction and score of each example of --file; .csv, .tsv or "
    ".jsonl.",
)
cli.define_answers()
cli.define_distributed()


def evaluate() -> None:
    """Runs the command `launch.evaluate`."""
    from launch.engine import answers
    from launch.runs import directory
    from launch.runs.evaluation import evaluate_file, evaluate_run
    from tasks.common.data.user_files import split_paths
    from tasks.common.errors import UserError

    folder = cli.workdir()
    config = directory.saved_config(folder)
    options, file = cli.answer_options(), cli.FLAGS.file
    if file is None:
        for flag in ("images", "output"):
            if cli.FLAGS[flag].value is not None:
                raise UserError(f"--{flag}: is only used with --file; leave it out")
        cli.set_up_jax(config, cli.distributed())
        split, paths = cli.FLAGS.split, cli.paths()
        record = evaluate_run(config, folder, split, paths, options=options)
        print(output.as_json(record, indent=1))
        return
    if cli.FLAGS.distributed is not None:
        raise UserError("--distributed: is only used with --split; leave it out")
    if cli.FLAGS["split"].present:
        raise UserError("--split: cannot be combined with --file; leave one of them out")
    form = answers.format_of(cli.FLAGS.output, None)
    if cli.FLAGS.output is not None and form == "text":
        raise UserError(f"--output={cli.FLAGS.output}: expected a .csv, .tsv or .jsonl file")
    with answers.Destination(cli.FLAGS.output, split_paths(file)) as destination:
        cli.set_up_jax(config)
        found = evaluate_file(config, folder, file, options, cli.FLAGS.images)
        if cli.FLAGS.output is not None:
            answers.write_rows(found.rows, form, destination)
    print(output.as_json(found.record, indent=1))


if __name__ == "__main__":
    cli.main(evaluate, __doc__)
