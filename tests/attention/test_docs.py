"""The examples of docs/ADDING_A_MECHANISM.md, and the required content of docstrings."""

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

ADDED = ("cosine", "retention")
PAGE = ROOT / "docs" / "ADDING_A_MECHANISM.md"


def blocks():
    """Returns file -> the code of the page for it; the two registry entries are joined."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^`([\w/]+\.py)`[^\n]*:\n\n```\w+\n(.*?)^```$", text, re.M | re.S)
    entries = "\n".join(code for file, code in found if file == "attention/mechanisms.py")
    files = dict(found) | {"attention/mechanisms.py": entries}
    assert sorted(files) == sorted(
        ["attention/mechanisms.py"]
        + [f"attention/sequence/{name}.py" for name in ADDED]
        + [f"tests/attention/references/{name}.py" for name in ADDED]
    )
    return files


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Makes a copy of attention/ and its tests with the mechanisms of the page."""
    root = tmp_path_factory.mktemp("walk")
    skipped = shutil.ignore_patterns("__pycache__", "oracles", "launch", "tasks")
    for folder in ("attention", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", root)
    written = blocks()
    registry = root / "attention" / "mechanisms.py"
    entries = written.pop("attention/mechanisms.py")
    text = registry.read_text(encoding="utf-8")
    before, after = text.split('""",\n    "alignment": """', 1)
    registry.write_text(f'{before}\n{entries}""",\n    "alignment": """{after}', encoding="utf-8")
    for file, code in written.items():
        assert not (root / file).exists()
        (root / file).write_text(code, encoding="utf-8")
    return root


def run(root, *arguments):
    """Runs a Python module; returns its output and its exit status."""
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
@pytest.mark.parametrize("name", ADDED)
def test_the_examples_pass_the_contract(name, copy):
    out, status = run(copy, "pytest", "-k", name, "tests/attention/test_contract.py")
    assert status == 0, out
    assert int(re.search(r"(\d+) passed", out)[1]) > 10
    assert "failed" not in out
    assert "skipped" not in out


def test_the_examples_renew_the_map(copy):
    assert "README.md is out of date" in run(copy, "attention.registry", "--check")[0]
    assert run(copy, "attention.registry")[1] == 0
    assert run(copy, "attention.registry", "--check") == ("", 0)
    written = (copy / "attention" / "README.md").read_text(encoding="utf-8")
    assert all(f"sequence/{name}.py" in written for name in ADDED)
    out, status = run(copy, "attention", "cosine")
    assert status == 0
    assert "with a learned temperature" in out


def test_the_examples_are_formatted(copy):
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
INFRASTRUCTURE |= {"costs", "ffi", "observation", "shapes", "sharding", "tracing"}
# Nor do these functions, which say the rest.
TOOLS = {
    "inspect.capture",
    "dot_product.explain_choice",
    "masks.mask.padding",
    "cache.append_keys_values",
}
# A one-sentence docstring suffices for functions that are shared only by files of attention/, and
# for checks (expect_..., checked_..., validate_...).
SHARED = {
    "cache.valid_lengths",
    "dropout.dropout_options",
    "image.channel.weights_of",
    "image.maps.kernel_init",
    "kernels.blockwise.attention.make_spec",
    "kernels.blockwise.attention.slower_reason",
    "kernels.partition.device_split",
    "kernels.partition.mesh_split",
    "kernels.blockwise.ulysses.slower_reason",
    "kernels.derivatives.guard_derivatives",
    "kernels.gpu.triton.block_sizes",
    "kernels.gpu.triton_kernels.padded_width",
    "kernels.gpu.triton_kernels.parts",
    "numerics.accumulator",
    "numerics.mix_heads",
    "numerics.product",
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
    "recurrent.memory.recorded_context",
    "sequence.linear.split_into_chunks",
    "sequence.linear.join_chunks",
    "sequence.linear.normalize_sums",
    "sequence.linear.append_ones",
}


def functions():
    """Yields (qualified name, syntax tree) of every public function of attention/."""
    folder = ROOT / "attention"
    for file in sorted(folder.rglob("*.py")):
        if file.stem not in INFRASTRUCTURE:
            module = ".".join(file.relative_to(folder).with_suffix("").parts)
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield pytest.param(f"{module}.{node.name}", node, id=f"{module}.{node.name}")


def sections(text):
    """Returns the text before the first section, and the text of each section."""
    head, *parts = re.split(r"^(Args|Returns|Raises|Attributes):", text, flags=re.M)
    return head, dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("name", "function"), list(functions()))
def test_functions_say_paper_equation_shapes_and_errors(name, function):
    text = ast.get_docstring(function)
    assert text, "no docstring"
    if name in SHARED or function.name.startswith(("expect_", "checked_", "validate_")):
        return
    if function.name == "cost" and name.startswith("kernels."):
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


CLASSES = [entry for entry in registry.mechanisms() if entry.kind != "kernel"]


@pytest.mark.parametrize("entry", CLASSES, ids=[f"{entry.kind}-{entry.name}" for entry in CLASSES])
def test_modules_say_paper_equation_and_arguments(entry):
    module = entry.load()
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
