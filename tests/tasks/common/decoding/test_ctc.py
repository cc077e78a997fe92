"""CTC against the sum over all paths, written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.common.decoding import ctc

S, V = 4, 3
compute = jax.jit(ctc.ctc_loss)


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(2, S, V)).astype(np.float32)


@pytest.fixture(scope="module")
def valid():
    return np.array([[True] * S, [True] * 3 + [False]])


def collapsed(path):
    """Collapses a path: repeats merged, blanks dropped."""
    return tuple(unit for unit, _ in itertools.groupby(path) if unit)


def probabilities(logits, frames):
    """Computes P of every sequence of units in a number of frames, path by path."""
    exp = np.exp(np.asarray(logits, np.float64)[:frames])
    exp /= exp.sum(-1, keepdims=True)
    found = {}
    for path in itertools.product(range(V), repeat=frames):
        p = np.prod([exp[t, unit] for t, unit in enumerate(path)])
        found[collapsed(path)] = found.get(collapsed(path), 0.0) + p
    return found


@pytest.mark.parametrize("label", [(1,), (1, 2), (2, 2), (), (1, 2, 1)])
def test_the_loss_is_that_of_all_paths(logits, valid, label):
    labels = np.zeros((2, 3), np.int32)
    labels[:, : len(label)] = label
    losses, has_path = compute(logits, valid, labels)
    for row, frames in enumerate((4, 3)):
        assert has_path[row]
        expected = -np.log(probabilities(logits[row], frames)[label])
        np.testing.assert_allclose(losses[row], expected, rtol=2e-4)


def test_labels_without_a_path_have_loss_0_and_no_gradient(logits, valid):
    labels = np.array([[1, 1, 1], [1, 2, 0]], np.int32)
    losses, has_path = compute(logits, valid, labels)
    assert has_path.tolist() == [False, True]
    assert losses[0] == 0
    gradient = jax.jit(jax.grad(lambda x: ctc.ctc_loss(x, valid, labels)[0].sum()))(logits)
    assert np.isfinite(gradient).all()
    assert not gradient[0].any()
    assert gradient[1].any()
    assert ctc.min_frames(labels).tolist() == [5, 2]


def test_the_best_path_is_collapsed():
    path = np.array([[0, 1, 1, 0, 1, 2], [2, 2, 0, 0, 1, 1]])
    valid = np.array([[True] * 6, [True] * 4 + [False] * 2])
    out = ctc.best_path(jnp.asarray(np.eye(3)[path] * 9), valid)
    assert out.tolist() == [[1, 1, 2, 0, 0, 0], [2, 0, 0, 0, 0, 0]]


def test_prefix_scores_are_those_of_all_paths(logits, valid):
    extend, scores = jax.jit(ctc.extend), jax.jit(ctc.next_scores)
    for units in [(), (1,), (2,), (1, 2), (2, 2), (1, 2, 1)]:
        prefix = ctc.empty_prefix(logits, valid)
        for unit in units:
            prefix = extend(prefix, np.full(2, unit))
        following, end = scores(prefix)
        for row, frames in enumerate((4, 3)):
            known = probabilities(logits[row], frames)

            def begins(start, known=known):
                return sum(p for key, p in known.items() if key[: len(start)] == start)

            np.testing.assert_allclose(np.exp(prefix.total[row]), begins(units), rtol=1e-4)
            if begins(units) == 0:
                continue
            expected = [0.0] + [begins((*units, unit)) / begins(units) for unit in (1, 2)]
            np.testing.assert_allclose(np.exp(following[row]), expected, rtol=1e-4, atol=1e-7)
            expected = known.get(units, 0.0) / begins(units)
            np.testing.assert_allclose(np.exp(end[row]), expected, rtol=1e-4, atol=1e-7)
            total = np.exp(following[row]).sum() + np.exp(end[row])
            np.testing.assert_allclose(total, 1.0, rtol=1e-4)
