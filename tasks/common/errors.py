"""The exception for user errors, and warnings on standard error."""

import sys

_warned: set[str] = set()


class UserError(Exception):
    """A mistake in the user's input, as opposed to a bug in the program.

    The message is one line that names the cause and the remedy. The commands of `launch` print it
    without a traceback and exit with status 2.
    """

    def __str__(self) -> str:
        # Escapes line ends, which file names and field values may contain.
        return super().__str__().replace("\r", "\\r").replace("\n", "\\n")


def warn_once(message: str, key: str | None = None) -> None:
    """Prints a line on standard error only once per process, as files are read several times.

    Args:
      message: the line.
      key: later messages with the same key are not printed; None for the message itself.
    """
    key = message if key is None else key
    if key not in _warned:
        _warned.add(key)
        print(message, file=sys.stderr, flush=True)


def check_max_length(
    longest: int | None, needed: int, reason: str, key: str = "config.model.max_length"
) -> None:
    """Checks that a model supports sequences of a length.

    Args:
      longest: `max_length` of the model; None for a model without a limit.
      needed: length of the longest sequence.
      reason: reason for `needed`, which ends the message.
      key: config key of `longest`.

    Raises:
      UserError: `longest` is below `needed`.
    """
    if longest is not None and longest < needed:
        raise UserError(f"{key}: got {longest}, expected at least {needed}, {reason}")
