"""Results of audits, made up: what each verdict looks like."""

import json

import numpy as np
from jsonschema import Draft202012Validator
from scipy.stats import binomtest

from tests.conftest import ROOT

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
SCHEMA = Draft202012Validator(json.loads((ROOT / "fingerprint_jax" / "audit" / "audit.schema.json").read_text()))
RATES = {0.02: 2, 0.05: 5, 0.1: 10, 0.2: 20, 0.5: 50}  # and the patients of whom an image is imprinted, of 100


def interval(detected: int, repeats: int) -> list[float]:
    """Of Clopper and Pearson."""
    exact = binomtest(detected, repeats).proportion_ci(method="exact")
    return [exact.low, exact.high]


def kind(name: str, strength: float | None, detected: list[int], smallest: dict | None) -> dict:
    points = [
        {
            "rate": rate,
            "images": images,
            "patients": float(images),
            "distance": 0.25,
            "detected": k,
            "repeats": 20,
            "power": k / 20,
            "interval": interval(k, 20),
        }
        for (rate, images), k in zip(RATES.items(), detected, strict=True)
    ]
    return {"kind": name, "strength": strength, "points": points, "smallest": smallest}


def audit(verdict: str = "no evidence") -> dict:
    """The whole of an audit, of chest images; parts agree with the verdict."""
    flagged = [
        {
            "id": f"used/{HOSTILE}{k}",
            "class": "used",
            "group": f"patient{k} {HOSTILE}",
            "match": f"gen{k}{HOSTILE}",
            "distance": 0.0125 * k,
            "p": 0.0005,
        }
        for k in range(1, 4)
    ]
    copies = verdict == "copies found"
    told = {"evidence of use": (0.12, [0.03, 0.2]), "a difference that content explains": (0.02, [-0.05, 0.09])}
    value, span = told.get(verdict, (-0.01, [-0.1, 0.07]))
    return {
        "schema": 1,
        "date": "2026-11-25",
        "seconds": 812.0,
        "versions": {"jax": "0.12.0"},
        "environment": {
            "fingerprint_jax": "0.1.0",
            "commit": "0123456789abcdef",
            "changed": True,
            "python": "3.11.7",
            "devices": "cpu x 2 (Processor)",
            "settings": {"XLA_FLAGS": "--xla_dump_to=d"},
            "self_test": "passed",
        },
        "fingerprints": {"used": "5f2c9a", "not_used": "77ab01", "generated": "c0ffee"},
        "command": f"python -m fingerprint_jax.audit --generated='{HOSTILE}' --used=used --not_used=not_used --output=out",
        "about": {"generator_name": "diffusion, 3rd run", "requester": "the ethics board", "institution": "a hospital"},
        "plan": {
            "methods": ["gan_leaks", "mosaic", "local_match", "both_directions"],
            "sign": "higher is likelier used",
            "statistic": "max AUC",
            "alpha": 0.05,
            "permutations": 999,
            "seed": 0,
            "options": {"gan_leaks": {"k": 1, "calibrated": True}},
            "imprints": {"kinds": [["verbatim", None], ["blend", 0.75]]},
            "patients": {
                "score": "mean",
                "copies": "one p a patient",
                "imprints": "one image a patient",
                "counts": {"used_patients": 90},
            },
        },
        "plan_hash": "ab12cd34",
        "counts": {
            "used": 100,
            "not_used": 100,
            "unknown": 0,
            "generated": 3500,
            "reference": 2000,
            "groups": 180,
            "duplicates": 3,
            "blank": 4,
            "within": 7,
            "real": 2200,
            "without_patient": 5,
            "unmatched_ids": 6,
            "used_patients": 90,
            "not_used_patients": 90,
            "unknown_patients": 0,
            "asked_patients": 180,
            "reference_patients": 2000,
        },
        "image_size": [64, 64],
        "rejected": {"used": [2, 102], "generated": [300, 3800]},
        "reference_from": "given",
        "verdict": {
            "name": verdict,
            "short": "",
            "sentence": "",
            "next": ["Do this first.", "Do that then."],
            "patients": "Every image was taken for a patient.",
            "reasons": ["18 used images are too few"] if verdict == "cannot tell" else [],
        },
        "panel": {
            "methods": [
                {"name": "gan_leaks", "auc": 0.625, "interval": [0.542, 0.7], "p": 0.005},
                {"name": "mosaic", "auc": 0.59, "interval": [0.511, 0.667], "p": 0.022},
                {"name": "local_match", "auc": 0.761, "interval": [0.695, 0.824], "p": 0.001},
                {"name": "both_directions", "auc": 0.7, "interval": [0.63, 0.77], "p": 0.001},
            ],
            "p": 0.001 if verdict in told else 0.412,
            "p_wrong_direction": 0.002 if "wrong" in verdict else 0.99,
            "permutations": 999,
            "split_groups": 0,
        },
        "controls": {
            "content": [
                {"name": "files", "auc": 0.5, "interval": [0.5, 0.5]},
                {"name": "order", "auc": 0.48, "interval": [0.4, 0.56]},
                {"name": "intensity", "auc": 0.6, "interval": [0.52, 0.68]},
                {"name": "texture", "auc": 0.55, "interval": [0.47, 0.63]},
                {"name": "layout", "auc": 0.52, "interval": [0.44, 0.6]},
                {"name": "coarse", "auc": 0.54, "interval": [0.46, 0.62]},
                {"name": "kernel", "auc": 0.51, "interval": [0.43, 0.59]},
                {"name": "likeness", "auc": 0.53, "interval": [0.45, 0.61]},
            ],
            "replaced": [
                {"name": "gan_leaks", "auc": 0.485, "interval": [0.408, 0.567]},
                {"name": "mosaic", "auc": 0.481, "interval": [0.401, 0.562]},
                {"name": "local_match", "auc": 0.558, "interval": [0.475, 0.636]},
                {"name": "both_directions", "auc": 0.51, "interval": [0.43, 0.59]},
            ],
            "alone": [
                {"name": "gan_leaks", "auc": 0.53, "interval": [0.45, 0.61]},
                {"name": "mosaic", "auc": 0.52, "interval": [0.44, 0.6]},
                {"name": "local_match", "auc": 0.47, "interval": [0.39, 0.55]},
                {"name": "both_directions", "auc": 0.51, "interval": [0.43, 0.59]},
            ],
            "replaced_by": "matched reference images",
        },
        "excess": {"value": value, "interval": span, "attack": "local_match", "control": "intensity"},
        "copies": {
            "fdr": 0.05,
            "reference": 2000,
            "reference_groups": 2000,
            "smallest_p": 1 / 2001,
            "fewest": 2,
            "flagged": flagged if copies else [],
            "closer": flagged[:1] if copies else [],
            "closest_reference_pair": 0.21,
            "against_reference": [
                {"name": "used", "auc": 0.55, "interval": [0.47, 0.63]},
                {"name": "not_used", "auc": 0.48, "interval": [0.4, 0.56]},
            ],
        },
        "exact": [],
        "near": {"used": 0, "not_used": 1, "within": 7},
        "turned": None,
        "limit": {
            "pool": 200,
            "used": 100,
            "not_used": 100,
            "reference": 1800,
            "used_patients": 100,
            "null": {"detected": 5, "repeats": 100, "power": 0.05, "interval": interval(5, 100)},
            "kinds": [
                kind("verbatim", None, [4, 17, 20, 20, 20], {"rate": 0.05, "one_in": 20, "interval": [0.05, 0.1]}),
                kind("shifted", None, [2, 12, 18, 20, 20], {"rate": 0.1, "one_in": 10, "interval": [0.05, 0.2]}),
                kind("blend", 0.75, [2, 8, 17, 19, 20], {"rate": 0.1, "one_in": 10, "interval": [0.1, 0.5]}),
                kind("blend", 0.5, [1, 3, 6, 13, 16], {"rate": 0.5, "one_in": 2, "interval": [0.2, None]}),
                kind("blend", 0.25, [1, 1, 2, 4, 7], None),
                kind("patch", None, [0, 2, 5, 11, 15], None),
            ],
        },
        "groups": [{"group": row["group"], "images": 2, "flagged": 1} for row in flagged] if copies else [],
        "not_tested": ["attacks that train networks", "attacks on the generator's weights"],
    }


def pictures() -> list:
    """Two flagged images with their matches, each beside the reference pair of the same rank."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 16, 16), dtype=np.uint8)
    return [
        (f"used/{HOSTILE}{k}" if k % 2 == 0 else "Reference image of the same rank", image[k], image[k], f"At distance {k}.")
        for k in range(4)
    ]
