"""Blocks against other implementations, live."""

import pytest

from tests.oracles.problems import assert_equal, cases, family


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "case"), cases(live=True))
def test_equals_them(name, case):
    # A missing PyTorch is an error here, not a skip.
    assert_equal(family(name).ours(case), family(name).theirs(case))
