"""Files that are changed at random: the right result, or one line that names the file."""

import random
import re

import pytest

from tasks.common import errors
from tasks.common.errors import UserError
from tests.tasks.fuzz.subjects import SUBJECTS

CASES = 300
QUICK = 12


def check(name, folder, seed, capsys, monkeypatch, expected):
    """Reads one changed file. Returns whether it was refused."""
    monkeypatch.setattr(errors, "_warned", set())
    subject, rng = SUBJECTS[name], random.Random(f"{name} {seed}")
    case = subject.make(rng, folder)
    told = f"{name}, seed {seed}: {case.done}"
    capsys.readouterr()
    try:
        found = subject.read(case.path)
    except UserError as error:
        message = str(error)
        assert not case.same, f"{told}: refused what means the same: {message}"
        assert len(message.splitlines()) == 1, f"{told}: {message!r}"
        assert len(message) < 2000, f"{told}: {message[:200]}"
        names = {case.path.name, *(path.name for path in folder.rglob("*"))}
        assert str(folder) in message or any(each in message for each in names), (
            f"{told}: names no file: {message}"
        )
        return True
    printed = capsys.readouterr().err
    if case.same:
        if found != expected:
            pytest.fail(f"{told}: {list(found - expected)[:2]} for {list(expected - found)[:2]}")
        assert not re.search("(lines|rows|pairs) .*left out|skipped", printed), f"{told}: {printed}"
    elif case.records is not None and sum(found.values()) < case.records:
        assert printed, f"{told}: {sum(found.values())} of {case.records} records, and no message"
    return False


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_few_changed_files(name, tmp_path, capsys, monkeypatch):
    run(name, range(QUICK), tmp_path, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_changed_files(name, tmp_path, capsys, monkeypatch):
    refused = run(name, range(QUICK, CASES), tmp_path, capsys, monkeypatch)
    # Both happen: a test that refuses, or reads, everything would say nothing.
    assert 0.1 < refused / (CASES - QUICK) < 0.9


def run(name, seeds, tmp_path, capsys, monkeypatch):
    """Reads the valid file, then one changed file per seed. Returns how many were refused."""
    folder = tmp_path / "valid"
    folder.mkdir()
    case = SUBJECTS[name].make(None, folder)
    expected = SUBJECTS[name].read(case.path)
    assert sum(expected.values()) == case.records
    refused = 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        refused += check(name, folder, seed, capsys, monkeypatch, expected)
    return refused
