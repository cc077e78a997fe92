"""docs/ADDING_A_MECHANISM.md followed to the letter, and what every docstring has to say."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.attention.test_registry import ROOT

PAGE = ROOT / "docs" / "ADDING_A_MECHANISM.md"


def blocks():
    """file -> the code block of the page that says what is in it."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^`([\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", text, re.M | re.S)
    assert [file for file, _ in found] == [
        "attention/sequence/cosine.py",
        "attention/registry.py",
        "tests/attention/references/cosine.py",
    ]
    return dict(found)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what the page touches, with the page's mechanism in it."""
    root = tmp_path_factory.mktemp("walk")
    skipped = shutil.ignore_patterns("__pycache__", "oracles", "launch", "tasks")
    for folder in ("attention", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", root)
    written = blocks()
    registry = root / "attention" / "registry.py"
    line = written.pop("attention/registry.py")
    text = registry.read_text(encoding="utf-8")
    before, after = text.split('    _line(\n        "alignment",', 1)
    registry.write_text(f'{before}{line}    _line(\n        "alignment",{after}', encoding="utf-8")
    for file, code in written.items():
        assert not (root / file).exists()
        (root / file).write_text(code, encoding="utf-8")
    return root


def run(root, *arguments):
    """The end of what a Python module prints, and its exit status. Compiled programs are kept."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr, done.returncode


def test_the_walk_passes_the_contract(copy):
    out, status = run(copy, "pytest", "-k", "cosine", "tests/attention/test_contract.py")
    assert status == 0, out
    assert int(re.search(r"(\d+) passed", out)[1]) > 10
    assert "failed" not in out
    assert "skipped" not in out


def test_the_walk_renews_the_map(copy):
    assert "README.md is out of date" in run(copy, "attention.registry", "--check")[0]
    assert run(copy, "attention.registry")[1] == 0
    assert run(copy, "attention.registry", "--check") == ("", 0)
    assert "sequence/cosine.py" in (copy / "attention" / "README.md").read_text(encoding="utf-8")
    out, status = run(copy, "attention", "cosine")
    assert status == 0
    assert "with a learned temperature" in out


def test_the_walk_is_formatted(copy):
    files = [str(copy / file) for file in blocks()]
    for command in (["check"], ["format", "--check"]):
        out, status = run(copy, "ruff", *command, *files)
        assert status == 0, out
