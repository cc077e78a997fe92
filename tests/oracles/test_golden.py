"""Blocks against what other implementations gave (golden/*.npz)."""

import numpy as np
import pytest

from tests.oracles.problems import FOLDER, assert_equal, cases, family


@pytest.mark.parametrize(("name", "case"), cases())
def test_equals_what_they_gave(name, case):
    with np.load(FOLDER / "golden" / f"{name}.npz") as file:
        assert "make_golden.py with torch 2." in str(file["made_by"])
        expected = {
            key.removeprefix(f"{case}/"): file[key]
            for key in file.files
            if key.startswith(f"{case}/")
        }
    assert_equal(family(name).ours(case), expected)
