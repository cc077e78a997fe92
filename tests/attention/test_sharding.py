"""Every mechanism, and the encoder, on 8 virtual devices gives the numbers of one.

The devices are in a process of their own, which answers for all mechanisms that were selected.
"""

import json
import sys

import numpy as np
import pytest

from tests.attention import subjects
from tests.virtual_devices import on_eight_devices_once

NAMES = {f"{s.entry.kind}-{s.label}": s for s in subjects.subjects() if s.first}
# Mechanisms whose operations another one of their kind has as well; these are slow tests.
ALIKE = {
    "kernel": {"triton", "splash"},
    "mixer": {"dot_product-cross", "talking_heads-cross", "sliding_window-both", "strided-grouped"}
    | {"fixed-summary", "performer-softmax"},
    "alignment": {"dot", "general", "concat", "none"},
    "map_attention": {"cbam_channel-half", "cbam_spatial-default", "eca-default"},
    "pool": {"mean", "max", "attention"},
    "history": {"fism-plain"},
    "lags": {"lag-shared"},
}
SLOW = {f"{kind}-{label}" for kind, labels in ALIKE.items() for label in labels}


def make_mesh():
    import jax
    from jax.sharding import AxisType

    assert jax.device_count() == 8
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def mechanisms(names):
    """Returns, by name, the largest difference in outputs and gradients, and whether weights were
    split."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from launch.engine.sharding import tree_shardings
    from tasks.common.backbones.transformer import SHARDING_RULES

    mesh = make_mesh()
    batch = NamedSharding(mesh, PartitionSpec("data"))
    for name in names:
        if name == "encoder":
            encoder()
            print(json.dumps({"name": name}), flush=True)
            continue
        subject = NAMES[name]
        one = subject.program(subject.inputs, subject.valid, subject.cotangent, False)
        where = {key: batch for key in subject.inputs}
        if "params" in where:
            params = subject.inputs["params"]
            where["params"] = tree_shardings(params, mesh, SHARDING_RULES)
        inputs = jax.device_put(subject.inputs, where)
        split = any(
            not leaf.sharding.is_fully_replicated
            for leaf in jax.tree.leaves(inputs.get("params", {}))
        )
        valid, cotangent = jax.device_put((subject.valid, subject.cotangent), batch)
        eight = subject.program(inputs, valid, cotangent, False)
        # The gradient of a parameter is a sum over the batch: relative to its largest.
        errors = [
            np.abs(many - single).max() / max(1.0, np.abs(single).max())
            for many, single in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True)
            if single.size
        ]
        print(json.dumps({"name": name, "error": float(max(errors)), "split": split}), flush=True)


def encoder():
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    from launch.engine.sharding import tree_shardings
    from tasks.common.backbones.transformer import SHARDING_RULES, Encoder, EncoderConfig

    mesh = make_mesh()
    config = EncoderConfig(8, 1, 2, 8, dropout_rate=0.1, attention_dropout_rate=0.1)
    graphdef, state = nnx.split(Encoder(config, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (8, 5, 8))
    lengths = jnp.array([5, 3, 0, 1, 5, 4, 2, 5])

    def loss(state, x, lengths, key):
        model = nnx.merge(graphdef, state)
        states = model(x, lengths=lengths, dropout_key=key)
        return jnp.sum(states**2 * (jnp.arange(5) < lengths[:, None])[..., None])

    step = jax.jit(jax.value_and_grad(loss))
    single = step(nnx.to_pure_dict(state), x, lengths, jax.random.key(2))
    sharded = jax.device_put(
        nnx.to_pure_dict(state), tree_shardings(nnx.to_pure_dict(state), mesh, SHARDING_RULES)
    )
    kernel = sharded["layers"][0]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 1, 4)
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    split = step(sharded, *jax.device_put((x, lengths), batch), jax.random.key(2))
    np.testing.assert_allclose(split[0], single[0], rtol=1e-5)
    for one, many in zip(jax.tree.leaves(single[1]), jax.tree.leaves(split[1]), strict=True):
        np.testing.assert_allclose(many, one, atol=2e-5)


@pytest.fixture(scope="session")
def answers(request, tmp_path_factory, worker_id):
    """Returns, by name, the output of the process."""
    selected = ["encoder"] + [
        item.callspec.params["name"]
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_sharded_equals_single"
    ]
    given = tmp_path_factory, worker_id, "tests.attention.test_sharding"
    return {line["name"]: line for line in on_eight_devices_once(*given, *selected)}


def test_encoder_with_its_rules_is_the_same(answers):
    assert "encoder" in answers


def test_slow_ones_exist():
    assert not SLOW - NAMES.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES]
)
def test_sharded_equals_single(name, answers):
    assert answers[name]["error"] < 2e-5
    if NAMES[name].entry.kind == "mixer" and "params" in NAMES[name].inputs:
        has_heads = any("kernel" in leaf for leaf in NAMES[name].inputs["params"].values())
        assert answers[name]["split"] == has_heads
    if NAMES[name].entry.kind == "map_attention":
        assert answers[name]["split"] == ("gate" not in NAMES[name].entry.capabilities)


if __name__ == "__main__":
    mechanisms(sys.argv[1:])
