"""The attribution systems side by side, on two cores: every family with its tiny variant, the steps that the minutes allow.

    python -m launch.table --file=launch/tables/subtask2.py --data=mixed64=DIR,mixed64_hard=DIR --controls=DIR --output=DIR \
        --minutes=2 --baseline=residual_svm

The small CNN of AI Multimedia Lab is small enough as it is. SDVA's 26 members are six, and two rounds follow round 0.
"""

from typing import Any

from launch.systems import Row

# The same held-out fifth and the same validation images for every row.
VIEW = {"data.folds": 5, "data.fold": 0, "data.valid": 0.1, "data.split_seed": 0}
MEMBERS, ROUNDS = 6, 3
SIX = f"{MEMBERS} seeds, all take part"


def rows() -> list[Row]:
    """Ours and the plain network first, then team by team."""
    siamese = {"backbone.name": "siamese_cnn"}
    resnet = {"backbone.name": "resnet_tiny", "backbone.stem": "native"}
    features = {"estimator.name": "linear_svm"}
    # Seeds instead of sizes, and all of them: too few members would reach a threshold on these data.
    members = {"ensemble.variants": {}, "ensemble.seeds": MEMBERS, "ensemble.admit": 0.0}
    vote = members | {"member.backbone.name": "efficientnet_tiny"}
    return [
        _row("residual_svm", "residual_svm", {}, networks=0),
        _row("mosaic", "mosaic", {}, networks=0),
        _row("fingerprint_net", "fingerprint_net", {"backbone.name": "fingerprint_net_tiny"}),
        Row("small_cnn", "quickstart", VIEW | siamese),
        _row("aimm_siamese_sampled_mean", "aimm_siamese", siamese, published="0.9904 (1396)"),
        _row("aimm_siamese_all_mean", "aimm_siamese", siamese | {"objective.pairs": "all"}),
        _row("aimm_siamese_all_centroid", "aimm_siamese", siamese | {"objective.pairs": "all", "objective.readout": "centroid"}),
        _row("aimm_features_svm", "aimm_features", features, networks=0, published="0.4913 (1269)", size="frozen"),
        _row("aimm_features_kmeans", "aimm_features", {"estimator.name": "kmeans"}, networks=0, size="frozen"),
        _row("aimm_features_hierarchical", "aimm_features", {"estimator.name": "hierarchical"}, networks=0, size="frozen"),
        _row("aimm_features_finetuned", "aimm_features", features, size="ImageNet weights"),
        _row("medhastra_resnet18", "medhastra_resnet18", resnet, published="0.9484 (1287)", size="stride-1 stem"),
        _row(
            "medhastra_similarity", "medhastra_similarity", _inner(resnet), networks=0, uses=("features.run", "medhastra_resnet18")
        ),
        _row("sdva_efficientnet", "sdva_efficientnet", {"backbone.name": "efficientnet_tiny"}, published="0.9708 (1425)"),
        _row("sdva_vote", "sdva_vote", vote, networks=MEMBERS, published="0.9878 (1426)", size=SIX),
        _row("sdva_pseudo_label", "sdva_pseudo_label", _inner(vote), networks=MEMBERS * ROUNDS, published="0.988 (1782)", size=SIX),
        _row(
            "sdva_pseudo_label_all",
            "sdva_pseudo_label_all",
            _inner(vote),
            networks=MEMBERS * ROUNDS,
            published="0.988 (1871)",
            size=SIX,
        ),
    ]


def _inner(overrides: dict) -> dict:
    return {f"member.{field}": value for field, value in overrides.items()}


def _row(name: str, config: str, overrides: dict, **options: Any) -> Row:
    return Row(name, f"subtask2/{config}", VIEW | overrides, **options)
