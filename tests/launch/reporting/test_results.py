"""Run files, and the tables generated from them."""

import copy
import json
from pathlib import Path

import pytest

from launch.engine.config import task_class
from launch.reporting import formatting, results
from launch.reporting.formatting import mean_and_spread, show
from launch.reporting.insertion import insert_models, insert_summary
from launch.reporting.results import load_records, save_record
from launch.reporting.tables import results_markdown, summary_table
from tasks.common.errors import UserError

RECORD = {
    "task": "text_classification",
    "data": "sst2",
    "experiment": "attention_pooling",
    "seed": 0,
    "split": "test",
    "metrics": {"accuracy": 0.8, "macro_f1": 0.79, "mcc": 0.6},
    "validation": {"accuracy": 0.82},
    "baselines": {"nb_svm": {"accuracy": 0.81, "macro_f1": 0.8, "mcc": 0.61}},
    "settings": {},
    "parameters": 1234,
    "selected_by": "validation accuracy",
    "steps": 100,
    "seconds": 10.0,
    "device": "cpu x1",
    "command": "python -m launch.train --config=x",
    "commit": "0123456789abcdef",
    "versions": {},
}


def seeded(seed: int, accuracy: float) -> dict:
    record = copy.deepcopy(RECORD)
    record["seed"], record["metrics"]["accuracy"] = seed, accuracy
    return record


def test_a_changed_result_is_named(tmp_path):
    results.save_result(RECORD, tmp_path)
    path = tmp_path / "result.json"
    assert results.load_result(path) == RECORD
    path.write_text(path.read_text().replace(": 0.", ": 1.", 1))
    with pytest.raises(UserError, match=r"result\.json: is damaged \(it has changed since"):
        results.load_result(path)


def test_mean_and_spread_by_hand():
    mean, spread = mean_and_spread([0.8, 0.82, 0.84])
    assert mean == pytest.approx(0.82)
    assert spread == pytest.approx(0.02)
    assert mean_and_spread([0.5]) == (0.5, 0.0)


def test_table_from_saved_files(tmp_path):
    for seed, accuracy in enumerate([0.8, 0.82, 0.84]):
        path = save_record(seeded(seed, accuracy), tmp_path)
        assert path == tmp_path / f"text_classification/sst2/attention_pooling/{seed}.json"
    text = results_markdown(load_records(tmp_path))
    assert "## text_classification: sst2" in text
    assert "| attention_pooling | 0.8200 ± 0.0200 |" in text
    assert "| baseline nb_svm | 0.8100 |" in text
    assert "0, 1, 2" in text
    assert "`python -m launch.train --config=x`" in text


