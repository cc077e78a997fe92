"""Time of decoding with one query and a long cache, for two layouts of the cache.

python -m benchmarks.cache_layout

`attention.cache` stores [B, K, S, H], so that the keys of a head are contiguous. The other layout
is that of the public functions, [B, S, K, H]. The rounds of the layouts alternate, and the ratio of
the median times is printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from absl import app, flags

flags.DEFINE_integer("length", 4096, "Keys in the cache.", lower_bound=1)
flags.DEFINE_multi_integer("batch", [1, 8], "Batch sizes.", lower_bound=1)
flags.DEFINE_integer("heads", 8, "Heads.", lower_bound=1)
flags.DEFINE_integer("head_size", 64, "Size of a head.", lower_bound=1)
flags.DEFINE_integer("steps", 20, "Steps per round.", lower_bound=1)
flags.DEFINE_integer("rounds", 7, "Rounds per cache layout.", lower_bound=1)
FLAGS = flags.FLAGS


def layouts(batch: int) -> dict[str, Callable[[], object]]:
    """Returns, for each layout, a function that runs a compiled decoding step."""
    import jax
    import jax.numpy as jnp

    from attention import attend, masks

    N, H, S = FLAGS.heads, FLAGS.head_size, FLAGS.length
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (batch, 1, N, H))
    key, value = (jax.random.normal(k, (batch, S, N, H)) for k in keys[1:])
    inside = [jnp.swapaxes(x, 1, 2) + 0 for x in (key, value)]
    lengths = jnp.full((batch,), S - 1)

    @jax.jit
    def heads_first(query, key, value, lengths):
        key, value = (jnp.swapaxes(x, 1, 2) for x in (key, value))
        return attend(query, key, value, mask=masks.causal(lengths))

    @jax.jit
    def positions_first(query, key, value, lengths):
        return attend(query, key, value, mask=masks.causal(lengths))

    return {
        "[B, K, S, H]": lambda: heads_first(query, *inside, lengths),
        "[B, S, K, H]": lambda: positions_first(query, key, value, lengths),
    }


def main(_: list[str]) -> None:
    """Prints the milliseconds of both layouts and their ratio for each batch size."""
    import jax

    for batch in FLAGS.batch:
        runs = layouts(batch)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            jax.block_until_ready(run())
        for _ in range(FLAGS.rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                for _ in range(FLAGS.steps):
                    jax.block_until_ready(run())
                seconds[name].append((time.perf_counter() - began) / FLAGS.steps)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        shown = ", ".join(f"{name} {1e3 * median:.2f} ms" for name, median in medians.items())
        inside, outside = medians.values()
        print(f"batch {batch}, {FLAGS.length} keys: {shown}; ratio {inside / outside:.2f}")


if __name__ == "__main__":
    app.run(main)
