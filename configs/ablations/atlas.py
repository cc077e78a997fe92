"""Ablations of every kind of mechanism, each in a task, at equal numbers of parameters.

python -m launch.ablate --config=configs/ablations/atlas.py --workdir=runs/atlas

    mixers           text classification, movie_reviews
    pools            text classification, movie_reviews
    alignments       reversal of digit strings
    map_attentions   image classification, fashion_mnist
    lags             forecasting, etth1
    users            recommendation, movielens_100k

In each group, depth, steps, optimizer and the order of the data are equal, and one width of each
model is adjusted so that its number of parameters is within 2 % of that of the base. Lag attention
has no widths; with one head, `lag_residual` has 0.2 % more parameters than the base. The models of
`users` have sizes and settings of their own. `user_neighbours` has few parameters at any setting
and is not compared. The 135 runs take hours on 2 cores.
"""

import dataclasses

from attention import registry
from launch.engine import config as configs
from launch.runs.ablation import Ablation, Delta, deltas_of, load_ablation


def get_ablations() -> dict[str, Ablation]:
    """Returns an ablation for each kind of mechanism, three seeds each."""
    # With one head, the number of channels can be adjusted freely.
    maps = {name: name for name in registry.names("map_attention")}
    maps |= {name: f"{name}(num_heads=1)" for name in ("axial", "shifted_window")}
    pools = [name for name in registry.names("pool") if name != "attention"]
    # With two heads, the number of parameters can be matched within 2 %.
    alignments = _matched("alignments")
    changed = deltas_of("model.alignment", {"multi_head": "multi_head(num_heads=2)"})
    return {
        "mixers": _matched("text_mixers"),
        "pools": dataclasses.replace(
            _matched("text_pooling"),
            deltas=deltas_of("model.pooling", {name: name for name in pools}),
        ),
        "alignments": dataclasses.replace(alignments, deltas={**alignments.deltas, **changed}),
        "map_attentions": Ablation(
            base="configs/image_classification.py:fashion_mnist,convnet",
            base_name="none",
            overrides={"training.steps": 1600, "training.evaluate_every": 400},
            deltas=deltas_of("model.attention", maps),
            match=True,
        ),
        "lags": Ablation(
            base="configs/forecasting.py:etth1,lag",
            base_name="lag",
            deltas={
                "lag_residual": Delta(
                    ["model.name", "model.num_heads", "model.level"],
                    {"model.num_heads": 1},
                    config="configs/forecasting.py:etth1,residual_lag",
                )
            },
        ),
        "users": _families(
            "configs/recommendation.py:movielens_100k,{}", "sasrec", ("bert4rec", "nais", "acf")
        ),
    }


def _matched(name: str) -> Ablation:
    """Returns an ablation of this directory with three seeds and equal numbers of parameters."""
    found = load_ablation(f"configs/ablations/{name}.py")
    return dataclasses.replace(found, seeds=3, match=True)


def _families(file: str, base: str, others: tuple[str, ...]) -> Ablation:
    """Returns an ablation of models whose configs have different fields and settings."""
    first, deltas = configs.load_file(file.format(base)), {}
    for name in others:
        other = configs.override(configs.load_file(file.format(name)), {"name": first.name})
        changed = configs.differences(first, other)
        deltas[name] = Delta(changed, config=file.format(name))
    return Ablation(base=file.format(base), base_name=base, deltas=deltas, seeds=3)
