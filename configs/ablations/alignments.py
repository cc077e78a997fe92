"""Ablation of the alignment in string reversal: "dot" is replaced by each other alignment.

python -m launch.ablate --config=configs/ablations/alignments.py --workdir=runs/alignments

Sizes, steps and the order of the data are equal. `none` is the control with one fixed context
vector for the complete string. The accuracy by string length shows where one vector is not enough.
"""

from attention import registry
from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation of every alignment on reversed digits, with one seed."""
    names = [name for name in registry.names("alignment") if name != "dot"]
    return Ablation(
        base="configs/sequence_copy.py:dot",
        base_name="dot",
        deltas=deltas_of("model.alignment", {name: name for name in names}),
        seeds=1,
    )
