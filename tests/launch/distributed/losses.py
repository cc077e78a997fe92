"""Trains models for some steps and prints losses, metrics and outputs, on one process or several.

python -m tests.launch.distributed.losses CONFIGS FOLDER STEPS [auto|HOST:PORT,N,I]

CONFIGS is a JSON file with experiments by name, and FOLDER the directory of data and caches.
"""

import json
import pathlib
import sys

from launch.engine import config as configs
from launch.engine import devices, evaluation, processes
from launch.engine import state as states
from launch.engine import steps as engine
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import train_iterator


def trained(config, paths, steps):
    """Returns the losses of each step, and the metrics and outputs on the validation split."""
    task = configs.task_class(config.task).prepare(config.data, config.model, paths)
    compiled = engine.make_steps(task, config)
    state = compiled.init()
    batches = train_iterator(
        task.examples("train"),
        batch_size=config.training.batch_size,
        seed=config.seed,
        buckets=task.buckets,
        multiple=compiled.batch_shards,
        shards=compiled.local_shards,
    )
    losses = []
    for _ in range(steps):
        state, metrics = compiled.train(state, compiled.place(next(batches)))
        losses.append(float(metrics["loss"]))
    variables = states.evaluation_variables(state)
    size = config.training.evaluation_batch_size
    found = evaluation.evaluate(task, compiled, variables, "validation", size)
    count = {len(value) for value in found.outputs.values()}
    return {"losses": losses, "metrics": found.metrics, "examples": sorted(count)}


def main(file, folder, steps, connection=None):
    """Prints a line of JSON on the first process."""
    found = json.loads(pathlib.Path(file).read_text())
    folder = pathlib.Path(folder)
    given = None if connection is None else processes.parse(connection, 240)
    devices.set_up_jax(folder, None, given)
    paths = Paths.default(data_dir=folder / "data", cache_dir=folder / "cache")
    results = {
        name: trained(configs.resolve(values), paths, int(steps)) for name, values in found.items()
    }
    results["processes"] = processes.count()
    results["largest"] = processes.largest(7 if not processes.is_first() else 3)
    results["first"] = processes.from_first(lambda: processes.is_first())
    if processes.is_first():
        print(json.dumps(results), flush=True)
    processes.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
