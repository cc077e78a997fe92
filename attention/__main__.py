"""Prints the table of mechanisms.

python -m attention               # all
python -m attention mixer         # one kind
python -m attention performer     # one mechanism with its docstring
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap

from attention import registry

_INDENT = 20


def main(arguments: list[str]) -> int:
    """Prints the requested part of the table of mechanisms.

    Args:
      arguments: a kind or the name of a mechanism; empty for the complete table.

    Returns:
      The exit status: 0, or 2 for invalid arguments.
    """
    if arguments[:1] in (["-h"], ["--help"]) or len(arguments) > 1:
        kinds = ", ".join(registry.KINDS)
        print(f"usage: python -m attention [KIND or NAME]; kinds are {kinds}")
        return 0 if len(arguments) == 1 else 2
    width = max(80, min(shutil.get_terminal_size((100, 24)).columns, 120))
    if not arguments:
        blocks = [_kind(kind, width) for kind in registry.KINDS if registry.names(kind)]
        blocks.append("python -m attention NAME shows one mechanism with its docstring.")
    elif arguments[0] in registry.KINDS:
        blocks = [_kind(arguments[0], width)]
    else:
        entries = registry.mechanisms()
        try:
            known = dict.fromkeys([*registry.KINDS, *(entry.name for entry in entries)])
            name, _ = registry.parse("attention", arguments[0], known)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        blocks = [_one(entry, width) for entry in entries if entry.name == name]
    print("\n\n".join(blocks))
    return 0


def _kind(kind: str, width: int) -> str:
    title = f"{registry.KINDS[kind]} ({kind})"
    entries = [_entry(entry, width) for entry in registry.mechanisms(kind)]
    return "\n".join([title, "=" * len(title), *(entries or ["none yet"])])


def _entry(entry: registry.Mechanism, width: int, *more: str) -> str:
    """Formats the name, paper, costs and capabilities of an entry, and the texts `more`."""
    can = ", ".join(name for name in registry.CAPABILITIES if name in entry.capabilities)
    costs = f"time {entry.time}; memory {entry.memory}"
    wrapped: list[str] = []
    for text in (entry.paper, *more, costs, can):
        wrapped += textwrap.wrap(text, width - _INDENT, subsequent_indent="  ")
    beside = textwrap.indent("\n".join(wrapped), " " * _INDENT)
    if len(entry.name) > _INDENT - 2:
        return f"{entry.name}\n{beside}"
    return entry.name.ljust(_INDENT) + beside[_INDENT:]


def _one(entry: registry.Mechanism, width: int) -> str:
    title = f"{entry.name} ({entry.kind}: {entry.target})"
    meanings = [
        textwrap.fill(
            f"{name.ljust(_INDENT - 2)}{meaning}",
            width,
            initial_indent="  ",
            subsequent_indent=" " * _INDENT,
        )
        for name, meaning in registry.CAPABILITIES.items()
        if name in entry.capabilities
    ]
    parts = [
        f"{title}\n{'=' * len(title)}",
        f"{entry.paper}\n{entry.equation}\ntime {entry.time}; memory {entry.memory}",
        "\n".join(["capabilities:", *meanings]),
        inspect.getdoc(entry.load()) or "",
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    # A terminal that cannot encode Greek letters prints question marks instead of failing.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue] text file
    sys.exit(main(sys.argv[1:]))
