"""Names of mechanisms -> the mechanisms: find, load and build them, and write the map.

`attention.mechanisms` is the table, and says how each kind is built and called.

    python -m attention.registry            # writes attention/README.md
    python -m attention.registry --check    # exit status 1 where it is out of date
"""

from __future__ import annotations

import ast
import difflib
import inspect
import pathlib
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attention.mechanisms import CAPABILITIES, KINDS, TABLE, Mechanism

__all__ = ["CAPABILITIES", "KINDS", "TABLE", "Mechanism"]


def mechanisms(kind: str | None = None) -> list[Mechanism]:
    """All registry entries, or those of one kind, in registry order."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {list(KINDS)}")
    return [entry for entry in TABLE if kind in (None, entry.kind)]


def names(kind: str) -> list[str]:
    """The names that a config may choose from."""
    return [entry.name for entry in mechanisms(kind)]


def find(kind: str, name: str) -> Mechanism:
    """The registry entry of a name, or of a spec that begins with it (see `parse`).

    Raises:
      ValueError: no such name; the nearest and all of the kind are listed.
    """
    entries = {entry.name: entry for entry in mechanisms(kind)}
    return entries[parse(kind, name, entries)[0]]


def load(kind: str, name: str) -> Any:
    """The function or class behind a name: `find(kind, name).load()`."""
    return find(kind, name).load()


# What `build` is given in order; the rest of a constructor's arguments are options.
_POSITIONAL = (
    *("model_size", "query_size", "memory_size", "component_size"),
    *("channels", "signal_channels", "lags", "horizon"),
)


def build(kind: str, spec: str, *arguments: Any, **fixed: Any) -> Any:
    """The module of a spec: `load(kind, name)(*arguments, **fixed, **options)`.

    Raises:
      ValueError: an unknown name or option, or one that does not fit.
    """
    name, options = parse(kind, spec, names(kind))
    target = load(kind, name)
    check_options(kind, spec, target, options, (*_POSITIONAL, *fixed))
    return target(*arguments, **fixed, **options)


def check_spec(
    argument: str, spec: str, use: Callable, *inputs: Any, others: Iterable[str] = ()
) -> None:
    """Holds the options of a spec to what they are used for: `use` builds a module of it and calls
    it, but no weight is drawn and nothing computed.

    Args:
      argument: name of the argument that has the spec, for the message.
      spec: as for `build`.
      use: a function of the inputs.
      inputs: arrays, or `jax.ShapeDtypeStruct`s.
      others: arguments that a message of `use` may begin with, besides this one.

    Raises:
      ValueError: what `use` raises, with argument and spec before it unless it names one already.
    """
    from flax import nnx

    from attention import tracing

    try:
        with tracing.shapes_only():
            nnx.eval_shape(use, *inputs)
    except ValueError as error:
        named = str(error).partition(":")[0] in (argument, *others)
        raise ValueError(str(error) if named else f"{argument}: {spec!r}: {error}") from None


def parse(argument: str, spec: str, known: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Name and options of a spec such as "performer(features=64, kernel='relu')".

    Args:
      argument: what the caller calls it, for messages.
      spec: a name, or a name with options in brackets: numbers, True, False, None and words, with
        or without quotes.
      known: the names that there are.

    Raises:
      ValueError: it cannot be read, or the name is unknown (the nearest is named).
    """
    names = list(known)
    name, options = spec, {}
    if isinstance(spec, str) and "(" in spec:
        expected = "name or name(option=value, ...)"
        try:
            call = ast.parse(spec.strip(), mode="eval").body
            if call.args:
                raise ValueError
            name, options = call.func.id, {k.arg: _literal(k.value) for k in call.keywords}
        except (SyntaxError, ValueError, AttributeError):
            raise ValueError(f"{argument}: got {spec!r}, expected {expected}") from None
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument}: got {name!r}, expected one of {names}{hint}")
    return name, options


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def check_options(
    argument: str, spec: str, target: Any, options: Mapping[str, Any], taken: Iterable[str]
) -> None:
    """Refuses options that `target` does not have, that its caller gives (`taken`), or of a type
    that its signature does not name.

    Raises:
      ValueError: names the option, and what is expected.
    """
    taken = {*taken, "rngs", "self", "dtype", "dropout_rate"}
    hints = {name: hint for name, hint in _parameters(target).items() if name not in taken}
    for option, value in options.items():
        if option not in hints:
            near = difflib.get_close_matches(option, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{argument}: got option {option!r} in {spec!r}, expected one of "
                f"{list(hints)}{hint}"
            )
        kinds = typing.get_args(hints[option]) or (hints[option],)
        if not any(_is_of(value, kind) for kind in kinds):
            names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
            raise ValueError(f"{argument}: got {option}={value!r} in {spec!r}, expected {names}")


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else typing.get_origin(kind) or kind)


def _parameters(target: type) -> dict[str, Any]:
    """Names and types that a class can be built with; `**options` stands for those of its base."""
    found: dict[str, Any] = {}
    for kind in target.__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(kind.__init__).parameters.values()
            hints = typing.get_type_hints(kind.__init__)
            for parameter in parameters:
                if parameter.kind is not parameter.VAR_KEYWORD:
                    found.setdefault(parameter.name, hints.get(parameter.name))
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return found


def readme() -> str:
    """The text of attention/README.md."""
    parts = [
        "# attention: the map",
        "Written by `python -m attention.registry` from `mechanisms.py`; edit that, not this. "
        "`python -m attention` prints it to a terminal, `python -m attention NAME` one mechanism "
        "with its docstring. [How to add one](../docs/ADDING_A_MECHANISM.md).",
        "T queries, S keys, D model size, A hidden size of a score, W keys that a sparse pattern "
        "shows a query; of a map P = Y·X positions, C channels, R of a bottleneck, F hidden ones, "
        "K and S the sides of a convolution and a window; of a recommendation I candidates, S "
        "neighbours or items that a user had; of a series L lags, F steps of the forecast. Time "
        "and memory are those of one sequence, map, user or series; "
        'what "can" names is what the contract suite tests.',
    ]
    header = "| name | paper | equation | time | memory | can | file |\n" + "|---" * 7 + "|"
    for kind, title in KINDS.items():
        entries = mechanisms(kind)
        if entries:
            rows = [_row(entry) for entry in entries]
            parts += [f"## {title}", "\n".join([header, *rows])]
    words = "\n".join(f"- **{name}**: {meaning}" for name, meaning in CAPABILITIES.items())
    return "\n\n".join([*parts, "## What the capabilities mean", words]) + "\n"


def _row(entry: Mechanism) -> str:
    module = entry.target.split(":")[0].removeprefix("attention.")
    file = module.replace(".", "/") + ".py"
    can = ", ".join(name for name in CAPABILITIES if name in entry.capabilities)
    cells = [f"`{entry.name}`", entry.paper, entry.equation, entry.time, entry.memory, can]
    # An absolute value must not end a cell.
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return "| " + " | ".join(escaped) + f" | [{file}]({file}) |"


def main(arguments: list[str]) -> int:
    """Writes the README, or with --check says whether it is up to date."""
    path = pathlib.Path(__file__).with_name("README.md")
    if arguments == ["--check"]:
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current != readme():
            print(f"{path.name} is out of date: run python -m attention.registry")
            return 1
        return 0
    if arguments:
        print("usage: python -m attention.registry [--check]")
        return 2
    path.write_text(readme(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
