"""attend, MultiHeadAttention and GRU against PyTorch, live."""

import numpy as np
import pytest

from tests.oracles.cases import CASES, TOLERANCE, ours


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case):
    # Inside, so that collecting needs no PyTorch; a missing one is an error here, not a skip.
    from tests.oracles.theirs import theirs

    expected, actual = theirs(case), ours(case)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, **TOLERANCE, err_msg=name)
