"""Checks of the argument of a config file, such as DATA,MODEL in configs/FILE.py:DATA,MODEL."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from launch.engine.config import did_you_mean
from launch.engine.values import split
from tasks.common.data.user_files import OWN
from tasks.common.errors import UserError


def check_argument(
    argument: str,
    kinds: Mapping[str, Collection[str]],
    *,
    required: bool = False,
) -> None:
    """Checks that the known names in the argument of a config file are in the right order.

    Words that are not known names are accepted, because they may be specs of mechanisms, runs or
    numbers.

    Args:
      argument: words separated by commas, such as "sst2,transformer".
      kinds: known names by part of the argument. The keys are the names of the parts, such as
        "DATA" and "MODEL", in the order of the argument. The first part is the data set.
      required: whether the first part cannot be left out.

    Raises:
      UserError: the words are in another order, a part is given twice, the required first part is
        missing, or the first word is a path.
    """
    words = [word.strip() for word in split(argument)]
    form, order = ",".join(kinds), list(kinds)
    first = order[0]
    found = [_kind(word, kinds) for word in words]
    given = [(order.index(kind), word) for kind, word in zip(found, words, strict=True) if kind]
    if [place for place, _ in given] != sorted(place for place, _ in given):
        correct = ",".join(word for _, word in sorted(given, key=lambda one: one[0]))
        if len(given) < len(words):
            correct = form
        raise UserError(f"config: got {argument!r}, expected the order {form}; write {correct}")
    for number, (place, word) in enumerate(given[1:], 1):
        if place == given[number - 1][0]:
            raise UserError(
                f"config: got {argument!r}, with two words for {order[place]}, "
                f"{given[number - 1][1]!r} and {word!r}; expected {form}"
            )
    if required and found[0] not in (first, None):
        data = next(iter(kinds[first]))
        raise UserError(
            f"config: {words[0]!r} is {_noun(found[0])}, not {_noun(first)}; write {form}, such as "
            f"{data},{words[0]}"
        )
    is_path = "/" in words[0] or os.path.isfile(words[0])
    if found[0] is None and is_path and ":" not in words[0]:
        raise UserError(
            f"config: {words[0]!r} is a path, expected {form}; to use your own "
            f"files, replace the path by {OWN} and add --data={words[0]}"
        )


def wrong_argument(
    error: ValueError, argument: str, kinds: Mapping[str, Collection[str] | str]
) -> UserError:
    """Returns the error for an argument with an unknown word; its message lists the known names.

    Args:
      error: error about the unknown word; the result includes its message.
      argument: as for `check_argument`.
      kinds: known names by part of the argument, or a description of these names.
    """
    # With parentheses, the error is about the options of a mechanism, and a list of names would not
    # help.
    more = "" if "(" in argument else f"; {_expected(argument, kinds)}"
    return UserError(f"config: {error}{more}")


def _expected(argument: str, kinds: Mapping[str, Collection[str] | str]) -> str:
    known = [
        name
        for names in kinds.values()
        if not isinstance(names, str)
        for name in names
        if ":" not in name
    ]
    near = next(filter(None, (_near(word, known) for word in split(argument))), "")
    parts = [
        f"{kind} {names}" if isinstance(names, str) else f"{kind} one of {', '.join(names)}"
        for kind, names in kinds.items()
    ]
    return f"expected {','.join(kinds)} with {' and '.join(parts)}{near}"


def _noun(kind: str) -> str:
    return {"DATA": "a data set", "MODEL": "a model"}.get(kind, f"a name of {kind}")


def _near(word: str, known: Collection[str]) -> str:
    return "" if word.strip() in known else did_you_mean(word.strip(), known)


def _kind(word: str, kinds: Mapping[str, Collection[str]]) -> str | None:
    name = word.partition("(")[0]
    return next((kind for kind, known in kinds.items() if name in known), None)
