"""What of an audit is handed on: no name, no path."""

import hashlib
import json

import numpy as np
import pytest

from fingerprint_jax.audit import release
from fingerprint_jax.audit.sides import Images
from tests.audit.documents import HOSTILE, audit

FLAGGED = [f"used/{HOSTILE}{k}" for k in (1, 2, 3)]


def side(ids, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(ids), 4, 4), np.uint8)
    return Images(np.array(ids), pixels, np.ones(len(ids), int), np.array(ids))


def test_names_are_digests_patients_numbers_and_options_have_no_path(tmp_path):
    sides = {"real": side(FLAGGED, 0), "generated": side([f"gen{k}{HOSTILE}" for k in (1, 2, 3)], 1)}
    sides |= {"unknown": side(["u"], 2), "reference": side(["r"], 3)}
    document = audit("copies found")
    document["exact"] = [
        {"id": "u", "class": "unknown", "group": "patient2 " + HOSTILE, "match": f"gen2{HOSTILE}", "distance": 0.0}
    ]
    pair = {"id": "r", "match": f"gen1{HOSTILE}", "distance": 0.1}
    document["copies"] |= {"reference_pairs": [pair], "groups": document["groups"]}
    options = {"likelihood_ratio": {"weights": "/home/somebody/w.safetensors", "rates": [1, "imagenet"]}}
    document["plan"]["options"] = options
    document["environment"]["settings"] = {"XLA_FLAGS": "--xla_dump_to=/home/Erika Maria/d e", "JAX_PLATFORMS": "cpu"}
    before = json.dumps(document)
    found = release.without_names(document, sides)
    assert found["environment"]["settings"] == {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    assert found["plan"]["options"] == {"likelihood_ratio": {"weights": "", "rates": [1, "imagenet"]}}

    def digest(name, row):
        return hashlib.sha256(sides[name].pixels[row].tobytes()).hexdigest()

    assert [(line["id"], line["match"]) for line in found["copies"]["flagged"]] == [
        (digest("real", k), digest("generated", k)) for k in range(3)
    ]
    assert (found["exact"][0]["id"], found["exact"][0]["match"]) == (digest("unknown", 0), digest("generated", 1))
    assert found["copies"]["reference_pairs"] == [{"id": digest("reference", 0), "match": digest("generated", 0), "distance": 0.1}]
    # A patient has one number in all lists, which begin with the equal images.
    assert [line["group"] for line in found["exact"] + found["copies"]["flagged"]] == ["1", "2", "1", "3"]
    assert [line["group"] for line in found["groups"]] == ["2", "1", "3"]
    assert found["copies"]["groups"] == found["groups"] and json.dumps(document) == before
    release.write(tmp_path, document, sides, {"seed": 0})
    assert {path.name for path in tmp_path.iterdir()} == {*release.FILES}
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert not [word for word in ("onerror", "patient2", "/home/", "Maria", "data:image") if word in text], path


@pytest.mark.parametrize("name", release.FILES)
def test_files_of_somebody_else_are_no_release(name, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text('{"schema": 1}')
    with pytest.raises(ValueError, match=f"^--release=.*/site is handed on, and '{name}' is in it"):
        release.check(tmp_path / "site", tmp_path / "out")


def test_a_kill_leaves_no_page_beside_the_results_of_another_audit(tmp_path, monkeypatch):
    sides = {name: side([], 0) for name in ("real", "generated", "unknown", "reference")}
    document = audit("no evidence")
    release.write(tmp_path / "r", document, sides, {"seed": 0})
    release.check(tmp_path / "r", tmp_path / "out")
    monkeypatch.setattr(release.page, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        release.write(tmp_path / "r", document | {"plan_hash": "other"}, sides, {"seed": 1})
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"audit.json", "audit.yaml"}
    monkeypatch.undo()
    release.check(tmp_path / "r", tmp_path / "out")
    release.write(tmp_path / "r", document, sides, {"seed": 0})
    assert {path.name for path in (tmp_path / "r").iterdir()} == {*release.FILES}
