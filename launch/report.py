"""Writes the results tables from run files or run directories.

python -m launch.report --results=results --output=RESULTS.md --readme=README.md
    --pages=docs/applications

--results is a directory of run files, which --record writes, or of run directories. The tables of
run directories are printed unless --output is given.

python -m launch.report --results=runs

With --readme the summary table is also inserted into a file, between the lines <!-- results --> and
<!-- /results -->. With --pages tables of models are inserted into the Markdown files of a folder,
between lines such as <!-- models task=translation data=multi30k --> and <!-- /models -->, and
tables of metrics between lines such as <!-- metrics translation --> and <!-- /metrics -->. With
--explanations the tables of launch.explain --evaluate --record are inserted into a file, and the
pages of launch.explain in the directory explained/ next to that file are changed to use one common
style sheet and script. With --faults the results of the fault tests (make test-faults) are inserted
into a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from absl import flags

from launch import cli

flags.DEFINE_string("results", "results", "Directory of run files or of run directories.")
flags.DEFINE_string("output", "RESULTS.md", "Output file; - prints the tables.")
flags.DEFINE_string("readme", None, "File to insert the summary table into.")
flags.DEFINE_string("pages", None, "Directory of Markdown files to insert tables of models into.")
flags.DEFINE_string("explanations", None, "File to insert tables of faithfulness into.")
flags.DEFINE_string("faults", None, "File to insert the table of injected faults into.")


def report() -> None:
    """Runs the command `launch.report`."""
    from launch.engine.writers import write_text
    from launch.reporting import faithfulness_table, fault_table, insertion, results, tables
    from tasks.common.errors import UserError

    root = folder = Path(cli.required("results")).expanduser()
    records = results.load_records(folder)
    output = cli.required("output")
    if cli.FLAGS["output"].using_default_value and results.run_directories(folder):
        # The default file, RESULTS.md, holds the recorded runs of the project; tables of other run
        # directories must not overwrite it.
        output = "-"
    if Path(output).is_dir():
        raise UserError(f"--output={output}: is a directory, expected a file")
    for name in ("readme", "explanations", "faults"):
        if (given := cli.FLAGS[name].value) is not None and not Path(given).is_file():
            raise UserError(f"--{name}={given}: no such file")
    if cli.FLAGS.readme is not None:
        _rewrite(Path(cli.FLAGS.readme), lambda text: insertion.insert_summary(text, records))
    if cli.FLAGS.pages is not None:
        folder = Path(cli.FLAGS.pages)
        if not (pages := sorted(folder.glob("*.md"))):
            raise UserError(f"--pages={folder}: has no Markdown file (.md)")
        for page in pages:
            _rewrite(page, lambda text: insertion.insert_tables(text, records))
    if cli.FLAGS.explanations is not None:
        page = Path(cli.FLAGS.explanations)
        _rewrite(page, lambda text: faithfulness_table.insert(text, root))
        _link_pages(page.parent / "explained")
    if cli.FLAGS.faults is not None:
        _rewrite(Path(cli.FLAGS.faults), lambda text: fault_table.insert(text, root))
    text = tables.results_markdown(records, results.load_notes(root, records))
    if output == "-":
        print(text, end="")
    else:
        write_text(Path(output), text)
        print(f"{len(records)} runs: {output}")


def _link_pages(folder: Path) -> None:
    """Changes the explanation pages in a directory to use one common style sheet and script."""
    from launch.engine.writers import write_text
    from launch.reporting import explanation_page

    pages = sorted(folder.glob("*.html"))
    if not pages:
        return
    write_text(folder / "page.css", explanation_page.style_sheet())
    source = Path(explanation_page.__file__).with_suffix(".js")
    script = Path(os.path.relpath(source, folder.absolute())).as_posix()
    for each in pages:
        _rewrite(each, lambda text: explanation_page.linked(text, "page.css", script))


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Changes the text of a file.

    Raises:
      UserError: the text cannot be changed.
    """
    from launch.engine.writers import write_text
    from tasks.common.errors import UserError

    try:
        write_text(path, change(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


if __name__ == "__main__":
    cli.main(report, __doc__)
