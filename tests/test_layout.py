"""The import layers launch -> tasks -> attention, without cycles, TYPE_CHECKING included."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("attention", "tasks", "launch", "benchmarks", "configs")
# Packages that each package may import.
ALLOWED = {
    "attention": {"attention"},
    "tasks": {"attention", "tasks"},
    "launch": {"attention", "tasks", "launch"},
    "benchmarks": {"attention", "tasks", "launch", "benchmarks"},
    "configs": {"attention", "tasks", "launch", "configs"},
}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: pathlib.Path, package: str) -> set[str]:
    """Returns modules that a file imports at the top, in functions or for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # `from package import name` imports the module package.name where there is one.
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Returns, by module, the modules of the repository that it imports."""
    known = modules()
    found = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = imported(path, package) & known.keys()
        # An import of a module inside a package counts for the module, not for the package.
        inner = {t for t in targets if any(o.startswith(f"{t}.") for o in targets)}
        found[name] = targets - inner - {name}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_runs_up(package):
    for name, path in modules().items():
        if name.split(".")[0] != package:
            continue
        tops = {target.split(".")[0] for target in imported(path, name.rpartition(".")[0])}
        wrong = (tops & {*PACKAGES, "tests"}) - ALLOWED[package]
        assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"


# The lowest layer of attention imports nothing above it.
GROUND = ("mechanisms", "normalization", "numerics", "projection", "recording",
          "registry", "shapes", "sharding", "tracing")  # fmt: skip


def test_rooms_of_attention():
    for name, targets in arrows().items():
        if not name.startswith("attention."):
            continue
        inner = name.removeprefix("attention.")
        targets = {target.removeprefix("attention.") for target in targets}
        if inner in GROUND:
            allowed = GROUND
        elif inner.split(".")[0] in ("dropout", "masks"):
            allowed = (*GROUND, "masks")
        elif inner.split(".")[0] == "kernels":
            allowed = (*GROUND, "dropout", "masks", "kernels")
        elif inner == "dot_product":
            continue
        else:
            # Mechanisms use kernels only through `attend`, and map attention also the convolution.
            found = {target for target in targets if target.split(".")[0] == "kernels"}
            assert found <= {"kernels.convolution"}, f"{name} imports {found}"
            continue
        wrong = {target for target in targets if target.split(".")[0] not in allowed}
        wrong -= {"attention"}
        assert not wrong, f"{name} imports {wrong}"


def components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Returns strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = set()
            while node not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_components_finds_a_cycle():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert components(graph) == [{"a", "b", "c"}]


def test_no_cycles():
    graph = arrows()
    # attention/__init__ re-exports for type checkers what its modules define; nothing that it
    # re-exports may import it back, but `from attention import masks` names the module.
    graph = {name: targets - {"attention"} for name, targets in graph.items()}
    found = components(graph)
    assert not found, "\n".join(" <-> ".join(sorted(group)) for group in found)
