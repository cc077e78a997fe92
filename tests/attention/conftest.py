"""Quick compilation for all tests of this folder; see `subjects.quick_compilation`."""

import pytest

from tests.attention import subjects


@pytest.fixture(autouse=True)
def _quick_compilation():
    with subjects.quick_compilation():
        yield
