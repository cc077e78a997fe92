"""What attention adds to pooling: the same embeddings and head, mean and max in its place.

python -m launch.ablate --config=configs/ablations/text_pooling.py --workdir=runs/text_pooling
"""

from launch.runs.ablation import Ablation, Delta


def get_ablation() -> Ablation:
    """Attention pooling on movie_reviews against mean and max, three seeds."""
    return Ablation(
        base="configs/text_classification.py:movie_reviews,attention_pooling",
        base_name="attention",
        deltas={
            "mean": Delta(declares=["model.pooling"], overrides={"model.pooling": "mean"}),
            "max": Delta(declares=["model.pooling"], overrides={"model.pooling": "max"}),
        },
        seeds=3,
    )
