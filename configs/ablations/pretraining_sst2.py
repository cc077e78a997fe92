"""Ablation of pre-training on the training texts, against the same classifier from scratch.

python -m launch.train --config=configs/language_modeling.py:sst2 --workdir=runs/sst2_masked
python -m launch.ablate --config=configs/ablations/pretraining_sst2.py
    --workdir=runs/pretraining_sst2
"""

from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation of a fine-tuned encoder on sst2, with three seeds."""
    return Ablation(
        base="configs/text_classification.py:sst2,pretrained",
        base_name="pretrained",
        deltas=deltas_of("model.init_from", {"from_scratch": ""}),
        seeds=3,
    )