def test_gains_over_baselines_that_tell_of_each_example(tmp_path, capsys):
    for seed, gain in enumerate([0.01, 0.03]):
        record = seeded(seed, 0.8)
        record["baselines"] |= {
            "majority": {"accuracy": 0.5, "gain": 0.3, "gain_95": 0.1},
            "naive_bayes": {"accuracy": 0.78, "gain": gain, "gain_95": 0.02},
        }
        save_record(record, tmp_path)
    text = results_markdown(load_records(tmp_path))
    assert "| gain over | majority | naive_bayes |" in text
    assert "| attention_pooling | +0.3000 ± 0.1000 | +0.0200 ± 0.0200 |" in text
    show(record, ["accuracy"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "+0.0300 [+0.0100, +0.0500]" in shown
    assert "this model minus baseline" in shown


def test_differences_have_the_sign_of_the_metric():
    record = seeded(0, 0.8)
    record["baselines"] = {
        "repeat": {"mse": 0.5, "gain": 0.1, "gain_95": 0.02},
        "ridge": {"mse": 0.3, "gain": -0.1, "gain_95": 0.02},
        "nlinear": {"mse": 0.39, "gain": -0.01, "gain_95": 0.02},
        "other": {"mse": 0.4},
    }
    # A gain is positive if the model is better, so the error of the model is then smaller.
    assert formatting.format_differences({**record, "task": "forecasting"}) == {
        "repeat": "-0.1000 [-0.1200, -0.0800]",
        "ridge": "+0.1000 [+0.0800, +0.1200]",
        "nlinear": "+0.0100 [-0.0100, +0.0300]",
    }
    verdicts = {"repeat": "better", "ridge": "worse", "nlinear": "no clear difference"}
    assert formatting.verdicts(record) == verdicts


def test_empty_columns_are_left_out():
    record = seeded(0, 0.8)
    assert formatting.measured(record, ["accuracy", "mask_ap"]) == ["accuracy"]
    text = results_markdown([{**record, "baselines": {}}])
    assert all(all(row.strip("| ").split(" | ")) for row in text.splitlines() if "|" in row)
    assert "| seeds |" in text


def test_the_files_here_are_those_of_the_run_files():
    """The tables are up to date: `make results` changes nothing."""
    records = load_records(Path("results"))
    expected = results_markdown(records, results.load_notes(Path("results"), records))
    assert Path("RESULTS.md").read_text(encoding="utf-8") == expected
    readme = Path("README.md").read_text(encoding="utf-8")
    assert readme == insert_summary(readme, records)
    with pytest.raises(ValueError, match="expected the lines <!-- results -->"):
        insert_summary("# Title\n", records)


def test_models_that_are_refitted_have_their_own_baselines():
    refitted = seeded(0, 0.8) | {"selected_by": "validation accuracy, then refitted on both"}
    other = seeded(0, 0.7) | {"experiment": "other", "baselines": {"nb_svm": {"accuracy": 0.6}}}
    text = results_markdown([refitted, other])
    assert "| attention_pooling (trained_on=train + validation) | 0.8000 |" in text
    assert "| baseline nb_svm (trained_on=train + validation) | 0.8100 |" in text
    assert "| other (trained_on=train) | 0.7000 |" in text
    assert "| baseline nb_svm (trained_on=train) | 0.6000 |" in text
    row = summary_table([refitted, other]).splitlines()[-1]
    assert row.endswith("| attention_pooling 0.800 | nb_svm 0.810 |")
    assert "trained_on" not in results_markdown([refitted])


def test_curves_and_notes_follow_the_tables(tmp_path):
    curve = [[100, 0.75], [200, 0.81234]]
    save_record(seeded(0, 0.8) | {"validation_curve": curve}, tmp_path)
    save_record(seeded(0, 0.7) | {"experiment": "other"}, tmp_path)
    save_record(seeded(0, 0.6) | {"data": "tfds:x/y"}, tmp_path)
    for folder, text in (("sst2", "Too short.\n"), ("tfds-x-y", "Too long.\n")):
        (tmp_path / "text_classification" / folder / "notes.md").write_text(text)
    records = load_records(tmp_path)
    text = results_markdown(records, results.load_notes(tmp_path, records))
    assert "| attention_pooling | 0 | 100: 0.75, 200: 0.8123 |" in text
    assert text.count("by step |") == 1
    first, second = text.partition("## text_classification: tfds:x/y")[::2]
    assert first.endswith("\nToo short.\n\n")
    assert second.endswith("\nToo long.\n")


def test_at_a_glance_is_the_best_on_validation_beside_the_best_baseline():
    other = seeded(0, 0.99) | {"experiment": "other", "validation": {"accuracy": 0.5}}
    cheaper = {"majority": {"accuracy": 0.5}} | RECORD["baselines"]
    text = summary_table([seeded(0, 0.8), seeded(1, 0.82), other | {"baselines": cheaper}])
    row = (
        "| text_classification | sst2 | accuracy | attention_pooling 0.810 ± 0.014 | nb_svm 0.810 |"
    )
    assert text.splitlines()[2:] == [row]


def test_the_mean_over_a_setting_has_a_row(monkeypatch):
    monkeypatch.setattr(task_class("text_classification"), "averaged_over", "speaker")
    records = [
        seeded(0, accuracy) | {"settings": {"speaker": speaker, "size": 2}}
        for speaker, accuracy in (("Ann", 0.7), ("Bob", 0.9))
    ]
    alone = seeded(0, 0.95) | {"settings": {"split": "official"}}
    text = results_markdown([*records, alone])
    assert "| attention_pooling (size=2, speaker=all (mean)) | 0.8000 ± 0.1414 |" in text
    assert "| baseline nb_svm (size=2, speaker=all (mean)) | 0.8100 |" in text
    assert "| attention_pooling (size=2, speaker=Bob) | 0.9000 |" in text
    assert text.count("`python -m launch.train --config=x`") == 3
    assert "attention_pooling 0.800 ± 0.141" in summary_table([*records, alone])


def models(selection: str, records) -> list[str]:
    """Returns the rows of an inserted table, without its header."""
    before, after = "# Title\n", "## Next\n"
    line = f"<!-- models {selection} -->\n"
    text = insert_models(f"{before}{line}old\n<!-- /models -->\n{after}", records)
    assert insert_models(text, records) == text
    assert "old" not in text
    header = "| data | model | parameters | accuracy on test | time on cpu x1 |"
    assert text.startswith(f"{before}{line}\n{header}")
    assert text.endswith(f"|\n\n<!-- /models -->\n{after}")
    return [row for row in text.splitlines() if row.startswith("| ")][1:]


def test_a_table_of_models_has_trained_runs_and_the_best_baseline():
    weak = {"majority": {"accuracy": 0.5}, "other": {}}
    runs = [seeded(0, 0.8), seeded(1, 0.82) | {"seconds": 120.0}]
    runs = [run | {"baselines": run["baselines"] | weak} for run in runs]
    ablated = seeded(0, 0.9) | {"experiment": "mean", "command": "python -m launch.ablate"}
    found = models("task=text_classification", [*runs, ablated])
    link = "[sst2](../../RESULTS.md#text_classification-sst2)"
    assert found == [
        f"| {link} | attention_pooling | 1,234 | 0.810 ± 0.014 | 1 min 05 s |",
        "| sst2 | baseline nb_svm |  | 0.810 |  |",
    ]
    found = models("task=text_classification experiment=mean,max", [*runs, ablated])
    assert found[0] == f"| {link} | mean | 1,234 | 0.900 | 10 s |"


def test_a_table_of_models_selects_settings_and_means(monkeypatch):
    monkeypatch.setattr(task_class("text_classification"), "averaged_over", "speaker")
    records = [
        seeded(0, accuracy) | {"settings": {"speaker": speaker, "size": size}}
        for speaker, size, accuracy in (("Ann", 2, 0.7), ("Bob", 2, 0.9), ("Ann", 3, 0.1))
    ]
    alone = seeded(0, 0.95) | {"settings": {"size": 2, "split": "official"}}
    found = models("task=text_classification data=sst2 size=2", [*records, alone])
    assert [row.split(" | ")[1:4:2] for row in found] == [
        ["attention_pooling (speaker=all (mean))", "0.800 ± 0.141"],
        ["baseline nb_svm (speaker=all (mean))", "0.810"],
        ["attention_pooling (split=official)", "0.950"],
        ["baseline nb_svm (split=official)", "0.810"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- models task=text_classification -->\n", "has no line <!-- /models -->"),
        ("<!-- models task=text_classification data=no -->\n<!-- /models -->\n", "selects no run"),
        ("<!-- models data=sst2 -->\n<!-- /models -->\n", "expected the key task"),
        ("<!-- models sst2 -->\n<!-- /models -->\n", "expected KEY=VALUE, got 'sst2'"),
    ],
)
def test_a_table_of_models_that_cannot_be_made(text, message):
    with pytest.raises(ValueError, match=message):
        insert_models(text, [RECORD])


def test_metrics_under_conditions_stand_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(task_class("text_classification"), "condition_metrics", r"accuracy_at_\d+")
    for seed in (0, 1):
        record = seeded(seed, 0.8)
        record["metrics"] |= {"accuracy_at_2": 0.5 + 0.2 * seed, "accuracy_at_10": 0.25}
        save_record(record, tmp_path)
        save_record(record | {"metrics": RECORD["metrics"], "experiment": "without"}, tmp_path)
    text = results_markdown(load_records(tmp_path))
    assert "| model | accuracy | accuracy_at_2 | accuracy_at_10 |" in text
    assert "| attention_pooling | 0.8000 ± 0.0000 | 0.6000 ± 0.1414 | 0.2500 ± 0.0000 |" in text
    assert text.count("| without |") == 1
    assert "accuracy_at" not in results_markdown([RECORD])


def test_a_metric_that_a_run_does_not_have_is_left_empty(tmp_path, capsys):
    for seed in (0, 1):
        record = seeded(seed, 0.8)
        if seed:
            del record["metrics"]["mcc"]
        save_record(record, tmp_path)
    row = next(line for line in results_markdown(load_records(tmp_path)).splitlines()
               if line.startswith("| attention_pooling"))  # fmt: skip
    assert row.startswith("| attention_pooling | 0.8000 ± 0.0000 | 0.7900 ± 0.0000 |  |")
    show(record, ["accuracy", "mcc"])
    assert "0.8000" in capsys.readouterr().out


def test_settings_stand_in_the_file_name(tmp_path):
    record = {**seeded(0, 0.5), "settings": {"horizon": 96}}
    assert save_record(record, tmp_path).name == "0-horizon=96.json"


def test_damaged_or_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_records(tmp_path / "missing")
    with pytest.raises(UserError, match="no run files"):
        load_records(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not a JSON file"):
        load_records(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"task": "x"}))
    with pytest.raises(UserError, match=r"a\.json: is not a run file: it lacks data"):
        load_records(tmp_path)


@pytest.mark.parametrize("field", results.FIELDS)
@pytest.mark.parametrize("value", [None, [], {}, "x", 3, 0.5, True])
def test_fields_of_another_type_are_named(field, value, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({**RECORD, field: value}))
    fits = type(value) is results.FIELDS[field] or (field, value) == ("seconds", 3)
    if fits:
        assert load_records(tmp_path)[0][field] == value
        return
    for load, place in ((load_records, tmp_path), (results.load_result, tmp_path / "result.json")):
        with pytest.raises(UserError, match=rf"result\.json: .*wrong type of .*\b{field}\b"):
            load(place)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": {"accuracy": "high"}}, r"metrics\.accuracy"),
        ({"validation": {"accuracy": None}}, r"validation\.accuracy"),
        ({"baselines": {"nb_svm": 0.5}}, r"baselines\.nb_svm"),
        ({"baselines": {"nb_svm": {"mcc": []}}}, r"baselines\.nb_svm\.mcc"),
    ],
)
def test_metrics_that_are_no_numbers_are_named(changes, named, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({**RECORD, **changes}))
    with pytest.raises(UserError, match=rf"result\.json: is damaged \(wrong type of {named}\)"):
        results.load_result(tmp_path / "result.json")


def test_recording_from_a_dirty_tree_is_refused(monkeypatch):
    monkeypatch.setattr(results, "commit", lambda: "abc")
    monkeypatch.setattr(results, "dirty_files", lambda: ["attention/masks/mask.py"])
    with pytest.raises(UserError, match=r"attention/masks/mask\.py differ from the commit"):
        results.check_recordable()
    monkeypatch.setattr(results, "dirty_files", list)
    results.check_recordable()
    monkeypatch.setattr(results, "commit", lambda: "")
    with pytest.raises(UserError, match="not a git checkout"):
        results.check_recordable()
