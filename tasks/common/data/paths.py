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
        """Returns the directories, with a default for each one that is not given.

        Args:
          data_dir: see `Paths`. Default: the environment variable ATTENTION_DATA_DIR, or else data/
            under cache_dir.
          cache_dir: see `Paths`. Default: ATTENTION_CACHE_DIR, or else attention/ under
            XDG_CACHE_HOME or ~/.cache.
          mirror: see `Paths`. Default: ATTENTION_DATA_MIRROR, or else None.
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
