"""Hashes of data: all of it counts, and nothing of the process."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tasks.common.data import digests


@dataclasses.dataclass
class Row:
    name: str
    values: np.ndarray


VALUES = [
    None, 0, 1, -1, True, 0.5, "", "a", "ab", b"a", ["a"], ["a", "b"], [["a"], "b"], [],
    {"a": 1}, {"a": 2}, Row("a", np.zeros(2)), Row("b", np.zeros(2)), np.zeros(2), np.zeros(3),
    np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, np.int64), np.ones(2),
    np.array(["2024-01-01"], "M8[D]"),
]  # fmt: skip


def test_different_values_have_different_codes():
    codes = [digests.code(value) for value in VALUES]
    assert len(set(codes)) == len(VALUES)
    assert all(len(code) == 16 for code in codes)


def test_pieces_cannot_move_over_their_border():
    assert digests.code(["ab", "c"]) != digests.code(["a", "bc"])
    assert digests.code([["a", "b"], []]) != digests.code([["a"], ["b"]])


def test_what_is_no_data_is_an_error():
    with pytest.raises(TypeError, match="got object, expected an array"):
        digests.code([object()])


def test_equal_in_every_process():
    program = (
        "import numpy as np; from tasks.common.data import digests;"
        "print(digests.code([{'b': 1, 'a': ['x', np.arange(3)]}, None, 0.1]).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {digests.code([{"b": 1, "a": ["x", np.arange(3)]}, None, 0.1]).hex()}


def test_order_is_told_apart_from_content():
    rows = digests.of_rows(["a", "b", "c"])
    parts = {"texts": rows, "labels": digests.of_rows([0, 1, 1]), "same": rows}
    now = {"texts": digests.of_rows(["b", "a", "c"]), "labels": digests.of_rows([0, 0, 1]),
           "same": rows, "more": rows}  # fmt: skip
    assert digests.differing(parts, now) == ["texts (order)", "labels", "more"]
    assert digests.differing(parts, dict(parts)) == []
    assert digests.of_rows([]) == digests.of_rows(())


def test_ids_are_of_rows():
    found = digests.ids(["a", "b", "a"], np.array([1, 1, 1]))
    assert found.dtype == np.uint64
    assert found[0] == found[2] != found[1]
    assert digests.ids([], []).shape == (0,)
    with pytest.raises(ValueError, match="zip"):
        digests.ids(["a"], [])
