"""Ablation of pre-training on the training texts, against the same classifier from scratch.

python -m launch.train --config=configs/language_modeling.py:movie_reviews
    --workdir=runs/movie_reviews_masked
python -m launch.ablate --config=configs/ablations/pretraining.py --workdir=runs/pretraining
"""

from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation of a fine-tuned encoder on movie_reviews, with three seeds."""
    return Ablation(
        base="configs/text_classification.py:movie_reviews,pretrained",
        base_name="pretrained",
        deltas=deltas_of("model.init_from", {"from_scratch": ""}),
        seeds=3,
    )
