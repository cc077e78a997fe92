"""Predicts for user inputs with the model of a run directory.

python -m launch.predict --workdir=runs/sst2 --input="a gripping, funny film"
python -m launch.predict --workdir=runs/sst2 --input=- < lines.txt
python -m launch.predict --workdir=runs/sst2 --input_file=lines.txt --format=json
python -m launch.predict --workdir=runs/mine --input_file=new.csv > predicted.csv

The best checkpoint is used, and no data set is needed.

The inputs of a table are in the column that the run was trained on; if the run was trained without
a table, paths of files are in the column "path". Rows are printed as CSV with additional columns of
predictions. With --format=json, they are printed as JSON lines with the row under the key "row".
--output writes a file, whose extension gives the format:

python -m launch.predict --workdir=runs/mine --input_file=new.csv --output=predicted.jsonl

Tasks that read files accept folders and patterns:

python -m launch.predict --workdir=runs/photos --input=holiday --input="more/*.jpg"
    --output=labels.csv

A classifier gives no label if the probability of the best class is below --threshold. With
--positive, it predicts that class if its probability is at least the threshold:

python -m launch.predict --workdir=runs/mine --input_file=new.csv --threshold=0.8 --top_k=3
python -m launch.predict --workdir=runs/spam --input_file=new.csv --positive=spam --threshold=0.2

--figures also draws the predictions, with the attention weights of the input:

python -m launch.predict --workdir=runs/camvid --input=street.jpg --figures=drawn

A folder written by launch.export needs no run directory:

python -m launch.predict --export=exported --input="a gripping, funny film"

Text is generated with the options of config.model.decoding, which --set overrides:

python -m launch.predict --workdir=runs/shakespeare --input="ROMEO:"
    --set=model.decoding.temperature=0.5 --set=model.max_new_tokens=500
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from launch import cli

if TYPE_CHECKING:
    from launch.engine.answers import Rows
    from launch.engine.inputs import InputColumns
    from launch.engine.predictor import Predictor
    from tasks.answers import AnswerOptions
    from tasks.figures import Figure

cli.define_workdir()
flags.DEFINE_string("export", None, "Directory of launch.export, instead of --workdir.")
flags.DEFINE_multi_string(
    "input",
    [],
    "One input; - reads one input per line from standard input. For tasks that read files also a "
    "folder, or a pattern such as 'photos/*.jpg'.",
)
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
flags.DEFINE_enum(
    "format",
    None,
    ["text", "json", "csv", "tsv", "jsonl"],
    "Output format: plain text (the default), complete answers as JSON lines, or tables with the "
    "input columns and the predictions as columns.",
)
flags.DEFINE_string(
    "output",
    None,
    "File to write the predictions to, instead of standard output; .csv, .tsv, .jsonl or .txt.",
)
cli.define_answers()
flags.DEFINE_bool(
    "probability_columns",
    False,
    "For classification: give tables one column for the probability of each class, instead of a "
    "single JSON column with all of them.",
)

# Inputs per batch of predictions; bounds memory and prints predictions early.
PORTION = 2048
# Smaller batches if attention weights are kept for figures.
DRAWN_PORTION = 16


def predict() -> None:
    """Runs the command `launch.predict`."""
    from launch.engine import answers, prediction_options
    from launch.runs import directory
    from tasks.common.errors import UserError

    if not cli.FLAGS.input and not cli.FLAGS.input_file:
        raise UserError("--input is missing; give a text, or - for standard input")
    form = answers.format_of(cli.FLAGS.output, cli.FLAGS.format)
    options = cli.answer_options()
    if cli.FLAGS.export is not None:
        predict_exported(form, options)
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
    task = directory.restored_task(config, folder).with_options(options)
    _write(
        form,
        task.processor,
        _rows(type(task).rows),
        lambda: _Model.of_run(directory.load_predictor(task, config, folder)),
    )


def predict_exported(form: str, options: AnswerOptions) -> None:
    """Predicts with the exported model given by --export.

    Args:
      form: one of `launch.engine.answers.FORMATS`.
      options: options of predictions.

    Raises:
      UserError: the folder holds no export, an input cannot be read, or a flag needs --workdir.
    """
    from launch.engine import config as configs
    from launch.exports.reader import PORTION, Export, InputError
    from tasks.common.errors import UserError

    for flag in ("workdir", "set", "figures", "pictures"):
        if cli.FLAGS[flag].value:
            raise UserError(f"--{flag}: cannot be combined with --export; leave it out")
    cli.set_up_jax()
    try:
        export = Export(Path(cli.required("export")).expanduser())
        task = configs.task_class(export.signature["task"])
        options.check(task.answer_options)
    except InputError as error:
        raise UserError(str(error)) from None

    def answered(raw: list[str]) -> list[dict[str, Any]]:
        try:
            return [task.chosen(answer, options) for answer in export(raw)]
        except InputError as error:
            raise UserError(str(error)) from None

    model = _Model(PORTION, answered, lambda raw: answered([raw]))
    columns = _ExportedColumns(export.signature["column"], export.kind)
    _write(form, columns, _rows(task.rows), lambda: model)


class _ExportedColumns(NamedTuple):
    """Input column of an export; the paths in it are relative to the folder of the table."""

    input_column: str | None
    kind: str

    @property
    def input_suffixes(self) -> Sequence[str]:
        from tasks.common.audio import files as sounds
        from tasks.common.data.tables import EXTENSIONS
        from tasks.common.images import files as images

        known = {"image": images.SUFFIXES, "sound": sounds.SUFFIXES, "table": EXTENSIONS}
        return known.get(self.kind, ())

    def table_input(self, value: str, folder: Path) -> str:
        from tasks.common.data.user_files import find_file

        return str(find_file(folder, value.strip())) if self.input_suffixes else value


class _Model(NamedTuple):
    """Predictions of raw inputs.

    Attributes:
      portion: number of inputs per call, which bounds memory and prints predictions early.
      answers: function that returns the predictions of raw inputs.
      check: function that raises UserError if an input cannot be read.
    """

    portion: int
    answers: Callable[[list[str]], list[dict[str, Any]]]
    check: Callable[[str], Any]

    @classmethod
    def of_run(cls, predictor: Predictor) -> _Model:
        """Returns the model of a run. With --figures, its answers name the files of the figures."""
        if cli.FLAGS.figures is None:
            return cls(PORTION, predictor, predictor.check)
        first = 1
        key = "figures" if cli.FLAGS.pictures is None else "pictures"

        def drawn(raw: list[str]) -> list[dict[str, Any]]:
            nonlocal first
            answers, figures = predictor.with_figures(raw)
            files = write_figures(Path(cli.FLAGS.figures), raw, figures, first)
            first += len(raw)
            return [{**answer, key: names} for answer, names in zip(answers, files, strict=True)]

        return cls(DRAWN_PORTION, drawn, predictor.check)


def _rows(rows: Rows) -> Rows:
    """Adds the columns of --probability_columns to a function that returns table rows.

    With this flag, the rows have a column for the probability of each class.

    Args:
      rows: function that returns the table rows of a prediction.
    """
    from tasks.common.errors import UserError

    def wide(answer: Any) -> Sequence[dict[str, Any]]:
        if "probabilities" not in answer:
            raise UserError("--probability_columns: this task has no classes; leave it out")
        found = []
        for row in rows(answer):
            # The order of the classes must not depend on the input.
            columns = {f"probability_{name}": row["probabilities"][name]
                       for name in sorted(row["probabilities"])}  # fmt: skip
            rest = {key: value for key, value in row.items() if key != "probabilities"}
            found.append({**rest, **columns})
        return found

    if not cli.FLAGS.probability_columns:
        return rows
    if cli.FLAGS.top_k is not None:
        raise UserError("--probability_columns: cannot be combined with --top_k; leave one out")
    return wide


def _write(form: str, columns: InputColumns, rows: Rows, load: Callable[[], _Model]) -> None:
    """Predicts for all inputs, and writes the predictions.

    Invalid flags and files are reported before the model is loaded.

    Args:
      form: one of `launch.engine.answers.FORMATS`.
      columns: processor of the task, or input column of an export.
      rows: function that returns the table rows of a prediction.
      load: function that loads the model.
    """
    from launch.engine import answers, inputs
    from launch.engine.progress import PredictionProgress

    given, file = cli.FLAGS.input, cli.FLAGS.input_file
    read = [name for name in (file, *given * bool(columns.input_suffixes)) if name]
    with answers.Destination(cli.FLAGS.output, read) as destination:
        found = None
        # Only regular files are checked in advance, because a pipe can be read only once.
        if file and os.path.isfile(os.path.expanduser(file)):
            found = inputs.check_file(file, columns)
        count = found.count if found is not None and not given else None
        header = None if found is None or given else found.columns
        model = load()
        written = answers.Answers(form, destination, rows, header)
        skipped, progress, done = inputs.Skipped(), PredictionProgress(count), 0
        for portion in inputs.in_portions(inputs.read_inputs(given, file, columns), model.portion):
            kept, found_answers = skipped.answered(portion, model.answers, model.check)
            written.write(kept, found_answers)
            done += len(kept)
            progress.add(len(portion))
        skipped.report()
    if destination.path is not None and destination.path.is_file():
        print(f"{destination.path}: predictions of {done:,} input{'s' * (done != 1)}")


def write_figures(
    folder: Path,
    raw: Sequence[str],
    drawn: Sequence[Sequence[Figure]],
    first: int = 1,
) -> list[list[str]]:
    """Writes the figures of each input as NUMBER-NAME.png, NUMBER-NAME-2.png, ....

    Args:
      folder: directory of the files, which is created if it does not exist.
      raw: inputs. NAME is derived from the input: the file name without extension, or the text.
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


if __name__ == "__main__":
    cli.main(predict, __doc__)
