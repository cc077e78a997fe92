"""Ablation of ridge_seasonal, a weighted mean of a ridge and a seasonal attention forecast.

python -m launch.ablate --config=configs/ablations/forecasting_share.py --workdir=runs/share
    --set data.horizon=192
"""

from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation that compares fitted weights with equal ones and each forecast alone."""
    shares = {"ridge_alone": 0.0, "equal_shares": 0.5, "seasons_alone": 1.0}
    return Ablation(
        base="configs/forecasting.py:etth1,ridge_seasonal",
        base_name="ridge_seasonal",
        deltas=deltas_of("model.share", shares),
        seeds=3,
    )
