"""Numbers of a column: decimal marks, thousands, and columns that are refused or are texts."""

import numpy as np
import pytest

from tasks.forecasting.numbers import Convention, NumberError, grouped_by_points, read_numbers

n = np.nan


@pytest.mark.parametrize(
    ("cells", "values", "convention"),
    [
        (["1.5", "2", "", "1e3", "inf"], [1.5, 2, n, 1000, n], None),
        (["1,234.5", "2,345.0", "12"], [1234.5, 2345, 12], Convention(".", ",")),
        (["1.234,5", "2.345", "12"], [1234.5, 2345, 12], Convention(",", ".")),
        (["1,5", "-2,25", "NA", "3"], [1.5, -2.25, n, 3], Convention(",", "")),
        (["0,123", "1,234"], [0.123, 1.234], Convention(",", "")),
        (["1,234,567", "5"], [1234567, 5], Convention(".", ",")),
        (["1 234,5", "6"], [1234.5, 6], Convention(",", " ")),
        (["1\u00a0234", "1\u202f234.5"], [1234, 1234.5], Convention(".", " ")),
        (["1'234", "1\u2019234.5"], [1234, 1234.5], Convention(".", "'")),
        (["12,34,567.5"], [1234567.5], Convention(".", ",")),
        (["\u22125,5", "1,5E+03"], [-5.5, 1500], Convention(",", "")),
    ],
)
def test_one_convention_is_found_for_a_column(cells, values, convention):
    found = read_numbers(cells)
    np.testing.assert_array_equal(found.values, values)
    assert (found.convention and found.convention.decimal) == (convention and convention.decimal)
    if convention and convention.separator:
        assert found.convention.separator == convention.separator


def test_two_readings_are_refused_unless_the_mark_is_known():
    cells = ["5", "1,234", "2,500"]
    with pytest.raises(NumberError, match=r"1\.234 or 1234") as caught:
        read_numbers(cells)
    assert caught.value.two_readings
    assert caught.value.index == 1
    for option in ("decimal", "likely"):
        assert read_numbers(cells, **{option: ","}).values.tolist() == [5, 1.234, 2.5]
        assert read_numbers(cells, **{option: "."}).values.tolist() == [5, 1234, 2500]
    # A point between thousands, for who knows it.
    assert read_numbers(["1.234"]).values == 1.234
    assert read_numbers(["1.234"], decimal=",").values == 1234
    assert read_numbers(["1.234"], likely=",").values == 1234
    assert read_numbers(["1.5"], likely=",").values == 1.5
    with pytest.raises(NumberError):
        read_numbers(["1.5"], decimal=",")
    assert grouped_by_points(["5", "1.234"]) == 1
    assert grouped_by_points(["1.234", "1.5"]) is None


@pytest.mark.parametrize(
    ("cells", "index", "is_text"),
    [
        (["1,5", "2.5", "3,5"], 1, False),
        (["5 %", "6 %", "7 %"], 0, False),
        (["€5", "€6"], 0, False),
        (["3.5 kg", "4 kg", "x"], 0, False),
        (["1", "2", "x"], 2, False),
        (["<0.1", "5"], 0, False),
        (["A12", "A13", "5"], 0, True),
        (["true", "false"], 0, True),
        (["2024-01-01", "2024-01-02"], 0, True),
        (["12:30", "12:31"], 0, True),
        (["10.0.0.1", "10.0.0.2"], 0, True),
    ],
)
def test_mostly_numbers_are_refused_and_texts_are_left_out(cells, index, is_text):
    with pytest.raises(NumberError) as caught:
        read_numbers(cells)
    assert (caught.value.index, caught.value.is_text) == (index, is_text)
