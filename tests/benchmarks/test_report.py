"""The report page and figure from a small file of results."""

import copy
import json

from benchmarks import records, report

MACHINE = {
    "device": "cpu",
    "devices": 1,
    "processor": "Abacus 9",
    "cores": 2,
    "load_before": 3.0,
    "python": "3.11.9",
    "versions": {"jax": "0.10.2", "torch": "2.13.0"},
    "commit": "0123456789ab",
}


def way(milliseconds, ratio, **more):
    spread = {"milliseconds_range": [milliseconds * 0.9, milliseconds * 1.1]}
    spread |= {"ratio_range": [ratio * 0.9, ratio * 1.1]}
    return {"milliseconds": milliseconds, "ratio": ratio, **spread, **more}


def row(length, ratio, target, **more):
    return {
        "case": "causal",
        "label": f"causal (1, 8, {length}, 64) float32",
        "sizes": [1, 8, 8, length, length, 64],
        "dtype": "float32",
        "pass": "both",
        "target": target,
        "grows": True,
        "ways": {
            "auto": way(10.0 * ratio, ratio, kernel="native", temporaries=length * 1000),
            "torch": way(10.0, 1.0),
            "native": way(10.0 * ratio, ratio, temporaries=length * 1000),
            "reference": {"skipped": "would need 8.6 GB"},
        },
        **more,
    }


SUITES = {
    "cpu": {
        "attention": {
            "machine": MACHINE,
            "command": "python -m benchmarks.attention",
            "rows": [row(512, 1.1, 1.25), row(8192, 1.31, 1.25)],
            "growth": {"native": {"lengths": [512, 8192], "time": 1.93, "memory": 1.0}},
            "torch_waits": {"policy": "PASSIVE", "default_ms": 20.0, "PASSIVE_ms": 10.0},
        },
        "memory": {
            "machine": MACHINE,
            "command": "python -m benchmarks.attention",
            "case": "causal (1, 8, 8192, 64) float32",
            "rows": {
                "auto": {"kernel": "native", "grown": 120_000_000, "temporaries": 90_000_000},
                "native": {"grown": 120_000_000, "temporaries": 90_000_000},
                "torch": {"grown": 100_000_000, "temporaries": None},
                "reference": {"skipped": "would need 8.6 GB"},
            },
        },
        "train_step": {
            "machine": MACHINE | {"load_before": 0.4},
            "command": "python -m benchmarks.train_step",
            "rows": [
                {
                    "model": "unet",
                    "what": "batch 8",
                    "targets": {"time": 0.9, "memory": 1.2},
                    "ways": {
                        "here": {
                            "milliseconds": 310.0,
                            "milliseconds_range": [300.0, 320.0],
                            "peak": 500_000_000,
                        },
                        "torch": {
                            "milliseconds": 400.0,
                            "over": 0.78,
                            "over_range": [0.7, 0.8],
                            "peak": 300_000_000,
                        },
                        "torch compiled": {"skipped": "failed: no compiler"},
                    },
                },
                {
                    "model": "transformer",
                    "what": "batch 64",
                    "targets": {"time": 0.9, "memory": 1.2},
                    "ways": {
                        "here": {"milliseconds": 31.0, "milliseconds_range": [30.0, 32.0]},
                        "torch": {"skipped": "failed: memory"},
                        "torch compiled": {
                            "milliseconds": 20.0,
                            "over": 1.55,
                            "over_range": [1.5, 1.6],
                        },
                    },
                },
            ],
        },
        "train_choices": {
            "machine": MACHINE | {"load_before": 0.4},
            "command": "python -m benchmarks.train_choices",
            "rows": [
                {
                    "model": "unet",
                    "choices": {
                        "as configured": {
                            "milliseconds": 310.0,
                            "ratio": 1.0,
                            "ratio_range": [1.0, 1.0],
                            "peak": 1_800_000_000,
                        },
                        "bfloat16": {
                            "milliseconds": 341.0,
                            "ratio": 1.1,
                            "ratio_range": [1.05, 1.2],
                            "peak": 900_000_000,
                        },
                        "rematerialization": {"skipped": "no such key"},
                    },
                }
            ],
        },
    }
}


