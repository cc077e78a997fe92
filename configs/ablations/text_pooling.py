"""Ablation of attention pooling: the same embeddings and head with mean or max pooling.

python -m launch.ablate --config=configs/ablations/text_pooling.py --workdir=runs/text_pooling
"""

from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation of attention pooling on movie_reviews, with three seeds."""
    return Ablation(
        base="configs/text_classification.py:movie_reviews,attention_pooling",
        base_name="attention",
        deltas=deltas_of("model.pooling", {"mean": "mean", "max": "max"}),
        seeds=3,
    )
