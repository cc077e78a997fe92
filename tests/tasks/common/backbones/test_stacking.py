"""Scanned layers: numbers are those of a loop, and programs do not grow with the depth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import inspect, masks, registry
from launch.engine import state as states
from tasks.common.backbones.conformer import Conformer
from tasks.common.backbones.stacking import (
    LayerStack,
    layer_paths,
    separated,
    unstacked,
    with_layout,
)
from tasks.common.backbones.transformer import Decoder, Encoder
from tasks.forecasting.models.informer import DistillingEncoder, InformerConfig
from tasks.forecasting.models.layers import WindowEncoderConfig

SMALL = WindowEncoderConfig(
    model_size=8, num_layers=3, num_heads=2, feedforward_size=12, max_length=9
)
LENGTHS = jnp.array([5, 3])
VALID = jnp.arange(5) < LENGTHS[:, None]
KEY = jax.random.key(1)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def build(kind, scan, **changes):
    """Returns a stack, and the next key of its random stream."""
    config, rngs = dataclasses.replace(SMALL, scan_layers=scan, **changes), nnx.Rngs(0)
    more = {Decoder: (8,), Conformer: (3, False)}.get(kind, ())
    return kind(config, *more, rngs=rngs), rngs.params()


def both(kind, **changes):
    """Returns a stack with a loop, and one with a scan."""
    return [build(kind, scan, **changes)[0] for scan in (False, True)]


def call(stack, x, key=None, **options):
    """Returns the outputs, with 0 at padding, and the weights, as a tree."""
    memory = (x[:, :3],) if isinstance(stack, Decoder) else ()
    out = stack(x, *memory, valid=VALID, dropout_key=key, **options)
    out, weights = out if options.get("return_weights") else (out, None)
    return jnp.where(VALID[..., None], out, 0), weights


def assert_equal(loop, scan, tolerance):
    """Compares trees whose layers may be stacked, relative to the largest number, at least 1."""
    scan = with_layout(scan, loop)
    assert jax.tree.structure(loop) == jax.tree.structure(scan)
    for a, b in zip(*map(jax.tree.leaves, (loop, scan)), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(a).max()))


def check_mixer(mixer):
    """Checks initial parameters and other variables, random streams and outputs with dropout."""
    entry = registry.find("mixer", mixer)
    more = {"positions": "rope"} if "positions" in entry.capabilities else {}
    mask = masks.causal() if "causal" in entry.capabilities else None

    # Compiled, as by the engine; outside of jit, logarithms are rounded differently.
    @functools.partial(jax.jit, static_argnums=0)
    def initialized(scan):
        stack, after = build(Encoder, scan, mixer=mixer, num_layers=2, **more)
        out = stack(normal(0, 2, 5, 8), mask=mask, dropout_key=KEY)
        return states.split_model(stack)[1:], jax.random.key_data(after), out

    (loop, after_loop, out_loop), (scan, after_scan, out_scan) = map(initialized, (False, True))
    np.testing.assert_array_equal(after_loop, after_scan)
    for separate, together in zip(loop, scan, strict=True):
        assert_equal(separate, together, 0)
        assert_equal(separated(together), separate, 0)
        assert_equal(together, with_layout(separate, together), 0)
    assert_equal(out_loop, out_scan, 1e-5)


# One without and one with variables besides parameters.
QUICK = ("dot_product", "performer")


@pytest.mark.parametrize("mixer", QUICK)
def test_parameters_and_outputs(mixer):
    check_mixer(mixer)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", sorted({*registry.names("mixer")} - {*QUICK}))
def test_parameters_and_outputs_of_other_mixers(mixer):
    check_mixer(mixer)


@pytest.mark.parametrize(
    ("kind", "norm", "rematerialize"),
    [
        pytest.param(Encoder, "pre", True, marks=pytest.mark.slow),
        pytest.param(Encoder, "post", False, marks=pytest.mark.slow),
        (Decoder, "post", True),
        (Conformer, "pre", False),
    ],
)
def test_gradients_and_weights(kind, norm, rematerialize):
    def gradients(stack):
        graphdef, params, rest = states.split_model(stack)

        def loss(params, x):
            model = states.merge_model(graphdef, params, rest)
            out, weights = call(model, x, KEY, return_weights=True)
            return jnp.sum(out**3), weights

        run = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return jax.jit(run)(params, normal(0, 2, 5, 8))

    loop, scan = both(kind, norm=norm, rematerialize=rematerialize)
    (loss, weights), (found, by_x) = gradients(loop)
    (scan_loss, scan_weights), (scan_found, scan_by_x) = gradients(scan)
    assert_equal((loss, weights, by_x), (scan_loss, scan_weights, scan_by_x), 1e-5)
    assert_equal(found, scan_found, 1e-5)
    counted = {leaf.shape[0] for leaf in jax.tree.leaves(scan_weights)}
    assert counted == {SMALL.num_layers}


@pytest.mark.parametrize(("kind", "norm"), [(Encoder, "pre"), (Decoder, "post")])
def test_bfloat16(kind, norm):
    run = jax.jit(lambda stack, key: call(stack, normal(0, 2, 5, 8), key)[0])
    loop, scan = both(kind, norm=norm, dtype="bfloat16", normalization="rms", use_bias=False)
    found = run(scan, KEY)
    assert found.dtype == jnp.bfloat16
    # Two roundings to 8 bits in each of the sublayers.
    assert_equal(run(loop, KEY), found, 2e-2)


def test_decoding_step_by_step():
    x = normal(0, 2, 5, 8)
    for kind in (Encoder, Decoder):
        memory = (x[:, :3], None) if kind is Decoder else (2,)
        results = []
        for stack in both(kind, positions="rope"):
            start = jax.jit(lambda stack, given=memory: stack.init_cache(*given, 9))(stack)
            step = jax.jit(lambda stack, *given: stack.decode(*given))
            first = step(stack, x[:, :3], start, jnp.array([3, 2]))
            results.append((first, step(stack, x[:, 3:], first[1])))
        assert_equal(*results, 1e-6)


def selections(equations, size):
    """Counts operations inside loops that select one of 3 layers from `size` numbers."""
    count = 0
    for equation in equations:
        if equation.primitive.name == "while":
            (body,) = [equation.params["body_jaxpr"].jaxpr]
            inside = [each for each in body.eqns if each.primitive.name in ("slice", "squeeze")]
            count += sum(each.invars[0].aval.size == size for each in inside)
            count += selections(body.eqns, size)
        elif "jaxpr" in equation.params:
            inner = equation.params["jaxpr"]
            count += selections(getattr(inner, "jaxpr", inner).eqns, size)
    return count


def test_unstacked_layers_are_selected_before_a_loop():
    loop, scan = both(Encoder)
    assert unstacked(loop) is loop
    model = Outer(scan)
    alone = unstacked(model)
    assert isinstance(model.encoder.layers, LayerStack)
    assert not isinstance(alone.encoder.layers, LayerStack)
    x = normal(0, 2, 5, 8)
    assert_equal(loop(x), alone(x), 1e-6)
    captured = inspect.capture(alone, x)
    assert list(captured) == list(inspect.capture(Outer(loop), x))

    def decoded(prepare):
        def run(stack, x):
            stack = prepare(stack)
            start = stack.init_cache(2, 9)
            step = lambda _, cache: stack.decode(x[:, :1], cache)[1]  # noqa: E731
            return jax.lax.fori_loop(0, x[0, 0, 0].astype(int), step, start)

        return selections(jax.make_jaxpr(run)(scan, x).eqns, 3 * 8 * 12)

    assert decoded(lambda stack: stack) > 0
    assert decoded(unstacked) == 0


def test_captured_weights_have_the_names_and_numbers_of_a_loop():
    for kind, given in ((Encoder, ()), (Decoder, (normal(2, 2, 4, 8),))):
        loop, scan = (
            inspect.capture(stack, normal(0, 2, 5, 8), *given, valid=VALID)
            for stack in both(kind, rematerialize=True)
        )
        assert list(loop) == list(scan)
        assert "layers/2/attention" in scan
        assert_equal(loop, scan, 1e-6)


class Outer(nnx.Module):
    def __init__(self, stack):
        self.encoder = stack

    def __call__(self, x):
        return self.encoder(x)


def test_captured_weights_of_a_stack_inside_a_model():
    found = inspect.capture(Outer(both(Encoder)[1]), normal(0, 2, 5, 8), layers="layers/1")
    assert list(found) == ["encoder/layers/1/attention"]


def equations(jaxpr):
    """Counts the equations of a program, including those of its inner programs."""
    inner = []
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                inner.append(value)
    return len(jaxpr.eqns) + sum(map(equations, inner))


def size(kind, **changes):
    """Returns the numbers of equations to initialize a stack, and for its gradient."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build(kind, **changes)[0]))

    def initialize():
        return nnx.state(build(kind, **changes)[0])

    def loss(state, x):
        return jnp.sum(call(nnx.merge(graphdef, state), x, KEY, return_weights=True)[0])

    state, x = jax.eval_shape(initialize), normal(0, 2, 5, 8)
    made = [jax.make_jaxpr(initialize)(), jax.make_jaxpr(jax.grad(loss))(state, x)]
    return [equations(program.jaxpr) for program in made]


