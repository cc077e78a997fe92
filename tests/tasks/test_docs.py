"""docs/ADDING_A_TASK.md followed in a copy of the repository."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ADDING_A_TASK.md"
FILES = ("tasks/majority/task.py", "configs/majority.py", "tests/tasks/contract.py")


def blocks():
    """Returns file -> code block of the page."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^`([\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", text, re.M | re.S)
    assert tuple(file for file, _ in found) == FILES
    return dict(found)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("majority")
    skipped = shutil.ignore_patterns("__pycache__", "data_cache")
    for folder in ("attention", "tasks", "launch", "configs", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", root)
    written = blocks()
    entry = written.pop("tests/tasks/contract.py")
    suite = root / "tests" / "tasks" / "contract.py"
    before, after = suite.read_text(encoding="utf-8").split('    "sequence_copy": (', 1)
    suite.write_text(f'{before}{entry}    "sequence_copy": ({after}', encoding="utf-8")
    for file, code in written.items():
        assert not (root / file).exists()
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(code, encoding="utf-8")
    (root / "tasks" / "majority" / "__init__.py").write_text("")
    return root


def run(root, *arguments):
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("PYTEST_C")
    }
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=root, capture_output=True, text=True, timeout=600,
        env={**environment, "PYTHONPATH": str(root)},
    )  # fmt: skip
    return done.stdout + done.stderr, done.returncode


def test_the_task_is_short():
    lines = [line for line in blocks()["tasks/majority/task.py"].splitlines() if line.strip()]
    assert len(lines) < 140


def test_the_page_is_linted(copy):
    files = [str(copy / file) for file in FILES[:2]]
    out, status = run(copy, "ruff", "check", "--ignore=RUF012,B905", *files)
    assert status == 0, out


@pytest.mark.slow
def test_the_commands_work(copy):
    config = ["--config=configs/majority.py", "--workdir=runs/majority"]
    out, status = run(copy, "launch.train", *config)
    assert status == 0, out
    accuracy = float(re.search(r"transformer\s*│\s*([\d.]+)", out)[1])
    assert accuracy > 0.85, out
    out, status = run(copy, "launch.evaluate", "--workdir=runs/majority")
    assert status == 0, out
    out, status = run(copy, "launch.predict", "--workdir=runs/majority", "--input=0110111")
    assert status == 0, out
    assert out.splitlines()[-1].startswith("ones")
    out, status = run(copy, "launch.predict", "--workdir=runs/majority", "--input=012")
    assert status == 2
    assert "input: got '012', expected 1 to 15 characters 0 and 1" in out


@pytest.mark.slow
def test_the_contract_suite_takes_it(copy):
    out, status = run(copy, "pytest", "-k", "majority", "tests/tasks/test_contract.py")
    assert status == 0, out
    assert int(re.search(r"(\d+) passed", out)[1]) >= 11
