"""What trained recommenders gain on the cheap ones, user by user, with an interval.

python -m benchmarks.recommendation_gain --workdir=runs/hybrid-0 --workdir=runs/hybrid-1

Runs of one config but for the seed, on the same data. Of each user the mean NDCG@10 over the runs,
that of the baseline taken away; the interval is the normal one of 95 % over the users.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from absl import app, flags

flags.DEFINE_multi_string("workdir", None, "A run folder of the task recommendation.")
flags.DEFINE_multi_string("baseline", ["ease_markov"], "Which baselines.")
flags.mark_flag_as_required("workdir")


def gain(runs: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """Mean difference to the baseline and half its interval.

    Args:
      runs: [runs, users], NDCG@10.
      baseline: [users].
    """
    difference = runs.mean(axis=0) - baseline
    half = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    return float(difference.mean()), float(half)


def main(_) -> None:
    from launch.engine import run
    from launch.engine.config import differences
    from tasks.common.errors import UserError
    from tasks.common.paths import Paths
    from tasks.recommendation.baselines import Baselines
    from tasks.recommendation.data import examples, load
    from tasks.recommendation.metrics import ndcg

    folders = [Path(folder) for folder in flags.FLAGS.workdir]
    configs = [run.saved_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if differing := set(differences(config, configs[0])) - {"seed"}:
            raise UserError(f"--workdir={folder}: differs from the first in {sorted(differing)}")
    config = configs[0].data
    data = load(config, Paths.default())
    splits = (examples(data, config, split) for split in ("validation", "test"))
    fitted = Baselines(data, *splits)
    runs = np.stack([np.load(folder / "outputs-test.npz")["correctness"] for folder in folders])
    for name in flags.FLAGS.baseline:
        found = ndcg(fitted.ranks(name)[0])
        mean, half = gain(runs, found)
        print(f"NDCG@10 {runs.mean():.4f}, {name} {found.mean():.4f}: {mean:+.4f} ± {half:.4f}")


if __name__ == "__main__":
    app.run(main)
