"""Table of injected faults, from the record of the fault suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.writers import read_json
from launch.reporting import insertion
from launch.reporting.formatting import markdown_table

NAME = "faults"
_OUTCOMES = {"survived": "survived", "refused": "refused with a message", "lost": "lost"}


def lines(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a record's table, and a sentence about how the record was made."""
    faults: Sequence[Mapping[str, str]] = record["faults"]
    rows = [_row(kind, [each for each in faults if each["kind"] == kind])
            for kind in dict.fromkeys(each["kind"] for each in faults)]  # fmt: skip
    table = markdown_table(
        ["fault", "injected", *_OUTCOMES.values(), "tasks"], [*rows, _row("all", faults)]
    )
    commits = ", ".join(dict.fromkeys(each["commit"][:12] for each in faults))
    sentence = (
        f"`{record['command']}`, seed {record['seed']}, {record['seconds']} s on "
        f"{record['device']}, commit {commits}."
    )
    measured = record["measured"].get("seconds_from_sigterm_to_exit")
    if measured is not None:
        sentence += f" The terminated run exited {measured} s after SIGTERM."
    return [*table, "", sentence]


def _row(title: str, faults: Sequence[Mapping[str, str]]) -> list[str]:
    counts = Counter(each["outcome"] for each in faults)
    tasks = {each["task"] for each in faults}
    return [title, str(len(faults)), *(str(counts[name]) for name in _OUTCOMES), str(len(tasks))]


def insert(text: str, root: Path) -> str:
    """Inserts the table between <!-- faults --> and <!-- /faults -->.

    Args:
      text: text of a page.
      root: results directory with the record.

    Raises:
      ValueError: the text lacks these lines.
      UserError: the record is missing or damaged.
    """
    return insertion.insert(text, NAME, "\n".join(lines(read_json(root / f"{NAME}.json"))))
