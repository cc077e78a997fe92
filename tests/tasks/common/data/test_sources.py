"""Sources: order of the fetchers, checksums, damaged files, clients that are missing or hang."""

import gzip
import hashlib
import os
import socket
import stat
import time
import zipfile
from pathlib import Path

import pytest

from tasks.common.data import fetchers
from tasks.common.data.fetchers import NpmPackage, PipPackage, UrlFetcher
from tasks.common.data.paths import Paths
from tasks.common.data.sources import Source, fetch, file_digest
from tasks.common.errors import UserError

GOOD = b"one\ntwo\n"
SHA = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture
def where(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache", tmp_path / "mirror")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def leftovers(where: Paths) -> list[str]:
    return [path.name for path in where.downloads.rglob("*") if path.name.startswith(".")]


def test_default_paths_follow_flags_then_environment(monkeypatch, tmp_path):
    for variable in ("ATTENTION_DATA_DIR", "ATTENTION_CACHE_DIR", "ATTENTION_DATA_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = Paths.default()
    assert paths == Paths(tmp_path / "attention" / "data", tmp_path / "attention", None)
    monkeypatch.setenv("ATTENTION_CACHE_DIR", str(tmp_path / "c"))
    monkeypatch.setenv("ATTENTION_DATA_MIRROR", str(tmp_path / "m"))
    assert Paths.default(data_dir=tmp_path / "d") == Paths(
        tmp_path / "d", tmp_path / "c", tmp_path / "m"
    )
    assert Paths.default(mirror=tmp_path / "n").mirror == tmp_path / "n"


def test_mirror_comes_first_and_is_used_in_place(where):
    mirrored = write(where.mirror / "set/file.txt", GOOD)
    assert fetch(Source("set/file.txt", SHA, ()), where) == mirrored
    assert not where.cache_dir.exists()


def test_damaged_mirror_falls_through_to_the_url_and_then_the_cache_serves(where, tmp_path):
    write(where.mirror / "set/file.txt", b"damaged")
    upstream = write(tmp_path / "upstream/file.txt", GOOD)
    source = Source("set/file.txt", SHA, (UrlFetcher(upstream.as_uri()),))
    got = fetch(source, where)
    assert got == where.downloads / "set/file.txt"
    assert got.read_bytes() == GOOD
    upstream.unlink()
    assert fetch(source, where) == got
    assert leftovers(where) == []


def test_damaged_cache_is_replaced(where, tmp_path):
    write(where.downloads / "set/file.txt", GOOD[:3])
    upstream = write(tmp_path / "upstream/file.txt", GOOD)
    assert (
        fetch(Source("set/file.txt", SHA, (UrlFetcher(upstream.as_uri()),)), where).read_bytes()
        == GOOD
    )


def test_wrong_upstream_bytes_never_reach_the_final_name(where, tmp_path):
    upstream = write(tmp_path / "upstream/file.txt", b"something else")
    with pytest.raises(UserError) as error:
        fetch(Source("set/file.txt", SHA, (UrlFetcher(upstream.as_uri()),)), where)
    wrong = hashlib.sha256(b"something else").hexdigest()[:16]
    assert f"SHA-256 is {wrong}..., expected {SHA[:16]}..." in str(error.value)
    assert not (where.downloads / "set/file.txt").exists()
    assert leftovers(where) == []


def test_the_error_lists_every_fetcher_and_the_remedy_in_one_line(where, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    gone = (tmp_path / "gone.txt").as_uri()
    source = Source(
        "set/file.txt", SHA, (UrlFetcher(gone), NpmPackage("pack", "1.0.0", "pack-1.0.0.tgz"))
    )
    with pytest.raises(UserError) as error:
        fetch(source, where)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        f"mirror {where.mirror}/set/file.txt: not found",
        f"cache {where.downloads}/set/file.txt: not found",
        f"{gone}: [Errno 2] No such file",
        "npm pack pack@1.0.0: npm is not installed",
        f"put the file (SHA-256 {SHA[:16]}...) at {where.downloads}/set/file.txt",
        "ATTENTION_DATA_MIRROR",
    ):
        assert part in message


def test_a_derived_file_is_hashed_by_its_decoded_content(where, tmp_path):
    """Two archives with other bytes and the same content are the same source."""

    def pack(path, level):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", compresslevel=level, compression=zipfile.ZIP_DEFLATED) as z:
            z.writestr("a.txt", GOOD * 100)
        return path

    def content(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                yield archive.read(name)

    stored, squeezed = pack(tmp_path / "0.zip", 0), pack(where.mirror / "set.zip", 9)
    assert file_digest(stored) != file_digest(squeezed)
    sha = hashlib.sha256(GOOD * 100).hexdigest()
    assert file_digest(stored, content) == sha
    assert fetch(Source("set.zip", sha, (), content=content), where) == squeezed
    squeezed.write_bytes(squeezed.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        fetch(Source("set.zip", sha, (), content=content), where)


def test_extract_runs_on_the_downloaded_file(where, tmp_path):
    packed = write(tmp_path / "upstream/file.gz", gzip.compress(GOOD))

    def unpack(fetched, output):
        output.write_bytes(gzip.decompress(fetched.read_bytes()))

    fetcher = UrlFetcher(packed.as_uri(), extract=unpack)
    assert fetch(Source("file.txt", SHA, (fetcher,)), where).read_bytes() == GOOD
    packed.write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be unpacked"):
        fetch(Source("other.txt", SHA, (fetcher,)), where)


def fake_client(folder: Path, name: str, script: str) -> None:
    path = write(folder / name, f"#!/bin/sh\n{script}\n".encode())
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_registry_client_is_called_and_its_archive_kept_for_the_next_source(
    where, tmp_path, monkeypatch
):
    calls = tmp_path / "calls"
    fake_client(
        tmp_path / "bin",
        "npm",
        f'echo "$@" >> {calls}\n'
        'while [ "$1" != "--pack-destination" ]; do shift; done\n'
        'printf "one\\ntwo\\n" > "$2/pack-1.0.0.tgz"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def upper(fetched, output):
        output.write_bytes(fetched.read_bytes().upper())

    fetcher = NpmPackage("pack", "1.0.0", "pack-1.0.0.tgz")
    assert fetch(Source("a.txt", SHA, (fetcher,)), where).read_bytes() == GOOD
    second = NpmPackage("pack", "1.0.0", "pack-1.0.0.tgz", extract=upper)
    sha = hashlib.sha256(GOOD.upper()).hexdigest()
    assert fetch(Source("b.txt", sha, (second,)), where).read_bytes() == GOOD.upper()
    assert len(calls.read_text().splitlines()) == 1
    assert calls.read_text().startswith("pack pack@1.0.0 --loglevel=error")


def test_a_client_that_hangs_is_ended_with_its_children(where, tmp_path, monkeypatch):
    fake_client(tmp_path / "bin", "npm", "sleep 600 &\nwait")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    start = time.monotonic()
    with pytest.raises(UserError, match="not finished after 1 s"):
        fetch(Source("a.txt", SHA, (NpmPackage("p", "1", "p-1.tgz", seconds=1.0),)), where)
    assert time.monotonic() - start < 5


def test_a_client_that_fails_gives_its_reason(where, tmp_path, monkeypatch):
    fake_client(tmp_path / "bin", "npm", 'echo "noise" >&2; echo "E404 not found" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"npm pack p@1: E404 not found"):
        fetch(Source("a.txt", SHA, (NpmPackage("p", "1", "p-1.tgz"),)), where)
    marked = 'echo "npm error code E401" >&2; echo "npm error A log is in x" >&2; exit 1'
    fake_client(tmp_path / "bin", "npm", marked)
    with pytest.raises(UserError, match=r"npm pack p@1: npm error code E401\."):
        fetch(Source("a.txt", SHA, (NpmPackage("p", "1", "p-1.tgz"),)), where)


def test_without_pip_the_fetch_fails(where, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fetchers.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip download p==1: pip is not installed"):
        fetch(Source("a.txt", SHA, (PipPackage("p", "1", "p-1.whl"),)), where)


def test_a_server_that_never_answers_is_left_within_seconds(where, monkeypatch):
    monkeypatch.setattr(fetchers, "_CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # never accepts
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file.txt"
        start = time.monotonic()
        with pytest.raises(UserError, match=r"timed out|no answer"):
            fetch(Source("a.txt", SHA, (UrlFetcher(url),)), where)
        assert time.monotonic() - start < 3


def test_an_unwritable_cache_is_named(tmp_path):
    blocker = write(tmp_path / "blocker", b"")
    paths = Paths(tmp_path / "data", blocker / "cache", None)
    upstream = write(tmp_path / "file.txt", GOOD)
    with pytest.raises(UserError, match=r"cannot write to the cache .*ATTENTION_CACHE_DIR"):
        fetch(Source("a.txt", SHA, (UrlFetcher(upstream.as_uri()),)), paths)
