"""The notebooks in docs/notebooks: all cells run, and saved outputs are those of a whole run."""

import json
import re

import pytest

from tests.notebooks import ROOT, executed, paths

NAMES = [path.stem for path in paths()]
# What notebooks import or read from the repository.
LINKED = ("attention", "configs", "launch", "tasks")
# Absolute paths of a machine in outputs.
MACHINE = re.compile(r"(?<![\w./:])/(home|root|tmp|work|Users|usr|opt)/")


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of the notebooks in a copy of the repository without runs."""
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    found = tmp_path / "docs" / "notebooks"
    found.mkdir(parents=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", paths(), ids=NAMES)
def test_all_cells_run(path, folder):
    from nbclient.exceptions import CellExecutionError

    try:
        notebook = executed(path, folder)
    except CellExecutionError as error:
        if "UserError: cannot get" in str(error):
            pytest.skip("no public data")
        raise
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_there_is_a_notebook_of_each_subject():
    assert len(NAMES) == 6


@pytest.mark.parametrize("path", paths(), ids=NAMES)
def test_saved_outputs_are_of_a_whole_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not MACHINE.search(json.dumps(outputs))
    assert path.stat().st_size < 400_000
