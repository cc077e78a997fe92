"""The commands and the code of the README, executed.

Small data sets under the names of the public ones replace them, so nothing is downloaded.
`make train` and `make test` themselves are run by .ci/run.
"""

import re
from contextlib import chdir

import numpy as np
import pytest

from launch.engine.config import load_file
from tasks.common.data.paths import Paths
from tests.launch import test_import_weights as bert
from tests.launch.conftest import ROOT, write_csv
from tests.pages import Shell, commands, launched
from tests.small_data import prepare_small

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {"training.steps": 20, "training.evaluate_every": 20, "training.log_every": 20}
MORE = {
    "train": [f"--config.{key}={value}" for key, value in SHORT.items()],
    "sweep": ["--seeds=1", *(f"--config.{key}={value}" for key, value in SHORT.items())],
    "ablate": ["--seeds=1", *(f"--set={key}={value}" for key, value in SHORT.items())],
}
# Reductions of configs that are not small.
SMALL = {
    "configs/translation.py": ["--config.model.num_layers=1", "--config.model.decoder_layers=1"],
}


def added(words: list[str]) -> list[str]:
    """Returns flags that make a command short."""
    smaller = [flags for config, flags in SMALL.items() if any(config in word for word in words)]
    return [*MORE.get(launched(words), []), *(flag for flags in smaller for flag in flags)]


@pytest.mark.slow
def test_commands_run_as_they_stand(server, tmp_path):
    """Runs them in order: the later ones evaluate and predict with the first run."""
    folder, paths = tmp_path / "work", Paths(tmp_path / "data", tmp_path / "cache")
    folder.mkdir()
    for name in ("sst2", "movie_reviews", "multi30k"):
        prepare_small(name, paths)
    write_csv(folder / "my.csv", rows=120)
    write_csv(folder / "new.csv", rows=9, seed=1)
    write_csv(folder / "labeled.csv", rows=20, seed=2)
    bert.write(folder / "bert-base-uncased", bert.BERT, bert.bert_shapes() | bert.HEAD)
    with chdir(folder):
        shell = Shell(server, folder, paths, added)
        shell.run(commands(README))
    expected = {"prepare", "train", "evaluate", "predict", "ablate", "sweep", "report", "export"}
    expected |= {"compile", "compare", "explain"}
    assert set(shell.ran) == {*expected, "serve", "import_weights", "export_weights"}


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
