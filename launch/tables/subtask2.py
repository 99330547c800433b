"""The attribution systems side by side, on two cores: every family with its tiny variant, the steps that the minutes allow.

    python -m launch.table --file=launch/tables/subtask2.py --data=mixed64=DIR,mixed64_hard=DIR --controls=DIR --output=DIR \
        --minutes=2 --baseline=quickstart
"""

from launch.systems import Row

# The same held-out fifth and the same validation images for every row.
VIEW = {"data.folds": 5, "data.fold": 0, "data.valid": 0.1, "data.split_seed": 0}
MEMBERS = 6


def rows() -> list[Row]:
    """Baseline first, then team by team."""
    siamese, resnet, efficientnet = ({"backbone.name": name} for name in ("siamese_cnn_tiny", "resnet_tiny", "efficientnet_tiny"))
    return [
        _row("quickstart", "configs/quickstart.py", siamese),
        _row("aimm_siamese_sampled_mean", "configs/subtask2/aimm_siamese.py", siamese, published="0.9904 (1396)"),
        _row("aimm_siamese_all_mean", "configs/subtask2/aimm_siamese.py", siamese | {"objective.pairs": "all"}),
        _row(
            "aimm_siamese_all_centroid",
            "configs/subtask2/aimm_siamese.py",
            siamese | {"objective.pairs": "all", "objective.readout": "centroid"},
        ),
        _row(
            "medhastra_resnet18",
            "configs/subtask2/medhastra_resnet18.py",
            resnet | {"backbone.stem": "native"},
            published="0.9484 (1287)",
        ),
        _row("sdva_efficientnet", "configs/subtask2/sdva_efficientnet.py", efficientnet, published="0.9708 (1425)"),
        _row(
            "sdva_vote",
            "configs/subtask2/sdva_vote.py",
            # Seeds instead of sizes, and all of them: too few members would reach a threshold on these data.
            {f"member.{field}": value for field, value in efficientnet.items()}
            | {"ensemble.variants": {}, "ensemble.seeds": MEMBERS, "ensemble.admit": 0.0},
            networks=MEMBERS,
            published="0.9878 (1426)",
        ),
    ]


def _row(name: str, config: str, overrides: dict, **options) -> Row:
    return Row(name, config, VIEW | overrides, **options)
