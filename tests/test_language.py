"""Checks the words of docstrings, comments and messages in all folders and pages.

The rules are those of docs/STYLE.md: summaries of functions begin with an action ("Computes"),
summaries of classes and properties are noun phrases, the spelling is American, and retired words
of the project's former dialect do not occur.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Every folder of Python files, and every page.
CHECKED: tuple[str, ...] = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "attention",
    "attention/README.md",
    "benchmarks",
    "configs",
    "docs",
    "launch",
    "tasks",
    "tests",
)

# The words are listed one by one, because single words are exempt from the checks below.
RETIRED_WORDS = (
    *("picture", "pictures", "anew", "wholly", "told", "nobody", "somebody", "whoever"),
    *("person", "persons", "verb", "verbs", "whatever"),
    " ".join(("of", "which")),
    *(" ".join((looks, "at")) for looks in ("looked", "looks")),
)
RETIRED = re.compile(rf"\b({'|'.join(RETIRED_WORDS)})\b", re.IGNORECASE)
BRITISH_STEMS = (
    *("colour", "normalis", "initialis", "neighbour", "centre", "behaviour", "labell", "favour"),
    *("licence", "recognis", "optimis", "summaris", "organis", "standardis", "serialis"),
    *("tokenis", "vectoris", "factoris", "minimis", "parametris", "modell", "artefact"),
    r"\b" + "grey" + r"\b",
    # Words such as "analysis" and "cancellation" are American too.
    "analys" + r"(?!is|es\b|t)",
    "maximis" + r"(?!e\b)",
    "cancell" + r"(?!ation)",
)
BRITISH = re.compile(rf"\b\w*({'|'.join(BRITISH_STEMS)})\w*", re.IGNORECASE)
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
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".py", ".md"))
        else:
            yield path


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


def test_summaries_of_functions_begin_with_an_action():
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
        f"x = 'the {RETIRED_WORDS[0]} is drawn'",
        f"# {BRITISH_STEMS[0]} of a pixel",
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
