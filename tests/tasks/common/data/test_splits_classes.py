"""Warnings about classes name these classes."""

from tasks.common.data.splits import SplitSummary, alike, check_splits


def test_a_class_that_train_lacks_is_named(capsys):
    train = SplitSummary(3, {"cat": 2, "dog": 1, "cow": 0}, "objects")
    test = SplitSummary(3, {"cat": 0, "dog": 1, "cow": 4}, "objects")
    check_splits("here", {"train": train, "validation": train, "test": test})
    assert capsys.readouterr().err == (
        "here: the train split has no objects of cow, but the test split has some; a model cannot "
        "learn classes that are missing in the train split\n"
    )


def test_classes_that_look_alike_are_named_once(capsys):
    names = {"pos": 2, "Pos ": 1, "caf\u00e9": 3, "cafe\u0301": 1, "neg\u200f": 1, "neg": 1, "x": 1}
    split = SplitSummary(10, names)
    for where in ("a.csv", "config.data"):
        check_splits(where, {"train": split, "validation": split, "test": split})
    end = " differ only in case, spaces or invisible characters; they count as different classes"
    assert capsys.readouterr().err.splitlines() == [
        f"a.csv: classes 'pos' and 'Pos '{end}",
        f"a.csv: classes 'caf\\xe9' and 'cafe\\u0301'{end}",
        f"a.csv: classes 'neg\\u200f' and 'neg'{end}",
    ]
    assert alike("cafe\u0301", ["caf\u00e9", "x"]) == "; 'cafe\\u0301' is not 'caf\\xe9'"
    assert alike("y", ["x"]) == ""


def test_signs_of_missing_labels_are_named(capsys):
    train = SplitSummary(9, {"\\N": 4, "NULL": 0, "none": 5})
    test = SplitSummary(3, {"\\N": 1, "none": 2})
    check_splits("b.csv", {"train": train, "validation": test, "test": test})
    assert capsys.readouterr().err == (
        "b.csv: 6 labels are \\N, which counts as a class; remove these examples if they "
        "have no label\n"
    )
