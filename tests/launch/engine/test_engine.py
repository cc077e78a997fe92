"""Parts of the engine: gathering, writers, state, checkpoints, figures."""

import base64
import json
import re
import xml.etree.ElementTree
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.engine import state as states
from launch.engine import writers
from launch.engine.checkpoints import Checkpoints, read_sums
from launch.engine.evaluation import gather
from launch.reporting import figures
from tasks.common.data.pipeline import train_iterator
from tasks.common.errors import UserError
from tasks.figures import Alignment, AttendedImage, AttendedText, ConfusionMatrix, Curves


def test_gather_drops_padding_and_duplicates_and_restores_the_order():
    batches = [
        (np.array([2, 0, -1]), {"p": np.array([[2.0], [0.0], [9.0]])}),
        (np.array([1, 2, -1]), {"p": np.array([[1.0, 1.5], [2.0, 0.0], [9.0, 9.0]])}),
    ]
    outputs = gather(batches)["p"]
    np.testing.assert_array_equal(outputs, [[0.0, 0.0], [1.0, 1.5], [2.0, 0.0]])
    assert gather([]) == {}


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    first = writers.Writers(tmp_path, 0)
    for step in (10, 20, 30):
        first.metrics(step, "train", {"loss": 1 / step})
    first.metrics(30, "validation", {"accuracy": 0.5})
    first.close()
    # A process that was killed while writing leaves a partial line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    whole = (tmp_path / "metrics.jsonl").read_bytes().splitlines()[:2]
    second = writers.Writers(tmp_path, 20)
    second.close()
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == whole


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not JSON"):
        writers.Writers(tmp_path, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not UTF-8; restore the file, or train in another --workdir"),
        (b"[]\n", "line 1 is not the record of a step"),
        (b"null\n", "line 1 is not the record of a step"),
        (b'{"step": 4}\n{"a": 1}\n', "line 2 is not the record of a step"),
        (b"", "has no metrics at step 8, but checkpoints/ has step 8"),
        (b'{"step": 4, "split": "train"}\n{"step": 8, "spl', "has no metrics at step 8"),
        (b'{"step": 4, "split": "validation"}\n{"step": 8, "split": "train"}\n',
         "has no validation metrics at step 8"),
        (b'{"step": 8, "split": "validation"}\n', "has no validation metrics at step 4"),
        (None, "is missing; restore the file, or train in another --workdir"),
    ],
)  # fmt: skip
def test_metrics_that_lack_a_step_are_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"metrics\.jsonl: {message}"):
        writers.check_logs(tmp_path, [4, 8], 4, 10)


def test_logs_of_every_kind_of_training_are_accepted(tmp_path):
    def record(*steps):
        lines = [json.dumps({"step": step, "split": split}) for step, split in steps]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    writers.check_logs(tmp_path, [], 4, 10)
    # Stopped between two evaluations; a last step that the interval does not divide; refitted.
    record((4, "validation"), (6, "train"))
    writers.check_logs(tmp_path, [4, 6], 4, 10)
    record((4, "validation"), (8, "validation"), (10, "validation"))
    writers.check_logs(tmp_path, [8, 10], 4, 10)
    record((10, "train"))
    writers.check_logs(tmp_path, [10], 0, 10)
    # Imported parameters are those of step 0.
    record((0, "validation"))
    writers.check_logs(tmp_path, [0], 4, 10)


