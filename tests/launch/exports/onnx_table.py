"""The table of what converts to ONNX, in docs/DEPLOYING.md.

python -m tests.launch.exports.onnx_table    # prints it
"""

import dataclasses
import pathlib
import tempfile

import numpy as np

from launch.exports import writer
from tests.launch.conftest import ROOT
from tests.tasks import contract

PAGE = ROOT / "docs" / "DEPLOYING.md"
BEGIN, END = "<!-- onnx -->", "<!-- /onnx -->"
COLUMNS = ("task", "model", "predict", "attention", "prefill", "step")


@dataclasses.dataclass(frozen=True)
class Row:
    """Result of converting a task: a cell for each kind of program, and the largest difference."""

    name: str
    cells: tuple[str, ...]
    deviation: float


def convert_task(name: str, folder: pathlib.Path) -> Row:
    """Converts the tiny model of a task of the contract suite, for the size of its inputs."""
    subject = contract.make_subject(name, folder)
    task, config = subject.task, subject.config
    index, inputs = encoded(subject)
    programs, _ = writer.build_programs(task, config, subject.variables, True)
    if not programs["attention"][0].outputs:
        del programs["attention"]
    converted = writer.convert(
        {kind: [many[index]] for kind, many in programs.items()},
        writer.named_weights(subject.variables),
        [inputs],
        batch_size=1,
    )
    cells = []
    for kind in COLUMNS[2:]:
        if kind not in programs:
            cells.append("none")
        elif kind in converted.reasons:
            cells.append(converted.reasons[kind].replace("|", r"\|"))
        else:
            fixed = converted.programs[kind][0].batch_size
            cells.append("any batch size" if fixed is None else "one batch size")
    return Row(name, (config.task, config.model.name, *cells), converted.deviation)


def encoded(subject: contract.Subject) -> tuple[int, dict[str, np.ndarray]]:
    """Returns the index of the smallest sizes for the inputs of a subject, and a batch of them.

    The batch also has random rows.
    """
    processor = subject.task.processor
    examples, specs = processor.encode(subject.raw[:2]), processor.signature()
    rows = [examples[number] for number in range(len(examples))]
    index, shapes = -1, {}
    for sizes in processor.export_sizes():
        index += 1
        shapes = {
            name: [sizes.get(n, n) if isinstance(n, str) else n for n in spec.shape[1:]]
            for name, spec in specs.items()
        }
        pairs = [
            (np.shape(row[name]), shapes[name]) for row in rows for name in specs if name in row
        ]
        if all(np.all(np.less_equal(*pair)) for pair in pairs):
            break
    batch = {}
    for name, spec in specs.items():
        batch[name] = np.full((len(rows), *shapes[name]), spec.padding or 0, spec.dtype)
        for number, row in enumerate(rows):
            # Numbers and weights of examples are added by the pipeline.
            value = np.asarray(row.get(name, number if name == "id" else 1))
            batch[name][(number, *(slice(n) for n in value.shape))] = value
    sizes = processor.export_sizes()[index]
    made_up = writer.made_up_inputs(writer.input_entries(specs), sizes, 0)
    return index, {name: np.concatenate([x, made_up[name]]) for name, x in batch.items()}


def table(rows: list[Row]) -> str:
    """Returns the rows as Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def written() -> str:
    """Returns the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


if __name__ == "__main__":
    import sys

    found = []
    for task in sys.argv[1:] or contract.TASKS:
        with tempfile.TemporaryDirectory() as place:
            found.append(convert_task(task, pathlib.Path(place) / "subject"))
        print(found[-1], file=sys.stderr, flush=True)
    print(table(found))
