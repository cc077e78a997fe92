"""Directories of data sets, downloads and fitted tokenizers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def _folder(given: str | os.PathLike | None, variable: str) -> Path | None:
    value = given or os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None


@dataclass(frozen=True)
class Paths:
    """Directories that the data code reads and writes.

    Attributes:
      data_dir: directory of prepared TFDS data sets.
      cache_dir: parent of downloads/, tokenizers/ and baselines/.
      mirror: directory with copies of the pinned files, or None.
    """

    data_dir: Path
    cache_dir: Path
    mirror: Path | None = None

    @classmethod
    def default(
        cls,
        data_dir: str | os.PathLike | None = None,
        cache_dir: str | os.PathLike | None = None,
        mirror: str | os.PathLike | None = None,
    ) -> Paths:
        """Returns the given directories, with defaults from environment variables.

        cache_dir: ATTENTION_CACHE_DIR, else attention/ under XDG_CACHE_HOME or ~/.cache.
        data_dir: ATTENTION_DATA_DIR, else data/ under the cache.
        mirror: ATTENTION_DATA_MIRROR, else none.
        """
        cache = _folder(cache_dir, "ATTENTION_CACHE_DIR")
        if cache is None:
            home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            cache = Path(home).expanduser().absolute() / "attention"
        data = _folder(data_dir, "ATTENTION_DATA_DIR") or cache / "data"
        return cls(data, cache, _folder(mirror, "ATTENTION_DATA_MIRROR"))

    @property
    def downloads(self) -> Path:
        """Directory of downloaded files, each named after its source."""
        return self.cache_dir / "downloads"
