"""The command line of all commands: overrides of configs, unknown flags, and help."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from launch.engine import output
from tasks.common.data.own import COLUMNS
from tasks.common.errors import UserError

FLAGS = flags.FLAGS
PLACEMENT = ("on", "retries", "cpus_per_run", "gpus_per_run")
"""Flags that do not affect results, and are left out of the command line in records."""


@dataclasses.dataclass
class Overrides:
    """State of the --config.key=value flags and the arguments of one command line.

    Attributes:
      allowed: whether the command accepts --config.key=value.
      arguments: whether the command accepts arguments that are not flags.
      rest: the arguments that are not flags.
      original: config of the file as a nested dict; None before the flags are parsed.
      values: config of the file with the overrides, as a nested dict.
    """

    allowed: bool = False
    arguments: bool = False
    rest: Sequence[str] = ()
    original: dict[str, Any] | None = None
    values: dict[str, Any] | None = None


overrides = Overrides()


def parse(argv: Sequence[str]) -> list[str]:
    """Sets the flags and `overrides`; returns the command and the words that are not flags.

    Raises:
      UserError: a flag or a value is wrong.
    """
    for word in argv:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{word!r}: is not encoded in {sys.getfilesystemencoding()}; rename the file, "
                f"or set PYTHONUTF8=1 if the text is in UTF-8"
            ) from None
    try:
        words = FLAGS.read_flags_from_files(list(argv), force_gnu=False)
        # Unknown flags are reported before the config file is loaded, because they may be the cause
        # of an error in it.
        _expect_known(words)
        if overrides.allowed:
            words = without_overrides(words)
        if _asks_for_help(words):
            _show_help(words)
        rest = FLAGS(words)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    if overrides.arguments:
        overrides.rest = rest[1:]
    elif rest[1:]:
        raise UserError(f"{rest[1]!r}: is not a flag; {_instead_of(rest[1])}")
    return rest


def _instead_of(word: str) -> str:
    """Returns advice for an error message: what to write instead of a word that is not a flag."""
    given = FLAGS.get_flag_value("config", None)
    if "config" in FLAGS and not given and word.partition(":")[0].endswith(".py"):
        return f"write --config={word}"
    if given and ":" not in given and re.fullmatch(r"[\w,:().=]+", word):
        return f"for an argument of the config file write --config={given}:{word}"
    return "flags begin with --, see --help"


def _expect_known(words: Sequence[str]) -> None:
    """Raises if a flag is unknown, except for overrides of a config.

    Raises:
      UnrecognizedFlagError: the first unknown flag.
    """
    remaining = iter(words[1:])
    for word in remaining:
        name, equals, _ = word.lstrip("-").partition("=")
        if word == "--" or not word.startswith("-") or name.startswith("undefok"):
            return
        if name in FLAGS:
            if not equals and not FLAGS[name].boolean:
                next(remaining, None)
            continue
        overriding = overrides.allowed and re.match(r"(no)?config\.", name)
        negated = name.removeprefix("no")
        boolean = negated != name and negated in FLAGS and FLAGS[negated].boolean
        if overriding and not equals:
            # The next word may be the value of the override, so the check ends here.
            return
        if not overriding and not boolean and name != "h":
            raise flags.UnrecognizedFlagError(name, word)


def _asks_for_help(words: Sequence[str]) -> bool:
    before = itertools.takewhile(lambda word: word != "--", words[1:])
    return any(re.fullmatch(r"-h|--?help(=true)?", word) for word in before)


def _show_help(words: Sequence[str]) -> NoReturn:
    """Prints the help page of the command or, with --config, that of the config; exits."""
    given = _given_config(words) if "config" in FLAGS else None
    page = ""
    if given is None:
        # absl exits with status 1 after its help page.
        with contextlib.suppress(SystemExit):
            FLAGS([*words[:1], "--help"])
    else:
        from launch.runs.help import help_page

        page = help_page(given, overrides.original, overrides.values)
    try:
        print(page, end="", flush=True)
    except BrokenPipeError:
        output.discard_closed()
    sys.exit(0)


def without_overrides(words: Sequence[str]) -> list[str]:
    """Reads --config and its overrides; returns the command line without the overrides."""
    from launch.engine import config as configs
    from launch.engine import own_data
    from launch.engine import values as typed

    given = _given_config(words)
    found = _override_words(words)
    if given is None:
        if found:
            raise UserError(
                "--config is missing; --config.key=value overrides a key of --config=FILE"
            )
        return list(words)
    original = configs.load_values(given)
    columns = {name: value for name in COLUMNS if (value := _given(words, name)) is not None}
    values = own_data.with_own_data(original, _given(words, "data"), columns)
    changes: dict[str, Any] = {}
    taken: set[int] = set()
    for position, negated, key, value in found:
        key = configs.current_key(values, key)
        hint = typed.field_type(values, key)
        taken.add(position)
        if hint is bool and value is None:
            changes[key] = not negated
            continue
        if negated:
            raise UserError(f"--noconfig.{key}: is not a boolean key; write --config.{key}=VALUE")
        if value is None:
            if position + 1 >= len(words):
                raise UserError(f"--config.{key}: has no value; write --config.{key}=VALUE")
            taken.add(position + 1)
            value = words[position + 1]
        parsed = typed.parse(values, key, value)
        # A tuple may be given by several flags, one item each.
        appends = isinstance(parsed, tuple) and isinstance(changes.get(key), tuple)
        changes[key] = changes[key] + parsed if appends else parsed
    overrides.original, overrides.values = original, configs.replaced(values, changes)
    own_data.check_columns(overrides.values, columns)
    return [word for position, word in enumerate(words) if position not in taken]


def _override_words(words: Sequence[str]) -> list[tuple[int, bool, str, str | None]]:
    """Returns each override as a tuple (position, is_negated, key, value or None)."""
    found = []
    for position, word in enumerate(words[1:], 1):
        if word == "--":
            break
        if match := re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL):
            found.append((position, bool(match[1]), match[2], match[3]))
    return found


def _given_config(words: Sequence[str]) -> str | None:
    """Returns the value of the last --config flag, or None."""
    return _given(words, "config")


def _given(words: Sequence[str], flag: str) -> str | None:
    """Returns the value of the last occurrence of a flag, or None."""
    given = None
    for position, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if name in (f"--{flag}", f"-{flag}"):
            given = value if equals else next(iter(words[position + 1 : position + 2]), "")
    return given


def _unknown_flag(name: str) -> str:
    """Returns the error message for an unknown flag, which suggests what to write instead."""
    from launch.engine.config import did_you_mean

    command = Path(sys.argv[0]).stem
    if name.startswith(("config.", "noconfig.")) and not overrides.allowed:
        key = name.partition(".")[2]
        remedy = f"; write --set={key}=VALUE" if "set" in FLAGS else "; see --help"
        return f"--{name}: launch.{command} has no config to override{remedy}"
    if overrides.allowed:
        keys = _keys_of_config()
        last = [key for key in keys if name in (key, key.rpartition(".")[2])]
        if last or name == "set":
            key = last[0] if last else "KEY"
            return f"--{name}: launch.{command} has no such flag; write --config.{key}=VALUE"
    names = {name, name.removeprefix("no")}
    others = [other for other, known in flags_of_commands().items() if names & known]
    if others and command not in others:
        return (
            f"--{name}: launch.{command} has no such flag; it belongs to "
            f"{', '.join(f'launch.{other}' for other in others)}, see --help"
        )
    return (
        f"--{name}: launch.{command} has no such flag{did_you_mean(name, list(FLAGS))}; see --help"
    )


def _keys_of_config() -> list[str]:
    """Returns the keys of the config given by --config; [] if it cannot be loaded."""
    from launch.engine import config as configs

    given = _given_config(sys.argv)
    if given is None:
        return []
    with contextlib.suppress(UserError):
        return list(configs.flatten(configs.load_values(given)))
    return []


def flags_of_commands() -> dict[str, set[str]]:
    """Returns the names of the flags of each command, read from its source without importing it."""
    config = ["config", "data", *COLUMNS]
    shared = {
        "answers": ["top_k", "threshold", "positive"],
        "config": config,
        "own_data": config[1:],
        "workdir": ["workdir"],
        "record": ["record", "results"],
        "track": ["track"],
        "distributed": ["distributed", "distributed_timeout"],
        "match": ["match", "match_key"],
        "stack": ["stack_seeds"],
        "placement": list(PLACEMENT),
    }
    found = {}
    for name, text in command_sources().items():
        names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text))
        for kind in re.findall(r"cli\.define_(\w+)\(", text):
            names |= set(shared.get(kind, ()))
        found[name] = names
    return found


def command_sources() -> dict[str, str]:
    """Returns the source text of each command, by name; commands are modules that call `main`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    return {name: text for name, text in texts.items() if "\n    cli.main(" in text}
