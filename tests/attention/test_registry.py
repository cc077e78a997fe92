"""The registry and the map that is written from it."""

import inspect
import os
import pathlib
import subprocess
import sys

import pytest

import attention
import attention.__main__ as terminal
from attention import mechanisms, registry

ROOT = pathlib.Path(attention.__file__).parents[1]


def test_readme_is_up_to_date():
    text = (ROOT / "attention" / "README.md").read_text(encoding="utf-8")
    assert text == registry.readme(), "run python -m attention.registry"


def test_every_line_of_the_map_points_to_a_file():
    for entry in registry.mechanisms():
        module = entry.target.split(":")[0]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), entry.name
        assert callable(entry.load()), entry.name


def test_names_are_unique_in_their_kind():
    entries = [(entry.kind, entry.name) for entry in registry.mechanisms()]
    assert len(entries) == len(set(entries))
    # "auto" ends at the one that can do everything.
    assert registry.names("kernel")[-1] == "reference"


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"pool: got 'men', expected one of .*you mean 'mean'"):
        registry.find("pool", "men")
    with pytest.raises(ValueError, match="kind: got 'pols'"):
        registry.names("pols")
    with pytest.raises(ValueError, match=r"x: got capabilities \['fly'\], expected some"):
        registry.Mechanism("x", "pool", "a:b", "", "", "", "", frozenset({"fly"}))
    with pytest.raises(ValueError, match="x: got kind 'fish'"):
        registry.Mechanism("x", "fish", "a:b", "", "", "", "", frozenset())


def test_entries_with_missing_lines_are_told():
    with pytest.raises(ValueError, match=r"pool: got 'x \| a:b', expected the lines 'name"):
        mechanisms._parsed("pool", "x | a:b")


def test_asking_for_names_imports_no_jax():
    code = (
        "import sys; from attention import registry; registry.names('pool'); "
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_exports_exist():
    for name in attention.__all__:
        assert getattr(attention, name) is not None
    assert set(attention.__all__) <= set(dir(attention))
    with pytest.raises(AttributeError, match="no attribute 'attnd'"):
        _ = attention.attnd


def run_map(capsys, *arguments):
    status = terminal.main(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_map_in_a_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = run_map(capsys)
    assert status == 0
    assert max(map(len, out.splitlines())) <= columns
    words = " ".join(out.split())
    for entry in registry.mechanisms():
        costs = f"time {entry.time}; memory {entry.memory}"
        can = ", ".join(name for name in registry.CAPABILITIES if name in entry.capabilities)
        assert f"{entry.name} {entry.paper} {costs} {can}" in words


def test_the_map_of_a_kind_and_of_one(capsys):
    status, out, _ = run_map(capsys, "pool")
    assert status == 0
    assert "multi_head " in out
    assert "dot_product" not in out
    status, out, _ = run_map(capsys, "general")
    entry = registry.find("alignment", "general")
    assert status == 0
    assert entry.equation in out
    assert registry.CAPABILITIES["cross"] in " ".join(out.split())
    assert inspect.getdoc(entry.load()) in out


def test_the_map_knows_no_such_name(capsys):
    status, out, err = run_map(capsys, "dot_produkt")
    assert (status, out) == (2, "")
    assert err.startswith("attention: got 'dot_produkt', expected one of ['kernel', ")
    assert err.endswith("; did you mean 'dot_product'?\n")
    assert run_map(capsys, "--help")[:2] == (0, run_map(capsys, "a", "b")[1])
    assert run_map(capsys, "a", "b")[0] == 2


def test_the_map_imports_no_jax_and_survives_a_poor_terminal():
    code = (
        "import sys, runpy; sys.argv = ['attention', 'mixer']\n"
        "try: runpy.run_module('attention', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "dot_product" in done.stdout


def test_check_says_when_the_readme_is_out_of_date(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    assert registry.main(["--check"]) == 1
    assert "README.md is out of date: run python -m" in capsys.readouterr().out
    assert registry.main([]) == 0
    assert registry.main(["--check"]) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == registry.readme()
    (tmp_path / "README.md").write_text("old", encoding="utf-8")
    assert registry.main(["--check"]) == 1
    assert registry.main(["--chek"]) == 2
