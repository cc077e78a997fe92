"""Predicts for user inputs with the model of a run directory.

python -m launch.predict --workdir=runs/sst2 --input="a gripping, funny film"
python -m launch.predict --workdir=runs/sst2 --input=- < lines.txt
python -m launch.predict --workdir=runs/sst2 --input_file=lines.txt --format=json
python -m launch.predict --workdir=runs/mine --input_file=new.csv > predicted.csv

The best checkpoint is used, and no data set is needed.

For a table, the inputs are in the column that the run was trained on. Its rows are printed as CSV
with additional columns of predictions, or with --format=json as JSON lines with the key "row".

Predictions are also drawn, with the attention weights of the input:

python -m launch.predict --workdir=runs/camvid --input=street.jpg --figures=drawn

A folder written by launch.export needs no run directory:

python -m launch.predict --export=exported --input="a gripping, funny film"

Text is generated with the options of config.model.decoding, which --set overrides:

python -m launch.predict --workdir=runs/shakespeare --input="ROMEO:"
    --set=model.decoding.temperature=0.5 --set=model.max_new_tokens=500
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from launch import cli

if TYPE_CHECKING:
    from launch.engine.inputs import Input
    from launch.engine.predictor import Predictor
    from tasks.figures import Figure

cli.define_workdir()
flags.DEFINE_string("export", None, "Directory of launch.export, instead of --workdir.")
flags.DEFINE_multi_string("input", [], "One input; - reads one input per line from standard input.")
flags.DEFINE_string(
    "input_file",
    None,
    "File with one input per line, or a table (.csv, .tsv, .jsonl) with the input column that "
    "the run was trained on; table rows are printed with their predictions.",
)
flags.DEFINE_multi_string(
    "set", [], "Override key=value of an option of config.model.decoding, for this command only."
)
flags.DEFINE_string("figures", None, "Directory for PNG figures of the predictions.")
flags.DEFINE_string("pictures", None, "Former name of --figures.")
flags.DEFINE_enum("format", "text", ["text", "json"], "Output format: plain text or JSON lines.")

# Inputs per batch of predictions; bounds memory and prints predictions early.
PORTION = 2048
# Smaller batches if attention weights are kept for figures.
DRAWN_PORTION = 16


def predict() -> None:
    """Runs the command `launch.predict`."""
    from launch.engine import inputs, prediction_options
    from launch.runs import directory
    from tasks.common.errors import UserError

    if not cli.FLAGS.input and not cli.FLAGS.input_file:
        raise UserError("--input is missing; give a text, or - for standard input")
    if cli.FLAGS.export is not None:
        predict_exported()
        return
    folder = cli.workdir()
    config = directory.saved_config(folder)
    if cli.FLAGS.pictures is not None:
        print("--pictures is now --figures", file=sys.stderr)
        cli.FLAGS.figures = cli.FLAGS.pictures
    if cli.FLAGS.figures == "":
        raise UserError("--figures is empty, expected a directory")
    config = prediction_options.with_options(config, cli.FLAGS.set)
    cli.set_up_jax(config)
    task = directory.restored_task(config, folder)
    predictor = directory.load_predictor(task, config, folder)
    given = inputs.read_inputs(cli.FLAGS.input, cli.FLAGS.input_file, task.processor)
    written = inputs.Answers(cli.FLAGS.format)
    for portion, answers in _answered(predictor, given):
        written.write(portion, answers)


def predict_exported() -> None:
    """Predicts with the exported model given by --export.

    Raises:
      UserError: the folder holds no export, an input cannot be read, or a flag needs --workdir.
    """
    from launch.engine import inputs
    from launch.exports.reader import PORTION as portion_size
    from launch.exports.reader import Export, InputError
    from tasks.common.errors import UserError

    for flag in ("workdir", "set", "figures", "pictures"):
        if cli.FLAGS[flag].value:
            raise UserError(f"--{flag}: cannot be combined with --export; leave it out")
    cli.set_up_jax()
    try:
        export = Export(Path(cli.required("export")).expanduser())
        columns = _ExportedColumns(export.signature["column"], export.kind != "text")
        given = inputs.read_inputs(cli.FLAGS.input, cli.FLAGS.input_file, columns)
        written = inputs.Answers(cli.FLAGS.format)
        for portion in _portions(given, portion_size):
            written.write(portion, export([one.raw for one in portion]))
    except InputError as error:
        raise UserError(str(error)) from None


class _ExportedColumns(NamedTuple):
    """Input column of an export; paths in its cells are relative to the folder of the table."""

    input_column: str | None
    is_path: bool

    def table_input(self, value: str, folder: Path) -> str:
        return str(folder / Path(value).expanduser()) if self.is_path else value


def _answered(
    predictor: Predictor, given: Iterator[Input]
) -> Iterator[tuple[Sequence[Input], list[dict[str, Any]]]]:
    """Yields batches of inputs and predictions, which contain the figure files with --figures."""
    if cli.FLAGS.figures is None:
        for portion in _portions(given, PORTION):
            yield portion, predictor([one.raw for one in portion])
        return
    first = 1
    for portion in _portions(given, DRAWN_PORTION):
        raw = [one.raw for one in portion]
        answers, drawn = predictor.with_figures(raw)
        files = write_figures(Path(cli.FLAGS.figures), raw, drawn, first)
        key = "figures" if cli.FLAGS.pictures is None else "pictures"
        named = zip(answers, files, strict=True)
        yield portion, [{**answer, key: names} for answer, names in named]
        first += len(portion)


def write_figures(
    folder: Path,
    raw: Sequence[str],
    drawn: Sequence[Sequence[Figure]],
    first: int = 1,
) -> list[list[str]]:
    """Writes the figures of each input as NUMBER-NAME.png, NUMBER-NAME-2.png, ....

    Args:
      folder: created if it does not exist.
      raw: inputs; NAME is the file name of an input.
      drawn: list of figures for each input.
      first: NUMBER of the first input.

    Returns:
      Paths of the figures of each input.

    Raises:
      UserError: the folder cannot be written.
    """
    from launch.reporting import figures
    from tasks.common.errors import UserError

    found = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (source, shown) in enumerate(zip(raw, drawn, strict=True), first):
            name = re.sub(r"[^\w.-]+", "_", Path(source).stem)[:60]
            stems = [
                f"{number:04d}-{name}{f'-{i}' if i > 1 else ''}" for i in range(1, len(shown) + 1)
            ]
            found.append([str(folder / f"{stem}.png") for stem in stems])
            for path, figure in zip(found[-1], shown, strict=True):
                Path(path).write_bytes(figures.png(figure))
    except OSError as error:
        raise UserError(f"--figures={folder}: cannot be written ({error.strerror})") from None
    return found


def _portions(inputs: Iterator[Input], size: int) -> Iterator[Sequence[Input]]:
    portion: list[Input] = []
    for one in inputs:
        portion.append(one)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


if __name__ == "__main__":
    cli.main(predict, __doc__)
