"""The wheel: its metadata, content and installation, and the library used from it."""

import ast
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest

import attention

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Run outside the clone, by a Python with the wheel installed.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import attention
from attention import attend, explain_choice, inspect, masks, registry

assert "site-packages" in attention.__file__, attention.__file__
x = jax.random.normal(jax.random.key(0), (1, 64, 2, 8))
reference = attend(x, x, x, mask=masks.causal(), implementation="reference")
native = attend(x, x, x, mask=masks.causal(), implementation="native")
np.testing.assert_allclose(native, reference, atol=1e-5)
assert explain_choice(x, x, x).name in ("native", "reference", "blockwise")
mixer = registry.build("mixer", "sliding_window(left=3, right=0)", 16, num_heads=2,
                       rngs=nnx.Rngs(0))
tokens = jax.random.normal(jax.random.key(1), (2, 9, 16))
whole = mixer(tokens)
first, cache = mixer.decode(tokens[:, :7], mixer.init_cache(2, max_length=9))
last, cache = mixer.decode(tokens[:, 7:], cache)
np.testing.assert_allclose(jnp.concatenate([first, last], 1), whole, atol=1e-5)
weights = inspect.capture(mixer, tokens)["attention"]
np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
print("works")
"""


def test_type_checkers_see_what_is_exported():
    tree = ast.parse(pathlib.Path(attention.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {
        alias.asname: node.module.removeprefix("attention").removeprefix(".")
        for node in block.body
        for alias in node.names
    }
    modules = {name: path.rpartition(".")[0] for name, path in attention._MODULES.items()}
    assert seen == {**attention._EXPORTS, **modules}


def test_ranges_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line.partition("#")[0].strip() for line in lines}
    assert set(PROJECT["project"]["dependencies"]) <= required


@pytest.mark.slow
def test_a_wheel_installs_and_works_in_a_fresh_environment(tmp_path):
    def run(*command, **options):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=900, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # pip builds in the given tree, so it gets a copy of the files under version control.
    source = tmp_path / "source"
    source.mkdir()
    archive = tmp_path / "source.tar"
    run("git", "archive", "-o", archive, "HEAD", cwd=ROOT)
    run("tar", "xf", archive, "-C", source)
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment)
    pip = environment / "bin" / "pip"
    run(pip, "wheel", "--quiet", "--no-deps", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"attention"}
    assert sum(name.endswith((".cc", ".h")) for name in names) >= 9
    assert any(name.endswith("timings.json") for name in names)
    assert "attention/py.typed" in names
    run(pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    assert run(environment / "bin" / "python", "-c", PROGRAM, cwd=tmp_path) == "works\n"
