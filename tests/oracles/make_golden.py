"""Writes golden/*.npz: what other implementations answer to the problems of families/.

    python -m tests.oracles.make_golden [family ...]        # needs requirements-oracles.txt

`make test` compares with these files, so that it needs none of them.
"""

import importlib.metadata
import sys

import numpy as np

from tests.oracles.problems import FAMILIES, FOLDER, family


def main(names: list[str]) -> None:
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "transformers", "jax")
    )
    made_by = f"tests/oracles/make_golden.py with {versions}"
    for name in names or FAMILIES:
        module = family(name)
        arrays = {
            f"{case}/{key}": array
            for case in module.CASES
            for key, array in module.theirs(case).items()
        }
        np.savez_compressed(FOLDER / "golden" / f"{name}.npz", made_by=made_by, **arrays)
        print(f"{name}.npz: {len(arrays)} arrays, {made_by}")


if __name__ == "__main__":
    main(sys.argv[1:])
