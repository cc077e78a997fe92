"""The exception for user errors, and messages on standard error about data and settings."""

import contextlib
import contextvars
import sys
from collections.abc import Iterator

_warned: set[str] = set()
_collected: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "collected", default=None
)


class UserError(Exception):
    """A mistake in the user's input, as opposed to a bug in the program.

    The message is one line that names the cause and the remedy. The commands of `launch` print it
    without a traceback and exit with status 2.
    """

    def __str__(self) -> str:
        # Escapes line ends, which file names and field values may contain.
        return super().__str__().replace("\r", "\\r").replace("\n", "\\n")


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collects the messages of `say` and `warn_once` within the context in a list, without repeats.

    The list also includes warnings that are not printed because the process has printed them
    before. Therefore a summary of the data contains all of its warnings.
    """
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def say(message: str) -> None:
    """Prints a line on standard error."""
    _note(message)
    print(message, file=sys.stderr, flush=True)


def _note(message: str) -> None:
    found = _collected.get()
    if found is not None and message not in found:
        found.append(message)


def warn_once(message: str, key: str | None = None) -> None:
    """Prints a line on standard error, unless the process has printed it before.

    Args:
      message: the line.
      key: key of the message; later messages with the same key are not printed. None for the
        message itself as the key.
    """
    _note(message)
    key = message if key is None else key
    if key not in _warned:
        _warned.add(key)
        print(message, file=sys.stderr, flush=True)


def check_max_length(
    longest: int | None, needed: int, reason: str, key: str = "config.model.max_length"
) -> None:
    """Checks that a model supports sequences of a given length.

    Args:
      longest: `max_length` of the model; None for a model without a limit.
      needed: length of the longest sequence.
      reason: description of `needed`, which ends the message.
      key: config key of `longest`.

    Raises:
      UserError: `longest` is below `needed`.
    """
    if longest is not None and longest < needed:
        raise UserError(f"{key}: got {longest}, expected at least {needed}, {reason}")
