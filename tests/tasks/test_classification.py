"""A classifier's answers."""

import numpy as np

from tasks.classification import classes_by_probability


def test_most_probable_first_and_the_first_of_equals():
    probabilities = np.array([[0.25, 0.5, 0.25], [0.4, 0.2, 0.4]])
    answers = classes_by_probability(["x", "y"], probabilities, ["a", "b", "c"], shown=2)
    assert [answer["label"] for answer in answers] == ["b", "a"]
    assert list(answers[0]["probabilities"].items()) == [("b", 0.5), ("a", 0.25), ("c", 0.25)]
    assert answers[0]["text"] == "b  b 0.5000  a 0.2500"
    assert answers[1]["input"] == "y"
    assert classes_by_probability([], np.zeros((0, 3)), ["a", "b", "c"]) == []
