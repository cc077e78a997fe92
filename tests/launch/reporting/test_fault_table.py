"""Table of injected faults, and the page that has it."""

from launch.engine.writers import read_json
from launch.reporting import fault_table
from tests.fork_server import ROOT


def fault(kind, task, outcome):
    return {"kind": kind, "task": task, "outcome": outcome, "commit": "0123456789abcdef"}


def test_outcomes_are_counted_by_kind():
    record = {
        "command": "make test-faults",
        "seed": 0,
        "seconds": 12,
        "device": "cpu x2",
        "measured": {"seconds_from_sigterm_to_exit": 0.5},
        "faults": [
            fault("killed", "a", "survived"),
            fault("killed", "b", "survived"),
            fault("disk full", "a", "refused"),
            fault("disk full", "a", "lost"),
        ],
    }
    lines = fault_table.lines(record)
    assert lines == [
        "| fault | injected | survived | refused with a message | lost | tasks |",
        "|---|---|---|---|---|---|",
        "| killed | 2 | 2 | 0 | 0 | 2 |",
        "| disk full | 2 | 0 | 1 | 1 | 1 |",
        "| all | 4 | 2 | 1 | 1 | 2 |",
        "",
        "`make test-faults`, seed 0, 12 s on cpu x2, commit 0123456789ab. The terminated run "
        "exited 0.5 s after SIGTERM.",
    ]


def test_the_page_has_the_recorded_table_without_lost_faults():
    page = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    assert fault_table.insert(page, ROOT / "results") == page
    faults = read_json(ROOT / "results" / "faults.json")["faults"]
    assert len(faults) >= 200
    assert not [each for each in faults if each["outcome"] == "lost"]
