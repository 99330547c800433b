"""ZOQ's grid: filters and similarities of the filtered images.

    python -m launch.sweep --config=configs/subtask1/zoq_cnn_ssim.py --data_dir=$HOME/data --file=launch/ablations/zoq.py \
        --output=sweeps/zoq
"""

from launch.sweep import Overrides, product, values


def sweep() -> list[Overrides]:
    """Five filters times three similarities."""
    filters = values("member.features.enhance", "none", "gaussian", "laplacian", "hessian", "bilateral")
    return product(filters, values("member.estimator.measure", "cosine", "ssim", "jaccard"))
