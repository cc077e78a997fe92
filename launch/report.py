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
--explanations the tables of launch.explain --evaluate --record are inserted into a file, and with
--faults the table of make test-faults.
"""

from __future__ import annotations

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
    from launch.reporting import faithfulness_table, fault_table, results, tables
    from tasks.common.errors import UserError

    root = folder = Path(cli.required("results")).expanduser()
    records = results.load_records(folder)
    output = cli.required("output")
    if cli.FLAGS["output"].using_default_value and results.run_directories(folder):
        # RESULTS.md holds the recorded runs of the project.
        output = "-"
    if Path(output).is_dir():
        raise UserError(f"--output={output}: is a directory, expected a file")
    if cli.FLAGS.readme is not None:
        readme = Path(cli.FLAGS.readme)
        if not readme.is_file():
            raise UserError(f"--readme={readme}: no such file")
        try:
            text = readme.read_text(encoding="utf-8")
            write_text(readme, tables.insert_summary(text, records))
        except ValueError as error:
            raise UserError(f"--readme={readme}: {error}") from None
    if cli.FLAGS.pages is not None:
        folder = Path(cli.FLAGS.pages)
        if not (pages := sorted(folder.glob("*.md"))):
            raise UserError(f"--pages={folder}: has no Markdown file (.md)")
        for page in pages:
            try:
                text = tables.insert_metrics(page.read_text(encoding="utf-8"))
                write_text(page, tables.insert_models(text, records))
            except ValueError as error:
                raise UserError(f"{page}: {error}") from None
    for name, module in (("explanations", faithfulness_table), ("faults", fault_table)):
        if cli.FLAGS[name].value is None:
            continue
        page = Path(cli.FLAGS[name].value)
        if not page.is_file():
            raise UserError(f"--{name}={page}: no such file")
        try:
            write_text(page, module.insert(page.read_text(encoding="utf-8"), root))
        except ValueError as error:
            raise UserError(f"--{name}={page}: {error}") from None
    text = tables.results_markdown(records)
    if output == "-":
        print(text, end="")
    else:
        write_text(Path(output), text)
        print(f"{len(records)} runs: {output}")


if __name__ == "__main__":
    cli.main(report, __doc__)
