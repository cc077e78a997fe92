"""attend and the encoder on 8 virtual devices give the numbers of one, in a process of their
own.
"""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]


def sharding_of(path, rules, mesh):
    from jax.sharding import NamedSharding, PartitionSpec

    found = [axes for pattern, axes in rules if re.search(pattern, path)]
    return NamedSharding(mesh, PartitionSpec(*found[0]) if found else PartitionSpec())


def main():
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from tasks.common.backbones.transformer import SHARDING_RULES, Encoder, EncoderConfig

    assert jax.device_count() == 8
    config = EncoderConfig(8, 1, 2, 8, dropout_rate=0.1, attention_dropout_rate=0.1)
    graphdef, state = nnx.split(Encoder(config, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (8, 5, 8))
    lengths = jnp.array([5, 3, 0, 1, 5, 4, 2, 5])

    def loss(state, x, lengths, key):
        states = nnx.merge(graphdef, state)(x, lengths=lengths, dropout_key=key)
        return jnp.sum(states**2 * (jnp.arange(5) < lengths[:, None])[..., None])

    step = jax.jit(jax.value_and_grad(loss))
    single = step(state, x, lengths, jax.random.key(2))
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    flat = {
        path: jax.device_put(leaf[...], sharding_of("/".join(map(str, path)), SHARDING_RULES, mesh))
        for path, leaf in nnx.to_flat_state(state)
    }
    sharded = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(sharded, nnx.traversals.unflatten_mapping(flat))
    kernel = flat["layers", 0, "attention", "query", "kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 1, 4)
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    split = step(sharded, *jax.device_put((x, lengths), batch), jax.random.key(2))
    np.testing.assert_allclose(split[0], single[0], rtol=1e-5)
    for one, many in zip(jax.tree.leaves(single[1]), jax.tree.leaves(split[1]), strict=True):
        np.testing.assert_allclose(many, one, atol=2e-5)
    print("same on 8 devices")


def test_encoder_with_its_rules_is_the_same_on_eight_devices():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.attention.test_sharding"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "same on 8 devices" in result.stdout


if __name__ == "__main__":
    main()