def test_damaged_timing_may_be_removed(tmp_path):
    (tmp_path / "timing.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"timing\.jsonl: line 1 .*; remove the file; the run time"):
        writers.Writers(tmp_path, 5)
    writers.Writers(tmp_path, 0).close()


def test_validation_metrics_without_the_primary_one_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "split": "validation", "loss": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: step 3 has no accuracy"):
        writers.best_step(tmp_path, "accuracy", higher_is_better=True)


def test_best_step_is_the_earliest_of_equals(tmp_path):
    rows = [(10, 0.5), (20, 0.8), (30, 0.8), (40, 0.7)]
    lines = [json.dumps({"step": s, "split": "validation", "accuracy": v}) for s, v in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert writers.best_step(tmp_path, "accuracy", higher_is_better=True) == 20
    assert writers.best_step(tmp_path, "accuracy", higher_is_better=False) == 10


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def test_split_and_merge_are_inverse_and_keys_are_strings():
    model = Net(nnx.Rngs(0))
    x = jnp.arange(6.0).reshape(3, 2)
    graphdef, params, statistics = states.split_model(model)
    paths = {states.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert "layers/1/kernel" in paths
    assert set(statistics["norm"]) == {"mean", "var"}
    again = states.merge_model(graphdef, params, statistics)
    np.testing.assert_array_equal(again(x), model(x))


class Rows:
    lengths = None
    padded = {}  # noqa: RUF012

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": np.float32(index)}


def abstract(state):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), state)


@pytest.fixture
def saved(tmp_path):
    """Saves three steps, the best first; returns the state and iterator of each."""
    batches = train_iterator(Rows(), batch_size=2, seed=0)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    after = {}
    for step, score in [(1, 0.9), (2, 0.1), (3, 0.2)]:
        next(batches)
        state = {"params": {"0": jnp.full(4, float(step))}, "step": jnp.asarray(step)}
        checkpoints.save(step, state, batches, score)
        after[step] = batches.get_state()
    checkpoints.wait()
    checkpoints.close()
    return tmp_path / "checkpoints", abstract(state), after


def test_newest_two_and_best_are_kept_and_restored_with_the_iterator(saved):
    folder, shapes, after = saved
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [1, 2, 3]
    batches = train_iterator(Rows(), batch_size=2, seed=0)
    step, state = checkpoints.restore_newest(shapes, batches, pytest.fail)
    assert step == 3
    np.testing.assert_array_equal(state["params"]["0"], 3.0)
    assert batches.get_state() == after[3]
    checkpoints.close()


@pytest.mark.parametrize("damage", ["truncated", "no metadata", "no commit file"])
def test_damaged_step_is_named_and_the_one_before_taken(saved, damage):
    folder, shapes, after = saved
    if damage == "truncated":
        for file in (folder / "3" / "state").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(file.read_bytes()[:10])
    elif damage == "no metadata":
        (folder / "3" / "state" / "_METADATA").unlink()
    else:
        (folder / "3" / "_CHECKPOINT_METADATA").unlink()
    checkpoints = Checkpoints(folder)
    batches = train_iterator(Rows(), batch_size=2, seed=0)
    notes = []
    step, state = checkpoints.restore_newest(shapes, batches, notes.append)
    checkpoints.close()
    assert step == 2
    np.testing.assert_array_equal(state["params"]["0"], 2.0)
    assert batches.get_state() == after[2]
    if damage != "no commit file":
        assert len(notes) == 1
        assert "checkpoints/3" in notes[0]
        assert "\n" not in notes[0]


def test_checksums_are_written_when_a_checkpoint_is_complete(tmp_path):
    """A process that is killed before the next save leaves checksums too."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"params": {"0": jnp.ones(4)}, "step": jnp.asarray(1)}, None, 0.0)
    checkpoints._manager.wait_until_finished()
    folder = tmp_path / "checkpoints" / "1"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    # Orbax completes these two when it renames the directory.
    last = {"_CHECKPOINT_METADATA", "commit_success.txt"}
    assert set(read_sums(tmp_path / "checkpoints")["1"]) == files - last
    checkpoints.wait()
    checkpoints.close()
    sums = read_sums(tmp_path / "checkpoints")["1"]
    assert set(sums) == files
    for name in files:
        data = (folder / name).read_bytes()
        assert sums[name] == [len(data), zlib.crc32(data)]


def test_one_flipped_bit_is_named(saved):
    folder, shapes, _ = saved
    for path in sorted((folder / "3" / "state" / "d").iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    checkpoints, notes = Checkpoints(folder), []
    assert checkpoints.restore_newest(shapes, None, notes.append)[0] == 2
    checkpoints.close()
    assert len(notes) == 1
    assert "checkpoints/3: the checkpoint is damaged, state/d/" in notes[0]
    assert "has changed" in notes[0]


def test_a_changed_line_of_the_metrics_is_named(tmp_path):
    first = writers.Writers(tmp_path, 0)
    for step in (4, 8):
        first.metrics(step, "train", {"loss": 1.0})
        first.metrics(step, "validation", {"accuracy": 0.5})
        first.seal(step)
    first.metrics(10, "train", {"loss": 1.0})
    first.close()
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    writers.check_logs(tmp_path, [4, 8], 4, 12)
    path.write_text(text.replace("0.5", "0.7", 1))
    with pytest.raises(UserError, match=r"metrics\.jsonl: has changed since step 8; restore"):
        writers.check_logs(tmp_path, [4, 8], 4, 12)
    # Lines after the newest checkpoint are written again, so they may have changed.
    path.write_text(text.replace('"step": 10', '"step": 11'))
    writers.check_logs(tmp_path, [4, 8], 4, 12)
    second = writers.Writers(tmp_path, 8)
    second.metrics(12, "validation", {"accuracy": 0.5})
    second.seal(12)
    second.close()
    writers.check_logs(tmp_path, [8, 12], 4, 12)


def test_nothing_readable_is_refused_and_nothing_saved_means_a_fresh_start(saved, tmp_path):
    folder, shapes, _ = saved
    for step in (1, 2, 3):
        (folder / str(step) / "state" / "_METADATA").unlink()
    checkpoints = Checkpoints(folder)
    with pytest.raises(UserError, match="none of the checkpoints can be read"):
        checkpoints.restore_newest(shapes, None, lambda line: None)
    checkpoints.close()
    empty = Checkpoints(tmp_path / "empty")
    assert empty.restore_newest(shapes, None, pytest.fail) == (0, None)
    empty.close()


def test_text_figure_escapes_what_a_text_holds():
    drawn = figures.draw(AttendedText("<b>", ["<script>", "好", "b"], np.array([0.0, 2.0, 1.0])))
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn
    # The shade is relative to the largest value.
    assert "--weight: 0.00" in drawn
    assert "--weight: 1.00" in drawn
    assert "--weight: 0.50" in drawn


@pytest.mark.parametrize(
    "figure",
    [
        ConfusionMatrix("c", np.array([[3, 0], [1, 2]]), ["a", "b"]),
        AttendedImage("i", np.eye(8), np.eye(4)),
        Alignment("a", np.eye(3), list("abc"), list("xyz")),
        Curves("c", "digits", {"test": ([4, 5], [1.0, 0.5])}),
    ],
)
def test_pictures_are_inline(figure):
    assert re.search(r'src="data:image/(svg\+xml|png);base64,', figures.draw(figure))


def test_labels_of_any_script_are_text_in_the_picture():
    drawn = figures.draw(ConfusionMatrix("c", np.eye(2, dtype=int), ["好", "坏"]))
    picture = base64.b64decode(drawn.split("base64,")[1].split('"')[0]).decode("utf-8")
    assert "好" in picture
    assert "坏" in picture


def test_curves_say_what_they_are_over():
    drawn = figures.draw(Curves("c", "digits", {"test": ([4, 5], [1.0, 0.5])}))
    picture = base64.b64decode(drawn.split("base64,")[1].split('"')[0]).decode("utf-8")
    assert ">digits<" in picture
    assert ">step<" not in picture


def test_unknown_figure_is_refused():
    with pytest.raises(TypeError, match="int"):
        figures.draw(3)


def test_names_that_are_not_utf_8_survive_a_json_file(tmp_path):
    """Linux has file names of any bytes, and JSON escapes of half a surrogate pair."""
    value = {"class names": ["c\udce4t", "\ud83d", "größer"]}
    writers.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    writers.write_text(tmp_path / "a.html", "c\udce4t größer")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "c\\udce4t größer"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$10-$20", "$10-$20"),
        (r"$\frac{$", r"$\frac{$"),
        ("c\udce4t", r"c\udce4t"),
        ("a\x0bb\x00", r"a\x0bb\x00"),
    ],
)
def test_names_are_drawn_as_they_are(name, shown):
    """A dollar sign does not begin a formula, and an invalid character is escaped."""
    for figure in (
        ConfusionMatrix(name, np.eye(2, dtype=int), [name, "x"]),
        Alignment(name, np.eye(2), [name, "x"], ["y", name]),
        Curves(name, name, {name: ([4, 5], [1.0, 0.5])}),
    ):
        page = figures.draw(figure)
        drawn = base64.b64decode(page.split("base64,")[1].split('"')[0])
        texts = [each.text for each in xml.etree.ElementTree.fromstring(drawn).iter() if each.text]
        assert texts.count(shown) == 2
        assert f"<figcaption dir='auto'>{shown}</figcaption>" in page
        if not isinstance(figure, Curves):
            assert figures.png(figure).startswith(b"\x89PNG")
