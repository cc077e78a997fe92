"""Compilation of C++ sources on first use, for the CPU of the host."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile

import jax
from absl import logging
from jax.interpreters import mlir

_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-w"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)


_SOURCES = pathlib.Path(__file__).with_name("source")


@functools.cache
def register_targets(main: str, names: tuple[str, ...], macros: tuple = ()) -> None:
    """Compiles a C++ file and registers its functions with XLA.

    Args:
      main, macros: as for `load_library`, with the folder source/.
      names: names of the functions.
    """
    library = load_library(_SOURCES, main, macros)
    for name in names:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def can_register(
    context: mlir.LoweringRuleContext, main: str, names: tuple[str, ...], macros: tuple = ()
) -> bool:
    """Registers C++ functions if the program that is being lowered can call them.

    Args:
      context: context of the lowering rule.
      main, names, macros: as for `register_targets`.

    Returns:
      True if they are registered. The program must run on one CPU of this host and must not be
      exported, and a compiler is needed.
    """
    module = context.module_context
    # Over several devices, XLA can partition only its own operations.
    if getattr(module.axis_context, "num_devices", None) != 1 or module.platforms != ("cpu",):
        return False
    # An exported program may run on another host, without these sources.
    if module.lowering_parameters.for_export:
        return False
    try:
        register_targets(main, names, macros)
    except NotImplementedError:
        return False
    return True


def load_library(
    folder: pathlib.Path, main: str, macros: tuple[tuple[str, int], ...]
) -> ctypes.CDLL:
    """Loads a shared library of C++ sources; it is compiled once per host and cached on disk.

    Args:
      folder: folder of the sources.
      main: file that includes the others.
      macros: names and values of preprocessor macros.

    Raises:
      NotImplementedError: there is no compiler, or compilation failed; the message quotes the first
        error.
    """
    found = _try_load(folder, main, macros)
    if isinstance(found, str):
        raise NotImplementedError(found)
    return found


@functools.cache
def _try_load(folder: pathlib.Path, main: str, macros: tuple) -> ctypes.CDLL | str:
    """Returns the library, or the reason why it cannot be loaded.

    Failures are cached like libraries, so compilation is not tried again.
    """
    try:
        return _load(folder, main, macros)
    except NotImplementedError as error:
        return str(error)


def _load(folder: pathlib.Path, main: str, macros: tuple) -> ctypes.CDLL:
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        found = f"; CXX={named!r} is not found" if named else ""
        raise NotImplementedError(f"needs a C++ compiler (g++, or the one that CXX names){found}")
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    command = [*compiler, *_FLAGS, native, f"-I{jax.ffi.include_dir()}"]
    command += [f"-D{name}={number}" for name, number in macros]
    path = _cache() / f"{pathlib.Path(main).stem}-{_fingerprint(folder, compiler, command)}.so"
    if not path.exists():
        _compile([*command, str(folder / main)], path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotImplementedError(f"{path} cannot be loaded ({error}); delete the file") from None


def find_compiler() -> list[str] | None:
    """Returns the C++ compiler with its arguments, or None if there is none.

    The compiler is that of the environment variable CXX (such as "ccache g++"), else g++ or c++.
    """
    named = os.environ.get("CXX", "").strip()
    try:
        # CXX may be the path of a program with spaces, which must not be split.
        words = [named] if shutil.which(named) else shlex.split(named)
    except ValueError:  # an unclosed quotation mark
        return None
    for first, *arguments in [words] if words else [["g++"], ["c++"]]:
        if path := shutil.which(first):
            return [path, *arguments]
    return None


def _compile(command: list[str], path: pathlib.Path) -> None:
    logging.info("compiling %s", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may compile at once: each writes its own file.
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".so")
        os.close(handle)
    except OSError as error:
        raise NotImplementedError(f"{path.parent} cannot be written ({error})") from None
    try:
        done = subprocess.run([*command, "-o", name], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.splitlines()
            reason = next((line for line in lines if "error" in line), "no error message")
            raise NotImplementedError(f"{command[0]} failed: {reason}")
        os.replace(name, path)
    except OSError as error:
        raise NotImplementedError(f"{command[0]} cannot be run ({error})") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _cache() -> pathlib.Path:
    """Returns the folder of compiled libraries.

    It is inside the cache folder that tasks/common/data/paths.py defines.
    """
    own = os.environ.get("ATTENTION_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(own or f"{home}/attention").expanduser() / "compiled"


def _fingerprint(folder: pathlib.Path, compiler: list[str], command: list[str]) -> str:
    """Returns a hash of all inputs of the compilation: sources, compiler, flags and processor."""
    digest = hashlib.sha256(" ".join(command).encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".h", ".cc"):
            digest.update(file.read_bytes())
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=False)
    except OSError as error:
        raise NotImplementedError(f"{compiler[0]} cannot be run ({error})") from None
    digest.update(version.stdout)
    digest.update(_processor().encode())
    digest.update(jax.lib.__version__.encode())  # pyright: ignore[reportPrivateImportUsage] public
    return digest.hexdigest()[:16]


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kept = ("model name", "flags", "Features", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
    return platform.processor()
