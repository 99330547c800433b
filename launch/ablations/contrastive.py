"""What the Siamese systems owe to margin, pairs and readout: one factor at a time around the published setting, three seeds.

    python -m launch.sweep --config=configs/subtask2/aimm_siamese.py --data_dir=$HOME/data \
        --file=launch/ablations/contrastive.py --output=sweeps/contrastive
"""

from launch.sweep import Overrides, chain, product, values


def sweep() -> list[Overrides]:
    """Five settings, the published one first, times three seeds."""
    settings = chain(
        [{}],
        values("objective.margin", 0.5, 2.0),
        values("objective.pairs", "all"),
        values("objective.readout", "centroid"),
    )
    return product(settings, values("seed", 0, 1, 2))
