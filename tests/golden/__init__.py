"""What every config says, and the first training step of each network: files that a change must not move unnoticed.

python -m tests.golden writes the configs anew, and `pytest tests/test_end_to_end.py --golden` the steps.
"""

import difflib
import json
import re
from pathlib import Path

import numpy as np

from fingerprint_jax.runs.config import config_hash, flat_config

CONFIGS = Path(__file__).with_name("configs.txt")
STEPS = Path(__file__).with_name("steps.json")
RENEW = "if this is meant, run: python -m tests.golden"


def variants(path: str) -> list[str]:
    """'' and the names after the colon that a config knows, `smoke` among them."""
    from tests.conftest import load_config

    try:
        load_config(path, "no such variant")
    except ValueError as error:
        return ["", *re.findall(r"[\w-]+", str(error).rpartition("known: ")[2])]
    raise AssertionError(f"{path} takes any variant")


def text(paths: list[str]) -> str:
    """Each config, resolved, with its hash; of a variant the fields that differ from the config without one."""
    from tests.conftest import load_config

    lines = []
    for path in paths:
        plain: dict = {}
        for variant in variants(path):
            config = load_config(path, variant)
            fields = flat_config(config)
            lines.append(f"{path}{':' * bool(variant)}{variant} {config_hash(config)}")
            lines += [f"  {name} = {value!r}" for name, value in sorted(fields.items()) if plain.get(name, ...) != value]
            lines += [f"  {name} is gone" for name in sorted(plain.keys() - fields.keys())]
            plain = plain or fields
    return "\n".join(lines) + "\n"


def differences(before: str, after: str) -> str:
    """The lines that differ, each below its config."""
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "golden", "now", lineterm="", n=3))


def first_step(run) -> dict[str, float]:
    """Loss and norm of the gradients at step 1 of the first network, by name, that a run has trained; empty where there is none."""
    for path in sorted(run.workdir.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines and lines[0]["step"] == 1 and "loss" in lines[0]:
            return {name: lines[0][name] for name in ("loss", "grad_norm")}
    return {}


def check_step(path: str, found: dict[str, float], renew: bool) -> None:
    """Compares the first step of a config, shrunk, with that in `steps.json`, or puts it there."""
    known = json.loads(STEPS.read_text())
    if renew:
        known[path] = {name: float(f"{value:.6g}") for name, value in found.items()}
        STEPS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        return
    assert path in known, f"{path} is new: python -m pytest tests/test_end_to_end.py --golden -k {path}"
    assert found.keys() == known[path].keys()
    for name, value in found.items():
        np.testing.assert_allclose(
            value,
            known[path][name],
            rtol=1e-3,  # versions of JAX and processors round otherwise
            err_msg=f"{path}: {name} of the first step. A change of it changes what is trained: the network, its parameters, the"
            " order of the images, augmentation or the loss. If that is meant: python -m pytest tests/test_end_to_end.py --golden",
        )
