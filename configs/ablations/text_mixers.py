"""What the mixer adds: the text Transformer with each mixer in the place of dot-product attention.

python -m launch.ablate --config=configs/ablations/text_mixers.py --workdir=runs/text_mixers

All else is equal: depth, sizes, dropout, steps, order of the data. Windows, blocks, landmarks and
features are chosen small beside the 64 positions of a text, so that each mixer shows what it is;
nothing was tuned for any of them. `fourier` is the control without attention.
"""

from launch.runs.ablation import Ablation, Delta

MIXERS = {
    "sliding_window": "sliding_window(left=8, right=8)",
    "strided": "strided(stride=8)",
    "fixed": "fixed(block=8, summary=1)",
    "longformer": "longformer(window=8)",
    "bigbird": "bigbird(block=8, random_blocks=1)",
    "linformer": "linformer(projected_length=16)",
    "nystromformer": "nystromformer(num_landmarks=8)",
    "linear": "linear",
    "performer": "performer(features=64)",
    "gated_delta_net": "gated_delta_net",
    "talking_heads": "talking_heads",
    "latent": "latent",
    "differential": "differential",
    "fourier": "fourier",
}


def get_ablation() -> Ablation:
    """Every mixer on movie_reviews, one seed."""
    return Ablation(
        base="configs/text_classification.py:movie_reviews,transformer",
        base_name="mixer_dot_product",
        deltas={
            f"mixer_{name}": Delta(declares=["model.mixer"], overrides={"model.mixer": spec})
            for name, spec in MIXERS.items()
        },
        seeds=1,
    )
