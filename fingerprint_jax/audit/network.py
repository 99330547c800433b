"""A network in the panel, on request: trained on the synthetic images and the reference alone, it scores the real ones.

Its images are packed anew in the order of their digests, so that names and order of the files change no batch.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import rankdata

from fingerprint_jax import Config, methods
from fingerprint_jax.audit import panel
from fingerprint_jax.data import builder, packing, phantom
from fingerprint_jax.runs.run import Run

METHODS = ("likelihood_ratio", "combined")
WORDS = {
    "likelihood_ratio": "networks that were trained on the synthetic images and on the reference",
    "combined": "the mean of the ranks by all but both directions",
}


def check(config: Config) -> None:
    """Raises ValueError for a config that is not one of membership, or that reads real images which are asked about."""
    if config.task != "subtask1":
        raise ValueError(f"--likelihood_ratio: a config of {config.task}, use one of subtask1")
    if any(methods.reads(config, split) for split in ("train_real", "test_real", "test_generated")):
        raise ValueError("--likelihood_ratio: the config reads images that are asked about, or a test set: use one that reads none")


def scores(folder: Path, config: Config, real: np.ndarray, generated: np.ndarray, reference: np.ndarray, seed: int) -> np.ndarray:
    """Scores [N] of real images by the config, fitted in `folder`, where it goes on after a stop.

    Args:
        folder: of the packed images, and of the run.
        config: see `check`.
        real: uint8 [N,H,W], the images asked about.
        generated: uint8 [G,H,W].
        reference: uint8 [R,H,W].
        seed: of the network.

    Raises ValueError where images are packed in `folder` that are not these.
    """
    data = folder / "data"
    # The layout has two folders of real images. Who is in which says nothing here, and nothing reads it.
    halves = np.where(np.arange(len(real)) % 2, "real_used/", "real_not_used/")
    sides = {"train_generated": (generated, ""), "reference": (reference, ""), "train_real": (real, halves)}
    if not (builder.dataset_dir(data, "subtask1") / "summary.json").exists():
        splits = {}
        for name, (images, prefixes) in sides.items():
            count = len(images)
            prefixes = np.broadcast_to(prefixes, count)
            splits[name] = phantom.Split(images[panel.canonical(images)], np.full(count, -1), np.full(count, ""), prefixes)
        with tempfile.TemporaryDirectory() as place:
            root = Path(place) / "images"
            phantom.write(root, "subtask1", splits, seed=0)
            packing.pack("subtask1", data, root / "train", "", root / "reference")
    config = ConfigDict(config.to_dict())
    config.data_dir, config.seed, config.data.folds = str(data), seed, 0
    config.decision.name, config.decision.known = "argmax", ""  # nobody asks for its labels, and no row is held out for a threshold
    run = Run(config, folder / "run")
    for name, (images, _) in sides.items():
        if sorted(run.source.digests(run.source.rows(name).index).tolist()) != sorted(map(_digest, images)):
            raise ValueError(f"{folder}: the packed images of {name} are not those of this audit: give another --output")
    methods.fit(run)
    found, rows = methods.predict(run, run.target), run.rows(run.target)
    known = dict(zip(run.source.digests(rows.index).tolist(), found.scores[:, 0], strict=True))
    return np.array([known[_digest(image)] for image in real], np.float64)


def joined(found: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The panel's scores [N,4] with METHODS behind: the network's [N], and the mean of the ranks of all four members, [N,6]."""
    four = np.column_stack([found[:, : len(panel.OPTIONS)], scores])
    return np.column_stack([found, scores, rankdata(four, axis=0).mean(axis=1)])


def _digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
