"""The registry and the map that is written from it."""

import pathlib
import subprocess
import sys

import pytest

import attention
from attention import registry

ROOT = pathlib.Path(attention.__file__).parents[1]


def test_readme_is_up_to_date():
    text = (ROOT / "attention" / "README.md").read_text(encoding="utf-8")
    assert text == registry.readme(), "run python -m attention.registry"


def test_every_line_of_the_map_points_to_a_file():
    for line in registry.mechanisms():
        module = line.target.split(":")[0]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), line.name
        assert callable(line.load()), line.name


def test_names_are_unique_in_their_kind():
    lines = [(line.kind, line.name) for line in registry.mechanisms()]
    assert len(lines) == len(set(lines))
    # "auto" ends at the one that can do everything.
    assert registry.names("kernel")[-1] == "reference"


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match=r"pool: got 'men', expected one of .*you mean 'mean'"):
        registry.find("pool", "men")
    with pytest.raises(ValueError, match="kind: got 'pols'"):
        registry.names("pols")
    with pytest.raises(ValueError, match=r"x: unknown capabilities \['fly'\]"):
        registry.Mechanism("x", "pool", "a:b", "", "", "", "", frozenset({"fly"}))
    with pytest.raises(ValueError, match="x: got kind 'fish'"):
        registry.Mechanism("x", "fish", "a:b", "", "", "", "", frozenset())


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
