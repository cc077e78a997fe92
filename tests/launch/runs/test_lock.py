"""The lock of a run directory."""

import pytest

from launch.runs.run import alone
from tasks.common.errors import UserError


def test_a_second_training_is_refused_until_the_first_ends(tmp_path):
    message = "another process is training in this directory; wait"
    with alone(tmp_path), pytest.raises(UserError, match=message), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
