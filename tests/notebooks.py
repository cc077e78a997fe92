"""Execution of the notebooks in docs/notebooks.

python -m tests.notebooks [NAME ...] executes notebooks and saves them with their outputs.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
# Seconds for one cell.
_TIMEOUT = 600


def paths() -> list[pathlib.Path]:
    """Returns the files of the notebooks in order."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: pathlib.Path, folder: pathlib.Path = FOLDER) -> Any:
    """Returns a notebook with the outputs of all cells, executed in a folder.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=_TIMEOUT, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        # Times of execution differ in every run.
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    return notebook


def main(names: list[str]) -> None:
    """Executes notebooks, all without names, and writes them with their outputs."""
    import nbformat

    for path in paths():
        if not names or path.stem in names:
            nbformat.write(executed(path), path)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
