"""Ablation of the hybrid recommender: each part removed, and a Transformer added.

python -m launch.ablate --config=configs/ablations/recommendation_parts.py --workdir=runs/parts
"""

from launch.runs.ablation import Ablation, Delta


def get_ablation() -> Ablation:
    """Returns an ablation of each part of the hybrid recommender on movielens_100k, one seed."""

    def changed(part: str, value: float | bool) -> Delta:
        return Delta(declares=[f"model.{part}"], overrides={f"model.{part}": value})

    return Ablation(
        base="configs/recommendation.py:movielens_100k,hybrid",
        base_name="hybrid",
        deltas={
            "without_ridge": changed("ridge", 0.0),
            "without_transitions": changed("transition_window", 0),
            "without_neighbours": changed("neighbours", 0),
            "with_sequence": changed("sequence", True),
        },
        seeds=1,
    )
