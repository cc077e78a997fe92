"""`launch.explain`: pages, JSON, the table of faithfulness, and mistakes."""

import csv
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import launch
from attention import attend, inspect, registry
from launch.runs import explaining
from launch.runs.faithfulness import similarity
from tasks.explanation import AttentionMap, Axis


def explained(command, folder, *flags):
    return command("explain", f"--workdir={folder}", *flags)


def test_mistakes_get_one_line(command, tiny_run, tmp_path):
    folder, _ = tiny_run
    for flags, expected in [
        ([], "--output is missing; name a page"),
        (["--output="], "--output is empty; name a file"),
        ([f"--output={tmp_path}"], "is a directory; name a file"),
        (["--json=-", "--bertviz=-"], "only one of --output, --json and --bertviz can be -"),
        (["--evaluate", "--select=wrong"], "--select: cannot be combined with --evaluate"),
        ([f"--output={tmp_path}/x.html", "--examples=3"], "only used with --evaluate"),
        ([f"--output={tmp_path}/x.html", "--select=best"], "--select: got 'best', expected"),
        ([f"--output={tmp_path}/x.html", "--select=99999"], "has no example 99999"),
        ([f"--output={tmp_path}/x.html", "--methods=lime"], "--methods: lime is unknown"),
        (
            [f"--output={tmp_path}/x.html", "--input=a film", "--select=wrong"],
            "--input: cannot be combined with --select",
        ),
        ([f"--output={tmp_path}/x.html", "--against=/no/run"], "contains no run"),
    ]:
        done = explained(command, folder, *flags)
        assert done.returncode == 2, (flags, done.stderr)
        assert expected in done.stderr, (flags, done.stderr)
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.html").exists()


def test_page_and_json_of_inputs(command, tiny_run, tmp_path):
    folder, _ = tiny_run
    page, values, viewer = (tmp_path / name for name in ("p.html", "p.json", "v.json"))
    done = explained(
        command, folder, "--input=a superb film", "--input=ein 难看 <b>plot</b>",
        f"--output={page}", f"--json={values}", f"--bertviz={viewer}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "<b>plot" not in text
    first, second = json.loads(values.read_text(encoding="utf-8"))
    assert first["input"] == "a superb film"
    assert first["prediction"] in ("good", "bad")
    assert 0 < first["confidence"] <= 1
    methods = {each["method"] for each in first["attributions"]}
    assert {"attention", "rollout", "integrated_gradients", "occlusion"} <= methods
    labels = first["axes"]["tokens"]["labels"]
    for each in first["attributions"]:
        assert len(each["values"]) == len(labels)
    assert second["axes"]["tokens"]["labels"] != labels
    (encoder, *_) = json.loads(viewer.read_text(encoding="utf-8"))[0]["attention"]
    rows = np.array(encoder["attn"]).sum(axis=-1)
    np.testing.assert_allclose(rows, 1, atol=1e-4)


def test_examples_of_a_split(command, tiny_run, tmp_path):
    folder, _ = tiny_run
    target, page = tmp_path / "x.json", tmp_path / "x.html"
    done = explained(
        command, folder, "--select=3,0", "--nolist", f"--json={target}", f"--output={page}"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text(encoding="utf-8"))
    with (folder / "predictions-test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for each, row in zip(found, (rows[3], rows[0]), strict=True):
        for key in ("id", "input", "prediction", "target"):
            assert each[key] == row[key]
        assert each["kind"] in ("uncertain", "correct" if float(row["score"]) else "wrong")
    text = page.read_text(encoding="utf-8")
    (data,) = re.findall(r'id="page-data">(.*?)</script>', text, re.DOTALL)
    assert len(json.loads(data)["rows"]["id"]) == 2
    assert f"Summary of {len(rows)} examples" in text


def test_methods_are_better_than_random_orders(command, tiny_run):
    """The class follows from one or two words, which occlusion must find."""
    folder, _ = tiny_run
    done = explained(command, folder, "--evaluate", "--examples=20")
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "explanation-test.json").read_text(encoding="utf-8"))
    assert record["examples"] == 20
    gains = {
        name: values["deletion_gain_over_random"]
        for name, values in record["methods"].items()
        if "deletion_gain_over_random" in values
    }
    middle, half = gains["occlusion"]
    assert middle - half > 0, gains
    assert "random" not in gains
    for name in record["methods"]:
        assert f"| {name} |" in done.stdout
    assert abs(record["methods"]["occlusion"]["random_weights"][0]) < 0.9


