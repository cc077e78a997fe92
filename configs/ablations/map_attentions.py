"""What an attention over feature maps adds to a small convolutional network on digits.

python -m launch.ablate --config=configs/ablations/map_attentions.py --workdir=runs/map_attentions

All else is equal: widths, steps, order of the data. `convnet` is the same network without
attention. Parameters differ by what each mechanism adds; the table counts them.
"""

from attention import registry
from launch.runs.ablation import Ablation, Delta


def get_ablation() -> Ablation:
    """Every map attention after each stage, one seed."""
    return Ablation(
        base="configs/image_classification.py:convnet",
        base_name="convnet",
        deltas={
            name: Delta(declares=["model.attention"], overrides={"model.attention": name})
            for name in registry.names("map_attention")
        },
        seeds=1,
    )
