"""Effects of the options with which steps are compiled for absent devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from launch.engine import compilation, topologies

pytestmark = pytest.mark.accelerator


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.skipif(
    not topologies.is_installed("tpu"), reason="requirements-tpu.txt is not installed"
)
def test_a_convolution_has_less_code_and_the_same_memory_on_a_tpu():
    device = topologies.topology("v5e:1").devices[0]
    shapes = (8, 45, 60, 48), (3, 3, 48, 48)
    where = SingleDeviceSharding(device)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for shape in shapes]
    lowered = jax.jit(convolution).trace(*arrays).lower(lowering_platforms=("tpu",))
    found = compilation.compile_program(lowered, "tpu").memory_analysis()
    plain = lowered.compile().memory_analysis()
    assert found.generated_code_size_in_bytes < plain.generated_code_size_in_bytes / 2
    assert found.temp_size_in_bytes == plain.temp_size_in_bytes
