"""The error for mistakes of the user, and warnings on standard error."""

import sys

_warned: set[str] = set()


class UserError(Exception):
    """A mistake in the user's input, as opposed to one in the program.

    The message is one line that names the cause and the remedy. The commands of `launch` print it
    without a traceback and exit with status 2.
    """

    def __str__(self) -> str:
        # File names and values of fields may contain line ends.
        return super().__str__().replace("\r", "\\r").replace("\n", "\\n")


def warn_once(message: str, key: str | None = None) -> None:
    """Prints a line on standard error, once per process, because files are read several times.

    Args:
      message: the line.
      key: a later message with this key is not printed; the message itself if None.
    """
    key = message if key is None else key
    if key not in _warned:
        _warned.add(key)
        print(message, file=sys.stderr, flush=True)


def check_max_length(
    longest: int | None, needed: int, reason: str, key: str = "config.model.max_length"
) -> None:
    """Checks that a model holds sequences of a length.

    Args:
      longest: its `max_length`; None for a model without a limit.
      needed: length of the longest sequence.
      reason: its origin, for the message.
      key: config key of `longest`.

    Raises:
      UserError: it does not.
    """
    if longest is not None and longest < needed:
        raise UserError(f"{key}: got {longest}, expected at least {needed}, {reason}")
