"""Ablation of map attention in a small convolutional network on digits.

python -m launch.ablate --config=configs/ablations/map_attentions.py --workdir=runs/map_attentions

Widths, steps and the order of the data are equal. `convnet` is the same network without attention.
The table lists the number of parameters, which depends on the mechanism.
"""

from attention import registry
from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation of every map attention after each stage, one seed."""
    return Ablation(
        base="configs/image_classification.py:convnet",
        base_name="convnet",
        deltas=deltas_of("model.attention", {n: n for n in registry.names("map_attention")}),
        seeds=1,
    )
