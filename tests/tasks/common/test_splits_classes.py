"""Classes of validation or test that train lacks are named."""

from tasks.common.splits import SplitSummary, check_splits


def test_a_class_that_train_lacks_is_named(capsys):
    train = SplitSummary(3, {"cat": 2, "dog": 1, "cow": 0}, "objects")
    test = SplitSummary(3, {"cat": 0, "dog": 1, "cow": 4}, "objects")
    check_splits("here", {"train": train, "validation": train, "test": test})
    assert capsys.readouterr().err == (
        "here: the train split has no objects of cow, but the test split has; a model cannot learn "
        "a class that train lacks\n"
    )