def test_similarity_of_attributions():
    a = np.array([3.0, 1.0, 2.0])
    assert similarity(a, 2 * a + 1, True) == pytest.approx(1)
    assert similarity(a, -a, True) == pytest.approx(-1)
    assert similarity(a, -a, False) == pytest.approx(1)
    assert np.isnan(similarity(a, np.ones(3), True))


def test_heads_have_the_names_of_their_patterns():
    weights = np.zeros((1, 2, 4, 4))
    weights[0, 0], weights[0, 1, :, 3] = np.eye(4), 1
    axes = {"tokens": Axis("token", ["a", "b", "c", "[SEP]"]), "cells": Axis("cell", list("abcd"))}
    found = explaining._with_patterns(AttentionMap("encoder", weights, "tokens", "tokens"), axes)
    assert found.statistics["pattern"].tolist() == [["diagonal", "separator"]]
    cells = AttentionMap("encoder", weights, "cells", "cells")
    assert explaining._with_patterns(cells, axes) == cells


def test_show_draws_the_attention_of_any_model():
    """A Linen module that calls `attend`, and a function with several attentions."""
    from flax import linen

    class Attending(linen.Module):
        @linen.compact
        def __call__(self, x):
            heads = linen.DenseGeneral((2, 4))(x)
            return linen.DenseGeneral(8, axis=(-2, -1))(attend(heads, heads, heads))

    x = jax.random.normal(jax.random.key(0), (3, 5, 8))
    model = Attending()
    variables = model.init(jax.random.key(1), x)

    def run(x):
        return model.apply(variables, x)

    labels = ["a", "fine", "film"]
    (found,) = launch.show(run, x, labels=labels, example=1)
    (shown,) = found.maps
    expected = inspect.capture(run, x)["attention"][1][None, :, :3, :3]
    np.testing.assert_array_equal(shown.weights, expected)
    assert found.axes[shown.keys].labels == labels
    page = launch.show(run, x, labels=labels)
    assert "<iframe" in page._repr_html_()
    assert "fine" in page.page()
    with pytest.raises(ValueError, match="example: got 7, expected -3 to 2"):
        launch.show(run, x, example=7)
    with pytest.raises(launch.UserError, match="no attention of the model has so many positions"):
        launch.show(run, x, labels=[str(n) for n in range(9)])


def test_show_of_pools_and_decoders():
    pool = registry.build("pool", "attention", 8, rngs=nnx.Rngs(0))
    (found,) = launch.show(pool, jnp.ones((2, 6, 8)))
    assert [each.weights.shape for each in found.maps] == [(1, 1, 1, 6)]
    assert found.maps[0].queries is None


def test_explanations_in_python(tiny_run, tmp_path, cache):
    folder, _ = tiny_run
    run = launch.load(folder, cache_dir=cache)
    found = run.explain(["a superb film", "a dull plot"], methods=["attention", "occlusion"])
    assert [each.method for each in found[0].attributions] == ["attention", "occlusion"]
    assert {curve.method for curve in found[0].curves} == {
        "attention", "occlusion", "uniform", "random",
    }  # fmt: skip
    page = found.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a superb film" in page
    (one,) = run.explain(examples=[3])
    assert one.target in ("good", "bad")
    for wrong, message in [
        (dict(inputs="a film"), "write \\[...\\]"),
        (dict(examples=[10**6]), "expected indices from 0 to"),
        ({}, "expected one of them: a list of inputs, or"),
        (dict(inputs=["a"], methods=["lime"]), "lime is unknown"),
    ]:
        with pytest.raises(launch.UserError, match=message):
            run.explain(**wrong)


def test_what_is_not_explained_is_said(tiny_run, cache):
    folder, _ = tiny_run
    run = launch.load(folder, cache_dir=cache)
    whole, long = run.explain(["a superb film", "superb " * 40], methods=["occlusion"])
    assert whole.notes == []
    assert long.notes == ["The model reads the first 16 of 40 tokens; the rest has no effect."]
    assert len(long.attributions[0].values) == 16
