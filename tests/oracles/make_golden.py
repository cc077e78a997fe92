"""Writes golden/*.npz: what PyTorch answers to the problems of cases.py.

    python -m tests.oracles.make_golden        # needs requirements-oracles.txt

`make test` compares with these files, so that it needs no PyTorch.
"""

import pathlib

import numpy as np
import torch

from tests.oracles.cases import CASES
from tests.oracles.theirs import theirs

FOLDER = pathlib.Path(__file__).with_name("golden")


def main() -> None:
    made_by = f"tests/oracles/make_golden.py with torch {torch.__version__}"
    for family in ("attend", "multi_head", "gru"):
        arrays = {
            f"{case}/{name}": array
            for case in CASES
            if case.startswith(family)
            for name, array in theirs(case).items()
        }
        np.savez_compressed(FOLDER / f"{family}.npz", made_by=made_by, **arrays)
        print(f"{family}.npz: {len(arrays)} arrays, {made_by}")


if __name__ == "__main__":
    main()
