"""Writes golden/*.npz: what other implementations answer to the problems of families/.

    python -m tests.oracles.make_golden [family ...]        # needs requirements-oracles.txt

`make test` compares with these files, so that it needs none of them. Without a name it writes those
of all families that can be asked live; the others say in their docstrings what they need.
"""

import importlib.metadata
import sys

import numpy as np

from tests.oracles.problems import FAMILIES, FOLDER, family, is_live

PACKAGES = ("torch", "transformers")


def main(names: list[str]) -> None:
    for name in names or filter(is_live, FAMILIES):
        module = family(name)
        packages = (*getattr(module, "PACKAGES", PACKAGES), "jax")
        versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
        made_by = f"tests/oracles/make_golden.py with {versions}"
        arrays = {
            f"{case}/{key}": array
            for case in module.CASES
            for key, array in module.theirs(case).items()
        }
        np.savez_compressed(FOLDER / "golden" / f"{name}.npz", made_by=made_by, **arrays)
        print(f"{name}.npz: {len(arrays)} arrays, {made_by}")


if __name__ == "__main__":
    main(sys.argv[1:])
