"""docs/ADDING_A_MECHANISM.md followed to the letter, and what every docstring has to say."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys

import pytest

from attention import registry
from tests.attention.test_registry import ROOT

PAGE = ROOT / "docs" / "ADDING_A_MECHANISM.md"


def blocks():
    """file -> the code block of the page that says what is in it."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^`([\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", text, re.M | re.S)
    assert [file for file, _ in found] == [
        "attention/sequence/cosine.py",
        "attention/mechanisms.py",
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
    registry = root / "attention" / "mechanisms.py"
    line = written.pop("attention/mechanisms.py")
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


@pytest.mark.slow
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


PAPER = re.compile(r"[A-Z][\w'’-]+,? (et al\. |& [A-Z][\w-]+,? )?(19|20)\d\d")
EQUATION = re.compile(r"[^\s=] (=|<=|≤|∝|~|->) \S")
SHAPE = re.compile(r"\[[^\]]*\]")
ARRAY = re.compile(r"Array|ndarray|Offset")
# Arguments may be explained elsewhere: "mask, bias: as for `attend`".
SAME = re.compile(r"\b(as|those) (for|of|in)( the)? `")
# These modules hold no mathematics.
INFRASTRUCTURE = {"__init__", "__main__", "dispatch", "build", "devices", "recording", "registry"}
INFRASTRUCTURE |= {"ffi", "shapes", "tracing"}
# Nor do these functions, which say the rest.
TOOLS = {"inspect.capture", "dot_product.explain_choice", "masks.mask.padding", "cache.extend"}
# And what several files of attention/ share and nobody else calls may do with a sentence, as may
# checks (expect_..., checked_...).
SHARED = {
    "cache.real_lengths",
    "image.channel.weights_of",
    "image.maps.kernel_init",
    "kernels.blockwise.attention.make_spec",
    "kernels.blockwise.attention.slower_reason",
    "kernels.blockwise.mesh.mesh_split",
    "kernels.blockwise.ulysses.slower_reason",
    "kernels.derivatives.guard_derivatives",
    "numerics.accumulator",
    "masks.arrays.mask_arrays",
    "masks.pallas.of_shared",
    "masks.pallas.slice_of",
    "masks.terms.block_ends",
    "masks.terms.split_into_blocks",
    "masks.terms.clipped_sum",
    "masks.terms.slice_span",
    "masks.terms.is_static",
    "masks.terms.positions",
    "masks.terms.query_positions",
    "masks.terms.static_offset",
    "sequence.linear.in_chunks",
    "sequence.linear.joined_chunks",
    "sequence.linear.quotient",
    "sequence.linear.with_ones",
}


def functions():
    """Every public function of attention/: its name in there and its syntax tree."""
    folder = ROOT / "attention"
    for file in sorted(folder.rglob("*.py")):
        if file.stem not in INFRASTRUCTURE:
            module = ".".join(file.relative_to(folder).with_suffix("").parts)
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield pytest.param(f"{module}.{node.name}", node, id=f"{module}.{node.name}")


def sections(text):
    """What stands before the first section, and section -> its text."""
    head, *parts = re.split(r"^(Args|Returns|Raises|Attributes):", text, flags=re.M)
    return head, dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("name", "function"), list(functions()))
def test_functions_say_paper_equation_shapes_and_errors(name, function):
    text = ast.get_docstring(function)
    assert text, "no docstring"
    if name in SHARED or function.name.startswith(("expect_", "checked_", "validate_")):
        return
    head, parts = sections(text)
    if name not in TOOLS:
        assert PAPER.search(text), "no author and year"
        assert EQUATION.search(head), "no equation"
    for section in ("Args", "Returns", "Raises"):
        assert section in parts, f"no {section}:"
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    annotations = [ast.unparse(a.annotation) for a in arguments if a.annotation]
    if any(map(ARRAY.search, annotations)) and not SAME.search(parts["Args"]):
        assert SHAPE.search(parts["Args"]), "no shapes in Args:"
    if function.returns and ARRAY.search(ast.unparse(function.returns)):
        told = SHAPE.search(parts["Returns"]) or SAME.search(parts["Returns"])
        assert told or "shape" in parts["Returns"], "no shapes in Returns:"
    missing = [a.arg for a in arguments if not re.search(rf"\b{a.arg}\b", parts["Args"])]
    assert SAME.search(parts["Args"]) or not missing, "not in Args:"


CLASSES = [line for line in registry.mechanisms() if line.kind != "kernel"]


@pytest.mark.parametrize("line", CLASSES, ids=[f"{line.kind}-{line.name}" for line in CLASSES])
def test_modules_say_paper_equation_and_arguments(line):
    module = line.load()
    text = inspect.cleandoc(module.__doc__)
    head, parts = sections(text)
    assert PAPER.search(text), "no author and year"
    assert EQUATION.search(head), "no equation"
    assert "Args" in parts, "no Args:"
    missing = [
        name
        for name, parameter in inspect.signature(module.__init__).parameters.items()
        if name not in ("self", "rngs") and parameter.kind is not parameter.VAR_KEYWORD
        if not re.search(rf"\b{name}\b", parts["Args"])
    ]
    assert SAME.search(parts["Args"]) or not missing, "not in Args:"
