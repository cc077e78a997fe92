"""Writes the results tables from run files.

python -m launch.report --results=results --output=RESULTS.md
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch.engine import cli

flags.DEFINE_string("results", "results", "Folder of run files.")
flags.DEFINE_string("output", "RESULTS.md", "File to write; - prints.")


def report() -> None:
    """The verb."""
    from launch.engine import results, tables
    from launch.engine.writers import write_text

    records = results.load_records(Path(cli.FLAGS.results))
    text = tables.results_markdown(records)
    if cli.FLAGS.output == "-":
        print(text, end="")
    else:
        write_text(Path(cli.FLAGS.output), text)
        print(f"{len(records)} runs: {cli.FLAGS.output}")


if __name__ == "__main__":
    cli.main(report, __doc__)
