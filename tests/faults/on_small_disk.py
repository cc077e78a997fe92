"""Trains on a small or read-only file system of its own: SIZE, SOURCE, TARGET, then a command.

SOURCE is copied to the file system before, TARGET receives its files afterwards. @ in the words of
the command is the mounted folder; a size of "ro" mounts it read-only.
"""

import atexit
import ctypes
import os
import runpy
import shutil
import sys
import tempfile

MS_RDONLY, MS_REMOUNT = 1, 32


def mount(folder: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)


def main() -> None:
    size, source, target, *words = sys.argv[1:]
    folder = tempfile.mkdtemp()
    mount(folder, 0, "size=64m" if size == "ro" else f"size={size}")
    if source != "-":
        shutil.copytree(source, folder, dirs_exist_ok=True)
    if size == "ro":
        mount(folder, MS_REMOUNT | MS_RDONLY, "")
    # The file system disappears with the process.
    atexit.register(shutil.copytree, folder, target, dirs_exist_ok=True)
    sys.argv = [word.replace("@", folder) for word in words]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
