"""Ablation of seasonal attention in a linear forecast: the weighted mean of both, and each alone.

python -m launch.ablate --config=configs/ablations/forecasting_share.py --workdir=runs/share
    --set data.horizon=192
"""

from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Compares weights fitted on the training split with fixed weights, on etth1."""
    shares = {"ridge_alone": 0.0, "equal_shares": 0.5, "seasons_alone": 1.0}
    return Ablation(
        base="configs/forecasting.py:etth1,ridge_seasonal",
        base_name="ridge_seasonal",
        deltas=deltas_of("model.share", shares),
        seeds=3,
    )
