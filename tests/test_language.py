"""Checks the words of docstrings, comments and messages in the folders that are listed here.

The rules are those of docs/STYLE.md: summaries of functions that begin with a verb ("Computes"),
those of classes and properties with a noun phrase, American spelling, and the field's own terms.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Folders and files that follow the rules.
CHECKED: tuple[str, ...] = (
    "attention/__init__.py",
    "attention/__main__.py",
    "attention/cache.py",
    "attention/collaborative",
    "attention/dot_product.py",
    "attention/dropout.py",
    "attention/image",
    "attention/inspect.py",
    "attention/kernels",
    "attention/lag.py",
    "attention/masks",
    "attention/mechanisms.py",
    "attention/multi_head.py",
    "attention/normalization.py",
    "attention/numerics.py",
    "attention/pooling.py",
    "attention/positions",
    "attention/projection.py",
    "attention/recording.py",
    "attention/recurrent",
    "attention/registry.py",
    "attention/sequence",
    "attention/shapes.py",
    "attention/structured_pooling.py",
    "attention/tracing.py",
    "benchmarks",
    "configs",
    "docs/ADDING_A_MECHANISM.md",
    "launch/__init__.py",
    "launch/ablate.py",
    "launch/cli.py",
    "launch/engine/checkpoints.py",
    "launch/engine/config.py",
    "launch/engine/environment.py",
    "launch/engine/errors.py",
    "launch/engine/evaluation.py",
    "launch/engine/inputs.py",
    "launch/engine/loop.py",
    "launch/engine/memory.py",
    "launch/engine/optimizers.py",
    "launch/engine/output.py",
    "launch/engine/predictor.py",
    "launch/engine/progress.py",
    "launch/engine/sharding.py",
    "launch/engine/state.py",
    "launch/engine/steps.py",
    "launch/engine/values.py",
    "launch/engine/writers.py",
    "launch/evaluate.py",
    "launch/export_weights.py",
    "launch/import_weights.py",
    "launch/predict.py",
    "launch/prepare.py",
    "launch/report.py",
    "launch/reporting",
    "launch/runs/ablation.py",
    "launch/runs/directory.py",
    "launch/runs/provenance.py",
    "launch/runs/run.py",
    "launch/serve.py",
    "launch/serving",
    "launch/sweep.py",
    "launch/train.py",
    "tasks/__init__.py",
    "tasks/classification.py",
    "tasks/common/audio",
    "tasks/common/backbones",
    "tasks/common/configs.py",
    "tasks/common/data/__init__.py",
    "tasks/common/data/builders.py",
    "tasks/common/data/catalog.py",
    "tasks/common/data/cells.py",
    "tasks/common/data/debian.py",
    "tasks/common/data/deduplication.py",
    "tasks/common/data/digests.py",
    "tasks/common/data/fetchers.py",
    "tasks/common/data/manifests.py",
    "tasks/common/data/paths.py",
    "tasks/common/data/pipeline.py",
    "tasks/common/data/regular_files.py",
    "tasks/common/data/sources.py",
    "tasks/common/data/splits.py",
    "tasks/common/data/tables.py",
    "tasks/common/data/text_files.py",
    "tasks/common/data/transcribed.py",
    "tasks/common/data/user_files.py",
    "tasks/common/datasets",
    "tasks/common/decoding",
    "tasks/common/errors.py",
    "tasks/common/huggingface",
    "tasks/common/images",
    "tasks/common/keys.py",
    "tasks/common/losses.py",
    "tasks/common/metrics",
    "tasks/common/text",
    "tasks/detection",
    "tasks/figures.py",
    "tasks/forecasting",
    "tasks/handwriting_recognition",
    "tasks/image_classification",
    "tasks/language_modeling",
    "tasks/recommendation",
    "tasks/segmentation",
    "tasks/sequence_copy",
    "tasks/speech_recognition",
    "tasks/task.py",
    "tasks/text_classification",
    "tasks/transcription.py",
    "tasks/translation",
    "tests/benchmarks",
    "tests/conftest.py",
    "tests/fork_server.py",
    "tests/launch",
    "tests/test_docs_site.py",
    "tests/test_full_compilation.py",
    "tests/test_layout.py",
    "tests/test_package.py",
    "tests/test_readme.py",
)

RETIRED = re.compile(
    r"\b(pictures?|anew|wholly|told|nobody|somebody|whoever|a person|persons?|verbs?|whatever"
    r"|of which|looked at|looks at)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"\b\w*(colour|normalis|initialis|neighbour|centre|behaviour|labell|favour|licence|recognis"
    r"|optimis|summaris|organis|standardis|analys(?!is|es\b|t)|serialis|tokenis|vectoris|factoris"
    r"|minimis|maximis(?!e\b)|parametris|modell|cancell(?!ation)|artefact|\bgrey\b)\w*",
    re.IGNORECASE,
)
# Keys, flags and names that users have typed or files have stored.
ALLOWED = re.compile(
    r"^\w+$|--\w+|`[^`]*`|\"[^\"\s]*\"|'[^'\s]*'|\w+_\w+|https?://\S+|config\.[\w.]+"
    r"|(?m:^ {6}\w+(?=:))|[\w./]+\.(py|json|md)"
)
SUMMARY = re.compile(r"^(What|Where|How|Which|Who|When|That|Of|Whether)\b")


def files():
    for entry in CHECKED:
        path = ROOT / entry
        assert path.exists(), f"{entry}: no such file or folder"
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def prose(path):
    """Yields (line number, text, whether it is a docstring) of comments and strings."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from ((n, line, False) for n, line in enumerate(source.splitlines(), 1))
        return
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            docstrings.add(node.body[0].value.lineno)
        # A single word is a key or a name, not prose.
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not node.value.isidentifier()
        ):
            yield node.lineno, node.value, node.lineno in docstrings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


def mistakes(path):
    for line, text, is_docstring in prose(path):
        summary = text.strip().partition("\n")[0]
        if is_docstring and SUMMARY.search(summary):
            yield f"{path}:{line}: summary begins with {summary.split()[0]!r}"
        plain = ALLOWED.sub("", text)
        for pattern in (RETIRED, BRITISH):
            yield from (f"{path}:{line}: {found[0]!r}" for found in pattern.finditer(plain))


def test_words():
    found = [mistake for path in files() for mistake in mistakes(path)]
    assert not found, "\n".join(found)


def functions(tree):
    """Yields public functions and methods with docstrings; no properties, no tests."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith(("_", "test_")):
            continue
        decorators = " ".join(map(ast.unparse, node.decorator_list))
        if ast.get_docstring(node) and "property" not in decorators:
            yield node


def test_summaries_of_functions_begin_with_a_verb():
    found = []
    for path in files():
        if path.suffix != ".py":
            continue
        for node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            first = ast.get_docstring(node).split()[0]
            if not re.fullmatch(r"[A-Z][a-z-]*s,?", first):
                found.append(f"{path}:{node.lineno}: {node.name} begins with {first!r}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        '"""What a mask hides."""',
        "x = 'the picture is drawn anew'",
        "# colour of a neighbour",
        'def f():\n    """Where it lies."""',
    ],
)
def test_mistakes_are_found(tmp_path, line):
    path = tmp_path / "module.py"
    path.write_text(line + "\n", encoding="utf-8")
    assert list(mistakes(path))


def test_quoted_names_are_allowed(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""Returns `neighbour_ids` of "colour"."""\n', encoding="utf-8")
    assert not list(mistakes(path))
