"""The commands and the code of the README, executed.

Small data sets under the names of the public ones replace them, so nothing is downloaded.
`make train` and `make test` themselves are run by .ci/run.
"""

import dataclasses
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from launch.engine.config import load_file
from tasks.common.data.builders import prepare
from tasks.common.data.paths import Paths
from tasks.common.datasets.labelled_texts import DEFINITIONS
from tasks.common.datasets.labelled_texts.base import example
from tasks.translation.datasets import DATA_SETS
from tests.launch import test_import_weights as bert
from tests.launch.conftest import BAD, GOOD, PLAIN, ROOT, write_csv

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {"training.steps": 20, "training.evaluate_every": 20, "training.log_every": 20}
WEIGHTS = ("import_weights", "export_weights")
MORE = {
    "train": [f"--config.{key}={value}" for key, value in SHORT.items()],
    "sweep": ["--seeds=1", *(f"--config.{key}={value}" for key, value in SHORT.items())],
    "ablate": ["--seeds=1", *(f"--set={key}={value}" for key, value in SHORT.items())],
}
# Reductions of configs that are not small.
SMALL = {
    "configs/translation.py": ["--config.model.num_layers=1", "--config.model.decoder_layers=1"],
}


def commands() -> list[list[str]]:
    text = README.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^python -m launch\.\S+.*$", text, re.M)]


def small(name: str):
    """Returns the named data set with a few synthetic rows."""

    def generate(_):
        rng = random.Random(0)
        splits = {}
        for split, count in {"train": 120, "validation": 24, "test": 24}.items():
            rows = []
            for index in range(count):
                label, words = rng.choice([("positive", GOOD), ("negative", BAD)])
                text = " ".join([*rng.choices(PLAIN, k=6), rng.choice(words), str(index)])
                rows.append(example(f"{split}-{index}", text, label))
            splits[split] = rows
        return splits

    return dataclasses.replace(DEFINITIONS[name], sources=(), generate=generate, counts={})


def small_pairs():
    """Returns Multi30k with a few synthetic rows."""

    def generate(_):
        rng = random.Random(0)
        splits = {}
        for split, count in {"train": 120, "validation": 24, "test": 24}.items():
            texts = [" ".join(rng.choices(PLAIN, k=5)) for _ in range(count)]
            splits[split] = [
                {"id": f"{split}-{index}", "en": text, "de": text.upper()}
                for index, text in enumerate(texts)
            ]
        return splits

    definition = DATA_SETS["multi30k"].definition
    return dataclasses.replace(definition, sources=(), generate=generate, counts={})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    paths = Paths(folder / "data", folder / "cache")
    for name in ("sst2", "movie_reviews"):
        prepare(small(name), paths, quiet=True)
    prepare(small_pairs(), paths, quiet=True)
    write_csv(folder / "my.csv", rows=120)
    write_csv(folder / "new.csv", rows=9, seed=1)
    bert.write(folder / "bert-base-uncased", bert.BERT, bert.bert_shapes() | bert.HEAD)
    return folder


def assert_serves(words: list[str]) -> None:
    """Starts a server, waits until it is ready, and ends it."""
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        timer = threading.Timer(240, server.kill)
        timer.start()
        lines = iter(server.stdout.readline, "")
        assert any(line.startswith("ready after") for line in lines)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        timer.cancel()


@pytest.mark.slow
def test_commands_run_as_they_stand(place):
    """Runs them in order: the later ones evaluate and predict with the first run."""
    ran = []
    for words in commands():
        command = words[2].removeprefix("launch.")
        if ">" in words:  # a shell's
            words = words[: words.index(">")]
        assert words[:2] == ["python", "-m"]
        flags = [
            re.sub(
                r"(=)(runs/|exported|my\.csv|new\.csv|bert-base|RESULTS\.md)",
                rf"\1{place}/\2",
                word,
            )
            for word in words[3:]
        ]
        for config, smaller in SMALL.items():
            if any(config in word for word in words):
                flags += smaller
        if command not in ("report", *WEIGHTS):
            flags += [f"--data_dir={place / 'data'}", f"--cache_dir={place / 'cache'}"]
        if command == "serve":
            assert_serves([sys.executable, "-m", words[2], *flags, "--port=0"])
            ran.append(command)
            continue
        done = subprocess.run(
            [sys.executable, "-m", words[2], *flags, *MORE.get(command, [])],
            cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-1500:]}"
        assert done.stdout
        ran.append(command)
    expected = {"prepare", "train", "evaluate", "predict", "ablate", "sweep", "report"}
    assert set(ran) == {*expected, "export", "serve", *WEIGHTS}


def test_configs_that_the_text_names_load():
    # A run after `from:` does not exist here.
    names = re.findall(r"`(configs/(?:(?!from:)[^`])+)`", README)
    assert len(names) > 5
    for name in names:
        load_file(name)


def test_python_blocks_run(capsys):
    first, second = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in first.splitlines() if line.strip()]) == 5
    names = {}
    exec(compile(first, "README.md", "exec"), names)
    assert names["y"].shape == (2, 5, 4, 8)
    # The first query attends to the first key alone.
    printed = capsys.readouterr().out.splitlines()[0].strip("[]").split()
    assert [float(weight) for weight in printed] == [1, 0, 0, 0, 0]
    exec(compile(second, "README.md", "exec"), names)
    assert names["y"].shape == (2, 1, 32)
    whole = names["mixer"](names["x"])[:, 7:8]
    np.testing.assert_allclose(names["y"], whole, atol=1e-5)
    assert names["weights"].shape == (2, 4, 9, 9)


def test_files_and_folders_that_it_names_exist():
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^(\w+/)\s", README, re.M):
        assert (ROOT / name).is_dir(), name
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
