"""attend, MultiHeadAttention and GRU against what PyTorch gave (golden/*.npz)."""

import pathlib

import numpy as np
import pytest

from tests.oracles.cases import CASES, TOLERANCE, ours

FOLDER = pathlib.Path(__file__).with_name("golden")


def golden(case):
    family = next(f for f in ("attend", "multi_head", "gru") if case.startswith(f))
    with np.load(FOLDER / f"{family}.npz") as file:
        assert "make_golden.py with torch 2." in str(file["made_by"])
        return {
            name.removeprefix(f"{case}/"): file[name]
            for name in file.files
            if name.startswith(f"{case}/")
        }


@pytest.mark.parametrize("case", CASES)
def test_equals_what_torch_gave(case):
    expected, actual = golden(case), ours(case)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, **TOLERANCE, err_msg=name)