@pytest.mark.parametrize(
    ("kind", "rematerialize"),
    [(Encoder, False), pytest.param(Decoder, True, marks=pytest.mark.slow)],
)
def test_programs_do_not_grow_with_the_depth(kind, rematerialize):
    options = {"kind": kind, "rematerialize": rematerialize}
    few, many = (size(scan=True, num_layers=depth, **options) for depth in (1, 5))
    assert few == many
    few, many = (size(scan=False, num_layers=depth, **options) for depth in (1, 5))
    assert all(more > 3 * less for less, more in zip(few, many, strict=True))


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.count = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        self.count[...] += 1
        return x


def test_layers_that_update_their_variables_are_refused():
    stack = LayerStack(Counting, 2, rngs=nnx.Rngs(0))
    with pytest.raises(
        NotImplementedError, match=r"scan_layers: got a layer that updates .* False"
    ):
        stack.scan(lambda number, layer, x: (layer(x), None), jnp.ones(()), rematerialize=False)


def test_layers_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"scan_layers: got True, expected False if distil"):
        InformerConfig(scan_layers=True)


def test_informer_without_distilling():
    x, results = normal(0, 2, 5, 8), []
    for scan in (False, True):
        config = InformerConfig(model_size=8, num_heads=2, distil=False, scan_layers=scan)
        stack = DistillingEncoder(config.encoder(5), distil=False, rngs=nnx.Rngs(0))
        run = jax.jit(lambda stack: stack(x, VALID, training=True, dropout_key=KEY))
        results.append(run(stack))
    assert_equal(*results, 1e-6)


def test_paths_of_stacked_layers():
    assert layer_paths("encoder/layers/stacked/out/kernel", (2, 4)) == [
        "encoder/layers/0/out/kernel",
        "encoder/layers/1/out/kernel",
    ]
    assert layer_paths("encoder/norm/scale", (2,)) == ["encoder/norm/scale"]


def test_layouts_of_ten_layers_are_in_numerical_order():
    kept = {"layers": {str(number): {"a": jnp.array([number])} for number in range(11)}}
    stacked = with_layout(kept, {"layers": {"stacked": {"a": None}}})
    np.testing.assert_array_equal(stacked["layers"]["stacked"]["a"][:, 0], range(11))
    assert_equal(kept, separated(stacked), 0)
