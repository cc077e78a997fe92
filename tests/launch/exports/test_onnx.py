"""Exports as ONNX: equal answers without JAX, errors, and the table of what converts."""

import functools
import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.interpreters import mlir

from launch.exports import card, onnx_programs, reader, writer
from tasks.common.errors import UserError
from tests.launch.exports import onnx_table
from tests.launch.exports.test_text import assert_same, inputs_of
from tests.tasks import contract


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_programs.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-onnx\.txt"):
        writer.write_export(None, None, None, tmp_path / "export", format="onnx")
    assert not (tmp_path / "export").exists()


def test_a_program_of_one_batch_size_takes_any():
    sizes = []

    def run(arrays):
        sizes.append(len(arrays["x"]))
        return {"y": 2 * arrays["x"], "z": arrays["x"][:, :1]}

    program = reader.in_batches(run, 4)
    for count in (1, 4, 9):
        x = np.arange(2 * count).reshape(count, 2)
        found = program({"x": x})
        np.testing.assert_array_equal(found["y"], 2 * x)
        np.testing.assert_array_equal(found["z"], x[:, :1])
    assert set(sizes) == {4}


def test_differences_are_relative_and_find_odd_values():
    x = np.float32([1, -200, 3])
    assert reader.difference(x, x) == 0
    assert reader.difference(x + np.float32([0, 2, 0]), x) == pytest.approx(0.01)
    hidden = np.float32([-np.inf, np.nan, 1])
    assert reader.difference(hidden, hidden) == 0
    assert reader.difference(np.float32([0, np.nan, 1]), hidden) == np.inf
    assert reader.difference(np.float32([np.nan, np.nan, 1]), hidden) == np.inf
    assert reader.difference(x[:2], x) == np.inf
    assert reader.difference(np.int32([4, 5]), np.int32([4, 6])) == pytest.approx(0.5 / 6)


# ---------------------------------------------------------------- with jax2onnx


@pytest.fixture(scope="module")
def onnx():
    return pytest.importorskip("jax2onnx", reason="requirements-onnx.txt is not installed")


@pytest.fixture(scope="module")
def exported(onnx, tmp_path_factory):
    """Returns subject, signature and folder of the attention pooling classifier."""
    folder = tmp_path_factory.mktemp("onnx")
    subject = contract.make_subject("text_classification", folder / "subject")
    render = functools.partial(
        card.render, config=subject.config, folder=folder, step=3, recorded=folder / "none"
    )
    signature = writer.write_export(
        subject.task,
        subject.config,
        subject.variables,
        folder / "export",
        format="onnx",
        with_attention=True,
        examples=subject.raw,
        card=render,
    )
    return subject, signature, folder / "export"


@pytest.mark.slow
def test_answers_are_those_of_the_predictor(exported):
    subject, signature, folder = exported
    raw, export = inputs_of(subject, 7), reader.Export(folder)
    assert_same(export(raw), subject.predictor(raw))
    assert signature["onnx"]["deviation"] <= onnx_programs.TOLERANCE
    assert export.verify() <= onnx_programs.TOLERANCE
    assert not any("batch_size" in one for one in signature["programs"]["predict"])


@pytest.mark.slow
def test_attention_is_that_of_the_task(exported):
    subject, _, folder = exported
    export = reader.Export(folder)
    (row,) = export.encode(subject.raw[0]).rows
    bucket = export.bucket(row, "attention")
    batch = export.batch([row], [0], bucket, 1)
    found = export.program("attention", bucket)(batch)
    expected = subject.task.attention(subject.model, {n: jnp.asarray(x) for n, x in batch.items()})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


