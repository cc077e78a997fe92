"""Options of the server: batching, limits and access."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from launch.exports.reader import Export, InputError
from tasks.common.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the server.

    Attributes:
      max_batch: maximum number of rows in a batch, a power of two. A program has smaller batches if
        the server measures, at its start, that larger batches are not faster per row.
      max_wait_ms: milliseconds that a row waits for its batch to fill, if other inputs are being
        read or answered.
      max_queue: maximum number of inputs, per model, that are accepted and not yet answered.
      timeout_s: seconds after which an unanswered request fails.
      client_timeout_s: seconds that a client has to send the headers, and again to send the body.
      max_body_bytes: maximum size of the body of a request, in bytes.
      max_text: maximum number of characters of a text.
      max_pixels: maximum number of pixels of an image.
      max_sound_s: maximum duration of a recording in seconds.
      max_cells: maximum number of cells of a table.
      token: bearer token that requests must have, except requests for the page and for health
        checks; empty if no token is needed.
      cors_origin: origin whose pages may send requests (CORS); empty to allow none.
    """

    max_batch: int = 16
    max_wait_ms: float = 2.0
    max_queue: int = 256
    timeout_s: float = 30.0
    client_timeout_s: float = 30.0
    max_body_bytes: int = 16 * 2**20
    max_text: int = 100_000
    max_pixels: int = 40_000_000
    max_sound_s: float = 120.0
    max_cells: int = 500_000
    token: str = ""
    cors_origin: str = ""

    def __post_init__(self) -> None:
        """Checks the requirements on the options that the types of the flags do not ensure.

        Raises:
          UserError: a flag has a wrong value.
        """
        if self.max_batch < 1 or self.max_batch & (self.max_batch - 1):
            raise UserError(f"--max_batch={self.max_batch}: expected a power of two, such as 16")
        if self.max_queue < self.max_batch:
            raise UserError(
                f"--max_queue={self.max_queue}: expected at least --max_batch={self.max_batch}"
            )
        if self.cors_origin and not _ORIGIN.fullmatch(self.cors_origin):
            raise UserError(
                f"--cors_origin={self.cors_origin}: expected an origin, such as https://example.org"
            )
        if not self.token.isprintable() or " " in self.token:
            raise UserError(
                "--token: has a space or a control character, expected printable characters only"
            )

    @property
    def batch_sizes(self) -> list[int]:
        """Batch sizes for which programs are compiled, ascending."""
        return [1 << power for power in range(self.max_batch.bit_length())]


def read_exports(given: Sequence[str]) -> dict[str, Export]:
    """Reads the exports given by --export.

    Args:
      given: values FOLDER or NAME=FOLDER.

    Returns:
      Exports by model name, which is NAME or the name of the folder.

    Raises:
      UserError: a folder is missing or contains no export, or two exports have the same name.
    """
    if not given:
        raise UserError("--export is missing, for example --export=exported")
    found: dict[str, Export] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or Path(one).expanduser().is_dir():
            folder = one
            name = Path(folder).expanduser().resolve().name
        if not _NAME.fullmatch(name):
            raise UserError(
                f"--export={one}: got the name {name!r}, expected letters, digits and .-_; "
                "write --export=NAME=FOLDER"
            )
        if name in found:
            raise UserError(
                f"--export={one}: a model is already called {name}; write --export=NAME=FOLDER"
            )
        try:
            found[name] = Export(Path(folder).expanduser())
        except InputError as error:
            raise UserError(f"--export={one}: {error}") from None
        for files in found[name].signature["programs"].values():
            for entry in files:
                if not (found[name].folder / entry["file"]).is_file():
                    raise UserError(f"--export={one}: {entry['file']} is missing; export again")
    return found
