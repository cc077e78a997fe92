"""Ablation of the alignment: reversed strings, with each alignment instead of "dot".

python -m launch.ablate --config=configs/ablations/alignments.py --workdir=runs/alignments

Sizes, steps and the order of the data are equal. `none` is the control with one fixed context
vector for the complete string; the columns by length show its limit.
"""

from attention import registry
from launch.runs.ablation import Ablation, deltas_of


def get_ablation() -> Ablation:
    """Returns an ablation of every alignment on reversed digits, one seed."""
    names = [name for name in registry.names("alignment") if name != "dot"]
    return Ablation(
        base="configs/sequence_copy.py:dot",
        base_name="dot",
        deltas=deltas_of("model.alignment", {name: name for name in names}),
        seeds=1,
    )
