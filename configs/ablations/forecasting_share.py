"""What attention over seasons adds to a linear forecast: the mean of both, and each alone.

python -m launch.ablate --config=configs/ablations/forecasting_share.py --workdir=runs/share
    --set data.horizon=192
"""

from launch.runs.ablation import Ablation, Delta


def get_ablation() -> Ablation:
    """The mean whose shares are fitted within train, on etth1, against other shares."""

    def share(of_attention: float) -> Delta:
        return Delta(declares=["model.share"], overrides={"model.share": of_attention})

    return Ablation(
        base="configs/forecasting.py:etth1,ridge_seasonal",
        base_name="ridge_seasonal",
        deltas={
            "ridge_alone": share(0.0),
            "equal_shares": share(0.5),
            "seasons_alone": share(1.0),
        },
        seeds=3,
    )
