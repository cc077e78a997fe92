"""Runs `launch.train` and writes number and example ids of every batch to a file.

python -m tests.launch.distributed.numbered FILE FLAGS
"""

import json
import os
import runpy
import sys

from launch.engine import supervision


class Numbered:
    """Iterator that writes the number and the ids of each batch."""

    def __init__(self, batches, path):
        self._batches, self._path = batches, path

    def __next__(self):
        number = self._batches.get_state()["next_index"]
        batch = next(self._batches)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps([number, batch["id"].tolist()]) + "\n")
        return batch

    def __getattr__(self, name):
        return getattr(self._batches, name)


def main(words):
    """Runs the command under a supervisor, as with --distributed, or in this process."""
    path, *flags = words
    distributed = any(word.startswith("--distributed") for word in flags)
    if distributed and not os.environ.get(supervision.SUPERVISED):
        command = [sys.executable, "-m", "tests.launch.distributed.numbered", *words]
        sys.exit(supervision.supervise(command, flags[-1]))
    from launch.engine import loop

    original = loop.train_iterator
    loop.train_iterator = lambda *given, **options: Numbered(original(*given, **options), path)
    sys.argv = ["launch/train.py", *flags]
    runpy.run_module("launch.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