def test_the_page():
    page = report.markdown(SUITES)
    for line in (
        "## Attention: cpu",
        "`python -m benchmarks.attention` on Abacus 9, 2 cores; jax 0.10.2, torch 2.13.0; commit "
        "0123456789ab. Other processes ran on the machine (load 3.0 at the start).",
        "| case (batch, heads, length, size) | torch, ms | target of auto | auto | native |",
        "| causal (1, 8, 512, 64) float32 | 10 | 1.25: met | 1.10 (0.99 to 1.21) native | "
        "1.10 (0.99 to 1.21) |",
        "| causal (1, 8, 8192, 64) float32 | 10 | 1.25: not met | 1.31 (1.18 to 1.44) native | "
        "1.31 (1.18 to 1.44) |",
        "| native | 512 to 8192 | T^1.93 | T^1.00 |",
        "- reference: would need 8.6 GB (causal (1, 8, 512, 64) float32 forward + backward; causal "
        "(1, 8, 8192, 64) float32 forward + backward)",
        "| auto (native) | 120 MB | 90 MB | at most 100 MB: met |",
        "| reference |  |  | would need 8.6 GB |",
        "| unet | batch 8 | 310 | 0.78 (0.70 to 0.80) | failed: no compiler | "
        "0.78 (at most 0.9: met) | 500 MB | 300 MB | - | 1.67 (at most 1.2: not met) |",
        "| transformer | batch 64 | 31 | failed: memory | 1.55 (1.50 to 1.60) | "
        "1.55 (at most 0.9: not met) |  | - | - |  |",
        "| unet | bfloat16 | 341 | 1.10 (1.05 to 1.20) | 900 |",
    ):
        assert line in page
    assert page.count("Other processes ran") == 2


def test_without_torch_there_are_milliseconds_and_no_verdicts():
    suites = copy.deepcopy(SUITES)
    for one in suites["cpu"]["attention"]["rows"]:
        del one["ways"]["torch"]
        for name in ("auto", "native"):
            del one["ways"][name]["ratio"], one["ways"][name]["ratio_range"]
    page = report.markdown(suites)
    assert "| causal (1, 8, 512, 64) float32 |  |  | 11 ms native | 11 ms |" in page
    assert "1.25" not in page


def test_files_are_the_same_each_time(tmp_path):
    (tmp_path / "cpu.json").write_text(json.dumps(SUITES["cpu"]))
    (tmp_path / "other.json").write_text('{"what": 1}')
    report.write(tmp_path)
    files = [tmp_path / name for name in ("README.md", "attention.png")]
    first = [file.read_bytes() for file in files]
    report.write(tmp_path)
    assert [file.read_bytes() for file in files] == first


def test_nothing_measured_gives_a_page_without_a_figure(tmp_path):
    report.write(tmp_path)
    assert "attention.png" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "attention.png").exists()


def test_rows_of_a_section_are_added_in_order(tmp_path):
    path = tmp_path / "cpu.json"
    for name, value in (("b", 1), ("a", 2), ("b", 3)):
        records.put_row(path, "made", "model", {"model": name, "value": value}, "ab", rounds=5)
    section = json.loads(path.read_text())["made"]
    assert [(row["model"], row["value"]) for row in section["rows"]] == [("a", 2), ("b", 3)]
    assert section["rounds"] == 5


def test_remarks_follow_their_section():
    text = report.markdown(SUITES, drawn=False, notes={"memory": "Tried: less.", "serving": "No."})
    before, _, after = text.partition("\n\nTried: less.\n")
    assert before.count("\n## Memory") == 1
    assert "## Memory" not in after
    assert "No." not in text


def test_remarks_are_of_sections_of_the_report():
    for file in report.NOTES.glob("*.md"):
        assert file.stem in report._SECTIONS
