"""Compares finished runs on validation and test.

python -m launch.compare runs/*
python -m launch.compare runs/first runs/second --against=runs/first --csv=runs.csv --html=runs.html

The arguments are run directories, or directories that contain run directories. Runs that differ
only in their seed share a row. There is one table for each combination of task and test data. Its
rows are sorted by the validation metric, best first. Its columns are the config keys that differ,
validation and test metrics, parameters, time, and the difference of the test metric from that of
the best run with its 95 % confidence interval. Differences are paired by test example or, if the
examples cannot be paired, by seed. Unfinished and damaged runs are listed.

--csv, --json and --html write the tables to files; with the value -, that format is printed instead
of the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from launch import cli

cli.define_arguments()
flags.DEFINE_string(
    "against", "best", "Reference run of the differences: best (on validation), first, or a run "
    "directory.",
)  # fmt: skip
flags.DEFINE_string("csv", None, "CSV file to write, one row for each row of the tables.")
flags.DEFINE_string("json", None, "JSON file to write.")
flags.DEFINE_string("html", None, "HTML page to write, with figures.")


def compare() -> None:
    """Runs the command `launch.compare`."""
    from launch.engine import targets as files
    from launch.reporting import comparison_files
    from launch.runs import collection
    from tasks.common.errors import UserError

    if not cli.arguments():
        raise UserError("run directories are missing; write python -m launch.compare runs/*")
    targets = {name: cli.FLAGS[name].value for name in ("csv", "json", "html")}
    files.check(targets)
    runs, messages = collection.collect([Path(word).expanduser() for word in cli.arguments()])
    for message in messages:
        print(message, file=sys.stderr, flush=True)
    if not runs:
        raise UserError("none of the directories is a finished run; nothing to compare")
    found = collection.compare_runs(runs, cli.FLAGS.against)
    if "-" not in targets.values():
        for number, one in enumerate(found):
            print("\n" * bool(number), end="")
            comparison_files.show(one)
    title = found[0].title if len(found) == 1 else "Comparison of runs"
    made: dict[str, Callable[[], str]] = {
        "csv": lambda: comparison_files.as_csv(found),
        "json": lambda: json.dumps(comparison_files.as_json(found, messages), indent=1) + "\n",
        "html": lambda: comparison_files.as_html(title, found, messages),
    }
    for name, target in targets.items():
        if target is not None:
            files.write(target, made[name]())


if __name__ == "__main__":
    cli.main(compare, __doc__)
