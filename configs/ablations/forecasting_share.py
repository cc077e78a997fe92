"""Ablation of seasonal attention in a linear forecast: the weighted mean of both, and each alone.

python -m launch.ablate --config=configs/ablations/forecasting_share.py --workdir=runs/share
    --set data.horizon=192
"""

from launch.runs.ablation import Ablation, Delta


def get_ablation() -> Ablation:
    """Compares weights fitted on the training split with fixed weights, on etth1."""

    def share(of_attention: float) -> Delta:
        return Delta(declares=["model.share"], overrides={"model.share": of_attention})

    return Ablation(
        base="configs/forecasting.py:etth1,ridge_seasonal",
        base_name="ridge_seasonal",
        deltas={"ridge_alone": share(0.0), "equal_shares": share(0.5), "seasons_alone": share(1.0)},
        seeds=3,
    )
