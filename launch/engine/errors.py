"""Interrupts and operating system errors, which end a command but are not bugs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# Exit status after SIGTERM: 128 plus its number, as for a process that the signal killed.
# Schedulers can requeue jobs with this status, see docs/RELIABILITY.md.
REQUEUED = 128 + int(signal.SIGTERM)


class Interrupted(Exception):
    """Raised after a signal has interrupted training and a checkpoint has been saved."""

    def __init__(self, step: int, signal_number: int):
        """Initializes the error from the number of finished steps and the number of the signal."""
        super().__init__(f"stopped after step {step}; the same command resumes from there")
        self.signal_number = signal_number


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM outside of training, when there is nothing to save."""


def signal_of(stopped: KeyboardInterrupt) -> int:
    """Returns the number of the signal that caused an exception."""
    return int(signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM raise `Terminated` within the context; a second SIGTERM kills the process."""

    def terminate(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        # Signals are handled in the main thread only.
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_interrupts() -> None:
    """Installs a hook that raises an interrupt again if it occurs where Python ignores exceptions.

    Python passes exceptions in destructors and in callbacks of weak references to
    `sys.unraisablehook`, and the program continues.
    """
    earlier = sys.unraisablehook

    def again(failure: Any) -> None:
        if not isinstance(failure.exc_value, KeyboardInterrupt):
            earlier(failure)
            return
        thread = threading.main_thread().ident
        kind = ctypes.py_object(type(failure.exc_value))
        # The delay lets the callback return first.
        timer = threading.Timer(
            0.01, ctypes.pythonapi.PyThreadState_SetAsyncExc, [ctypes.c_ulong(thread or 0), kind]
        )
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again


# Error codes of the operating system that are not bugs of this program.
_REASONS = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOTDIR",
        "EISDIR", "EIO", "EMFILE", "ENFILE", "ELOOP", "ESTALE", "ENODEV", "EXDEV", "ENOENT",
    )
    if hasattr(errno, name)
)  # fmt: skip
# An ENOENT in the `__context__` of an error was often handled, and is then not its cause.
_REASONS_OF_CONTEXT = _REASONS - {errno.ENOENT}
# TensorStore, which writes the arrays of checkpoints, reports errors as text.
_IN_TEXT = re.compile(r"os_error_code='?(\d+)|\[OS error (\d+)")
# Patterns for the path in such a text: that of the file, or else that of its directory.
_PATH_IN_TEXT = (re.compile(r'Failed writing: "([^"]+)"'), re.compile(r'local file "([^"]+)"'))


def system_error(error: BaseException) -> str | None:
    """Returns 'PATH: reason' if an error of the operating system caused an exception.

    Args:
      error: any exception. Its causes, contexts and members of exception groups are searched too,
        because libraries that write in threads raise other exceptions from the system error.

    Returns:
      One line that names the path, if known, and the reason; None for any other exception.
    """
    for found, reasons in _chain(error, _REASONS):
        if isinstance(found, OSError) and found.errno in reasons:
            names = [os.fsdecode(name) for name in (found.filename, found.filename2)
                     if isinstance(name, str | bytes | os.PathLike)]  # fmt: skip
            # Long names are shortened to keep the line readable.
            where = " to ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names)
            reason = found.strerror or os.strerror(found.errno)
            return f"{where}: {reason}" if where else reason
        if isinstance(found, RuntimeError) and "determine home directory" in str(found):
            return "a path begins with ~: no home directory is known; write out the full path"
        if not isinstance(found, OSError) and (code := _IN_TEXT.search(str(found))):
            number = int(code[1] or code[2])
            if number in reasons:
                paths = (pattern.search(str(found)) for pattern in _PATH_IN_TEXT)
                where = next((f"{path[1]}: " for path in paths if path), "")
                return f"{where}{os.strerror(number)}"
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, and recursively its cause or context and members of its group."""
    yield from (found for found, _ in _chain(error, _REASONS))


def _chain(
    error: BaseException | None, reasons: frozenset[int]
) -> Iterator[tuple[BaseException, frozenset[int]]]:
    seen: set[int] = set()
    waiting = [(error, reasons)]
    while waiting:
        found, reasons = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found, reasons
        waiting += [(part, reasons) for part in getattr(found, "exceptions", ())]
        if found.__cause__ is not None:
            waiting.append((found.__cause__, reasons))
        elif not found.__suppress_context__:
            waiting.append((found.__context__, _REASONS_OF_CONTEXT))
