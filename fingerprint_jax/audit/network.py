"""Networks in the panel, on request: trained on the synthetic images and the reference alone, they score the real ones.

Their images are packed anew in the order of their digests, so that names and order of the files change no batch.
"""

import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import rankdata

from fingerprint_jax import Config, methods, objectives
from fingerprint_jax.audit import panel
from fingerprint_jax.data import builder, packing, phantom
from fingerprint_jax.data.source import open_source, pixel_digest
from fingerprint_jax.runs.config import network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import bootstrap

COMBINED = "combined"
ATTACKS = {  # what each compares, for the page; their flags name a config, such as that of this name in configs/subtask1
    "likelihood_ratio": "networks that were trained on the synthetic images and on the reference",
    "reidentification": "of which patient the synthetic images are, by a network that was trained on patients of the reference",
}
WORDS = ATTACKS | {COMBINED: "the mean of the ranks by all but both directions"}

Joins = dict[str, Config]  # {attack: config} of those that join, in the order of ATTACKS


def names(joins: Joins) -> tuple[str, ...]:
    """The methods that stand behind those of the panel."""
    return (*joins, COMBINED) if joins else ()


def check(name: str, config: Config) -> None:
    """Raises ValueError for a config that is not one of membership, or that reads real images which are asked about."""
    if config.task != "subtask1":
        raise ValueError(f"--{name}: a config of {config.task}, use one of subtask1")
    if any(methods.reads(config, split) for split in ("train_real", "test_real")):
        raise ValueError(f"--{name}: the config reads images that are asked about: use one that reads none")


def of_patients(config: Config) -> bool:
    """Whether its network learns from pairs of images of one patient."""
    member = network_config(config)
    return member.method == "gradient" and objectives.of(member.objective.name).of_patients


def scores(
    folder: Path, joins: Joins, real: np.ndarray, generated: np.ndarray, reference: np.ndarray, patients: np.ndarray, seed: int
) -> np.ndarray:
    """Scores [N,K] of real images by the configs, fitted in `folder`, where they go on after a stop.

    Args:
        folder: of the packed images, and of the runs.
        joins: K configs, see `check`.
        real: uint8 [N,H,W], the images asked about.
        generated: uint8 [G,H,W].
        reference: uint8 [R,H,W].
        patients: of the reference, str [R], '' where not known.
        seed: of the networks.

    Raises ValueError where images are packed in `folder` that are not these.
    """
    data = folder / "data"
    # The layout has two folders of real images. Who is in which says nothing here, and nothing reads it.
    halves = np.where(np.arange(len(real)) % 2, "real_used/", "real_not_used/")
    sides = {"train_generated": (generated, ""), "reference": (reference, ""), "train_real": (real, halves)}
    numbered = np.where(patients == "", "", np.char.add("p", bootstrap.as_they_come(patients).astype(str)))
    if not (builder.dataset_dir(data, "subtask1") / "summary.json").exists():
        splits = {}
        for name, (images, prefixes) in sides.items():
            count, order = len(images), panel.canonical(images)
            groups = numbered[order] if name == "reference" else np.full(count, "")
            splits[name] = phantom.Split(images[order], np.full(count, -1), groups, np.broadcast_to(prefixes, count))
        with tempfile.TemporaryDirectory() as place:
            root = Path(place) / "images"
            phantom.write(root, "subtask1", splits, seed=0)
            table = root / "groups.csv" if (patients != "").any() else ""
            packing.pack("subtask1", data, root / "train", "", root / "reference", groups=table)
    source = open_source(str(data), "subtask1")
    for name, (images, _) in sides.items():
        if sorted(source.digests(source.rows(name).index).tolist()) != sorted(map(pixel_digest, images)):
            raise ValueError(f"{folder}: the packed images of {name} are not those of this audit: give another --output")
    return np.column_stack([_scores(folder / name, config, data, real, seed) for name, config in joins.items()])


def _scores(workdir: Path, config: Config, data: Path, real: np.ndarray, seed: int) -> np.ndarray:
    """Scores [N] of real images by one config, fitted in `workdir` to the packed images in `data`."""
    config = ConfigDict(config.to_dict())
    config.data_dir, config.seed, config.data.folds = str(data), seed, 0
    config.decision.name, config.decision.known = "argmax", ""  # nobody asks for its labels, and no row is held out for a threshold
    run = Run(config, workdir)
    methods.fit(run)
    found, rows = methods.predict(run, run.target), run.rows(run.target)
    known = dict(zip(run.source.digests(rows.index).tolist(), found.scores[:, 0], strict=True))
    return np.array([known[pixel_digest(image)] for image in real], np.float64)


def joined(found: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The panel's scores [N,4] with `names` behind: the networks' [N,K], and the mean of the ranks by all but both directions."""
    alone = np.column_stack([found[:, : len(panel.OPTIONS)], scores])
    return np.column_stack([found, scores, rankdata(alone, axis=0).mean(axis=1)])
