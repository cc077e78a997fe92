"""`launch.sweep --stack_seeds`: an interrupted stack ends as runs that were trained alone."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest

from launch.engine.writers import read_lines
from tests.launch.conftest import ROOT, command_line


@pytest.mark.slow
def test_interrupted_stack_ends_as_single_runs(tiny, command, cache, tmp_path):
    flags = [*tiny, "--seeds=2", "--config.training.steps=160", "--config.training.patience=3"]
    together = [*flags, "--stack_seeds", f"--workdir={tmp_path / 'together'}"]
    with (tmp_path / "stderr").open("w") as printed:
        process = subprocess.Popen(
            command_line("sweep", cache, *together),
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=printed,
        )  # fmt: skip
        limit = time.monotonic() + 240
        while not list(tmp_path.glob("together/*-seed0-*/checkpoints/20/_CHECKPOINT_METADATA")):
            assert process.poll() is None, (tmp_path / "stderr").read_text()[-2000:]
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    assert "the same command resumes from there" in (tmp_path / "stderr").read_text()
    assert not list(tmp_path.glob("together/*/result.json"))
    done = command("sweep", *together)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "seeds 0, 1 in one program" in done.stderr
    assert "seed 1: resuming from step" in done.stderr
    assert "transformer: " in done.stdout
    assert "seconds per stacked seed" in done.stdout

    alone = command("sweep", *flags, f"--workdir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr[-2000:]
    runs = sorted(path.parent for path in tmp_path.glob("alone/*/result.json"))
    assert len(runs) == 2
    for expected in runs:
        run = tmp_path / "together" / expected.name
        assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}
        lines, wanted = (read_lines(folder / "metrics.jsonl") for folder in (run, expected))
        assert len(lines) == len(wanted)
        for line, one in zip(lines, wanted, strict=True):
            assert (line["step"], line["split"]) == (one["step"], one["split"])
            np.testing.assert_allclose(line["loss"], one["loss"], rtol=1e-5, atol=1e-6)
        result, record = (json.loads((f / "result.json").read_text()) for f in (run, expected))
        assert result["training"] == record["training"]
        assert result["steps"] == record["steps"]
        assert result["metrics"]["accuracy"] == pytest.approx(record["metrics"]["accuracy"])
        assert result["timing"]["stacked_seeds"] == 2
        assert "stacked_seeds" not in record["timing"]
        predictions = [
            [line.split(",")[:2] for line in (f / "predictions-test.csv").read_text().splitlines()]
            for f in (run, expected)
        ]
        assert predictions[0] == predictions[1]
    predicted = command("predict", f"--workdir={run}", "--input=a lovely superb film")
    assert predicted.stdout.startswith("good"), predicted.stderr

    refused = command("sweep", *tiny, "--stack_seeds", f"--workdir={tmp_path / 'one'}")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --stack_seeds: got 1 seed, expected several; set --seeds=2 or more\n"
    )
