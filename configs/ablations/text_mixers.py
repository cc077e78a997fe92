"""Ablation of the mixer in a text Transformer: each mixer replaces dot-product attention.

python -m launch.ablate --config=configs/ablations/text_mixers.py --workdir=runs/text_mixers

Depth, sizes, dropout, steps and the order of the data are equal. Windows, blocks, landmarks and
features are small relative to the 64 positions of a text, so that each approximation has an effect;
none was tuned. `fourier` is the control without attention.
"""

from launch.runs.ablation import Ablation, deltas_of

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
    """Returns an ablation of every mixer on movie_reviews, one seed."""
    return Ablation(
        base="configs/text_classification.py:movie_reviews,transformer",
        base_name="mixer_dot_product",
        deltas=deltas_of("model.mixer", {f"mixer_{name}": MIXERS[name] for name in MIXERS}),
        seeds=1,
    )
