"""Registry of mechanisms: finds, loads and builds them by name, and writes attention/README.md.

`attention.mechanisms` has the table and the signatures of each kind.

    python -m attention.registry            # writes attention/README.md
    python -m attention.registry --check    # exit status 1 if it is out of date
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
    """Returns all registry entries, or those of one kind, in the order of the table."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {list(KINDS)}")
    return [entry for entry in TABLE if kind in (None, entry.kind)]


def names(kind: str) -> list[str]:
    """Returns the names of all mechanisms of a kind."""
    return [entry.name for entry in mechanisms(kind)]


def find(kind: str, name: str) -> Mechanism:
    """Returns the registry entry for a name or spec (see `parse`).

    Raises:
      ValueError: the name is unknown; the message lists the nearest name and all names of the kind.
    """
    entries = {entry.name: entry for entry in mechanisms(kind)}
    return entries[parse(kind, name, entries)[0]]


def load(kind: str, name: str) -> Any:
    """Returns the function or class of the mechanism with a name: `find(kind, name).load()`."""
    return find(kind, name).load()


# Positional arguments of `build`; the other arguments of a constructor are options.
_POSITIONAL = (
    *("model_size", "query_size", "memory_size", "component_size"),
    *("channels", "signal_channels", "lags", "horizon"),
)


def build(kind: str, spec: str, *arguments: Any, **fixed: Any) -> Any:
    """Builds the module that a spec describes.

    The result is `load(kind, name)(*arguments, **fixed, **options)`, with the name and the options
    of the spec.

    Raises:
      ValueError: a name or option is unknown, or an option has an invalid type or value.
    """
    name, options = parse(kind, spec, names(kind))
    target = load(kind, name)
    check_options(kind, spec, target, options, (*_POSITIONAL, *fixed))
    return target(*arguments, **fixed, **options)


def check_spec(
    argument: str, spec: str, use: Callable, *inputs: Any, others: Iterable[str] = ()
) -> None:
    """Checks a spec by tracing its module under `jax.eval_shape`, without creating parameters.

    Args:
      argument: name of the argument with the spec, for the message.
      spec: as for `build`.
      use: function of the inputs that builds and calls the module.
      inputs: arrays, or `jax.ShapeDtypeStruct`s.
      others: names of other arguments that a message of `use` may begin with.

    Raises:
      ValueError: the error of `use`. Its message is prefixed by argument and spec, unless it
        already begins with the name of an argument.
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
    """Splits a spec such as "performer(features=64, kernel='relu')" into name and options.

    Args:
      argument: name of the argument, for messages.
      spec: a name, or a name with options in parentheses: numbers, True, False, None and words,
        with or without quotes.
      known: all names.

    Raises:
      ValueError: the spec cannot be parsed, or the name is unknown.
    """
    names = list(known)
    name, options = spec, {}
    if isinstance(spec, str) and "(" in spec:
        expected = "name or name(option=value, ...)"
        try:
            call: Any = ast.parse(spec.strip(), mode="eval").body
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
    """Checks the names and types of options against the signature of `target`.

    Args:
      argument, spec: as for `parse`, for messages.
      target: function or class to which the options are passed.
      options: the options of the spec.
      taken: names of arguments that the caller sets.

    Raises:
      ValueError: an option is unknown, is set by the caller (`taken`), or has the wrong type.
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
    """Returns the names and types of a constructor's arguments.

    If the constructor has `**options`, the arguments of the base class are included.
    """
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
    """Returns the text of attention/README.md."""
    parts = [
        "# attention: table of mechanisms",
        "Generated by `python -m attention.registry` from `mechanisms.py`; edit that file instead. "
        "`python -m attention` prints the table, and `python -m attention NAME` prints one "
        "mechanism with its docstring. [How to add one](../docs/ADDING_A_MECHANISM.md).",
        "T queries, S keys, D model size, A hidden size of a scoring network, W visible keys of a "
        "query in a sparse pattern; for feature maps P = Y·X positions, C channels, R channels of "
        "a bottleneck, F hidden channels, K and S the sides of a convolution and a window; for "
        "recommendation I candidates, S neighbors or items of a history; for series L lags, F "
        "forecast steps. Time and memory are those of one sequence, map, user or series. The "
        "contract suite tests exactly the listed capabilities.",
    ]
    header = (
        "| name | paper | equation | time | memory | capabilities | file |\n" + "|---" * 7 + "|"
    )
    for kind, title in KINDS.items():
        entries = mechanisms(kind)
        if entries:
            rows = [_row(entry) for entry in entries]
            parts += [f"## {title}", "\n".join([header, *rows])]
    words = "\n".join(f"- **{name}**: {meaning}" for name, meaning in CAPABILITIES.items())
    return "\n\n".join([*parts, "## Capabilities", words]) + "\n"


def _row(entry: Mechanism) -> str:
    module = entry.target.split(":")[0].removeprefix("attention.")
    file = module.replace(".", "/") + ".py"
    can = ", ".join(name for name in CAPABILITIES if name in entry.capabilities)
    cells = [f"`{entry.name}`", entry.paper, entry.equation, entry.time, entry.memory, can]
    # The bar of an absolute value would end a cell of the table.
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return "| " + " | ".join(escaped) + f" | [{file}]({file}) |"


def main(arguments: list[str]) -> int:
    """Writes attention/README.md, or checks it with the argument "--check".

    Returns:
      The exit status: 1 if the file is out of date, 2 for other arguments, else 0.
    """
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