@pytest.mark.slow
def test_the_folder_needs_no_jax(exported, tmp_path):
    subject, _, folder = exported
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    needed = (copied / "requirements.txt").read_text(encoding="utf-8")
    assert "onnxruntime==" in needed
    assert "jax" not in needed
    script = str(copied / "predict.py")
    code = (
        "import runpy, sys; sys.modules['jax'] = None; "
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    words, outputs = [sys.executable, "-c", code], []
    for flags in (["--verify"], [f"--input={subject.raw[0]}", "--format=json"]):
        done = subprocess.run([*words, *flags], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "largest difference from the golden outputs" in outputs[0]
    assert_same([json.loads(outputs[1])], subject.predictor(subject.raw[:1]))


@pytest.mark.slow
def test_programs_are_valid_and_share_the_weights(exported):
    import onnx

    subject, signature, folder = exported
    names = set(writer.named_weights(subject.variables))
    for entry in signature["programs"]["predict"]:
        onnx.checker.check_model(str(folder / entry["file"]))
        model = onnx.load(str(folder / entry["file"]), load_external_data=False)
        outside = [t for t in model.graph.initializer if t.external_data]
        assert {tensor.name for tensor in outside} == names
        for tensor in outside:
            assert tensor.external_data[0].value == "weights.safetensors"
        assert {value.name for value in model.graph.input} <= signature["inputs"].keys()
        assert [value.name for value in model.graph.output] == sorted(signature["outputs"])


@pytest.mark.slow
def test_damaged_files_are_one_line(exported, tmp_path):
    subject, _, folder = exported
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    path = copied / "programs" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(reader.InputError, match="differs from the exported file"):
        reader.Export(copied)(subject.raw)
    shutil.copyfile(folder / "programs" / "weights.safetensors", path)
    (copied / "programs" / "predict-0.onnx").write_bytes(b"no program")
    with pytest.raises(reader.InputError, match=r"predict-0\.onnx.*onnxruntime"):
        reader.Export(copied).verify()


@pytest.mark.slow
def test_the_card_names_the_format(exported):
    _, signature, folder = exported
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: onnx" in text
    assert signature["onnx"]["converter"] in text
    assert "StableHLO" not in text


@pytest.mark.slow
def test_one_batch_size_where_no_symbol_is_possible(exported, tmp_path, monkeypatch):
    subject, _, _ = exported
    converted = onnx_programs._converted

    def with_a_number_only(*arguments):
        if arguments[-1] is None:
            raise onnx_programs.NotConvertible("operation 'rem': needs a number")
        return converted(*arguments)

    monkeypatch.setattr(onnx_programs, "_converted", with_a_number_only)
    target = tmp_path / "export"
    signature = writer.write_export(
        subject.task, subject.config, subject.variables, target, format="onnx", batch_size=2
    )
    assert {one["batch_size"] for one in signature["programs"]["predict"]} == {2}
    text = card.render(signature, subject.config, tmp_path, 3, tmp_path / "none")
    assert "take batches of 2" in text
    raw = inputs_of(subject, 7)
    assert_same(reader.Export(target)(raw), subject.predictor(raw))


@pytest.mark.slow
def test_an_operation_without_a_conversion_is_named_before_anything_is_written(exported, tmp_path):
    subject, _, _ = exported
    unknown = core.Primitive("unknown")
    unknown.def_abstract_eval(lambda x: x)
    mlir.register_lowering(unknown, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))

    class Odd(type(subject.task)):
        def predict(self, model, inputs):
            found = super().predict(model, inputs)
            return {"probabilities": unknown.bind(found["probabilities"])}

    odd = subject.with_task(Odd)
    target = tmp_path / "below" / "export"
    with pytest.raises(UserError) as raised:
        writer.write_export(odd.task, odd.config, subject.variables, target, format="onnx")
    assert str(raised.value) == (
        "--format=onnx: config.model.name=attention_pooling: predict: operation "
        "'unknown' has no conversion to ONNX"
    )
    assert not (tmp_path / "below").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", contract.TASKS)
def test_the_table_of_the_page_is_a_fresh_one(onnx, name, tmp_path):
    row = onnx_table.convert_task(name, tmp_path / "subject")
    assert f"| {' | '.join(row.cells)} |" in onnx_table.written().splitlines()
    assert row.deviation <= onnx_programs.TOLERANCE
