"""What the alignment adds: strings written backwards, with each alignment in the place of "dot".

python -m launch.ablate --config=configs/ablations/alignments.py --workdir=runs/alignments

All else is equal: sizes, steps, order of the data. `none` is the control: one fixed vector has to
hold the whole string, and the columns by length show up to where it can.
"""

from attention import registry
from launch.runs.ablation import Ablation, Delta


def get_ablation() -> Ablation:
    """Every alignment on reversed digits, one seed."""
    return Ablation(
        base="configs/sequence_copy.py:dot",
        base_name="dot",
        deltas={
            name: Delta(declares=["model.alignment"], overrides={"model.alignment": name})
            for name in registry.names("alignment")
            if name != "dot"
        },
        seeds=1,
    )
