"""Generators: trained on known images, what they made, and the folders that it all goes to."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from fingerprint_jax import Config, methods, objectives
from fingerprint_jax.data import builder, controls, images, packing, phantom
from fingerprint_jax.data.phantom import Split
from fingerprint_jax.data.source import Rows, Source, open_source
from fingerprint_jax.estimators import search
from fingerprint_jax.leaks.pool import verified
from fingerprint_jax.objectives import Generative
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from fingerprint_jax.stats import score_metrics, two_sample
from fingerprint_jax.training import inference, network_features, sampling

BATCH = 64  # images that are made at a time
SHOWN = 12  # images in a row of the grid
_OFFICIAL = re.compile(r"(\w+/)+[0-9]+\.png|(groups|truth)\.csv")  # as `phantom.write` names them


def some(rows: Rows, images: int, rng: np.random.Generator, who: str) -> Rows:
    """Whole groups of rows in random order, as many as have no more images; fewer images are part of more.

    Raises ValueError where there are fewer in all; `who` says what they are.
    """
    names = rng.permutation(np.unique(rows.groups))
    order = np.argsort(names)
    rank = order[np.searchsorted(names[order], rows.groups)]  # of the group of an image
    before = np.cumsum(np.bincount(rank))
    if before[-1] < images:
        raise ValueError(f"--images={images}: {who} {before[-1]}: give fewer")
    if before[0] > images:
        raise ValueError(f"--images={images}: a patient that was drawn has {before[0]}, and patients stay whole: give more")
    return rows.take(before[rank] <= images)


def check(config: Config, flag: str) -> type[Generative]:
    """The objective of a config; raises ValueError that names the flag where it trains no generator of any images."""
    objective = objectives.of(config.objective.name) if config.method == "gradient" else None
    if objective is None or not issubclass(objective, Generative) or config.task != "images":
        raise ValueError(f"{flag}: no generator of the task images: use generators/flow")
    return objective


def real(source: Source, drawn: dict[str, Rows], sides: dict[str, int], prefix: bool = False) -> Split:
    """The images of some of the rows that were drawn, with the label of each side; with `prefix` a side has a folder of its own."""
    rows = Rows.concatenate([drawn[name] for name in sides])
    counts = [len(drawn[name]) for name in sides]
    prefixes = np.repeat([f"real_{name}/" if prefix else "" for name in sides], counts)
    return Split(source.images(rows.index)[..., 0], np.repeat(list(sides.values()), counts), patients(source, rows), prefixes)


def patients(source: Source, rows: Rows) -> np.ndarray:
    """The groups of rows as `Split` has them: an image without a known patient is one of its own."""
    return np.where(source.known(rows.groups), rows.groups, "")


def train(config: Config, workdir: Path, packed: Path, source: Source, members: Rows) -> Run:
    """The run of a generator, trained on some images of a source and nothing else, which are packed in `packed`."""
    if not builder.dataset_dir(packed, "images").exists():
        with tempfile.TemporaryDirectory() as temporary:
            (used := Path(temporary) / "used").mkdir()
            for i, image in enumerate(source.images(members.index)[..., 0]):
                Image.fromarray(image).save(used / f"{i:06d}.png")
            packing.pack("images", packed, temporary)
    found = verified(open_source(str(packed), "images"), packed)
    if sorted(found.digests(found.rows("train").index)) != sorted(source.digests(members.index)):
        raise ValueError(f"{packed} has other images than those that were drawn: remove it, and the same command makes it anew")
    config = config.copy_and_resolve_references()
    for field in ("folds", "valid", "sequester"):
        if config.data[field]:
            raise ValueError(f"data.{field}={config.data[field]}: all images that are drawn train the generator, use 0")
    config.data_dir = str(packed)
    methods.fit(Run(config, workdir))
    return methods.load(workdir)


def made(run: Run, folder: Path, count: int, solver_steps: int) -> np.ndarray:
    """Images of a generator, by number, in a folder: uint8 [N,H,W]."""
    sampling.check_folder(folder, "output")
    wanted, devices = [(f"{i:06d}.png", -1) for i in range(count)], jax.device_count()
    batch = -(-min(count, BATCH) // devices) * devices
    sampling.make(sampling.Sampler(run, run.config.seed, solver_steps), folder, wanted, batch, flag="output")
    return np.stack([images.decode(folder / name)[0] for name, _ in wanted])


def synthetic(images: np.ndarray, label: int, prefix: str = "") -> tuple[Split, Split]:
    """Generated images [N,H,W] of a label as training and, a fifth of them, as test images."""
    known = len(images) - len(images) // 5

    def of(part: np.ndarray, prefix: str) -> Split:
        return Split(part, np.full(len(part), label, np.int64), np.full(len(part), ""), np.full(len(part), prefix))

    return of(images[:known], prefix), of(images[known:], "")


def write(task: str, folder: Path, found: dict[str, Split], seed: int) -> Source:
    """The official folders and the packed data, each whole or not there, in the place of any that were there."""
    official, temporary = folder / "images", folder / ".images.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
    files.remove(official, _OFFICIAL)
    phantom.write(temporary, task, found, seed)
    os.replace(temporary, official)
    controls.pack(task, folder / "data", official, found, overwrite=True)
    return open_source(str(folder / "data"), task)


def grid(generated: np.ndarray, *sides: np.ndarray) -> np.ndarray:
    """Some of the generated images [N,H,W], and under each the image of each side [M,H,W] that is the nearest by its pixels."""
    shown = generated[:SHOWN]
    flat = [x.reshape(len(x), -1).astype(np.float32) for x in (shown, *sides)]
    rows = [shown, *(side[search.nearest(flat[0], x, 1)[1][:, 0]] for side, x in zip(sides, flat[1:], strict=True))]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def known(run: Run, rows: Rows, source: Source) -> np.ndarray:
    """How well a generator knows images of a source: [N]."""
    return sampling.generative(run).known(inference.outputs(run, rows, source=source))


def oracle(run: Run, source: Source) -> dict[str, Any]:
    """AUC of what a generator knows better, for the labelled real images of a source: how large the leak is, without any attack."""
    rows = source.rows("train_real")
    return auc(rows, known(run, rows, source))


def likeness(network: Run, source: Source, cache: Path) -> dict[str, dict[str, Any]]:
    """How far the generated images, and real ones of other patients, are from the used ones in a network's embedding (KID).

    Args:
        network: a finished run of one network.
        source: of subtask 1.
        cache: where features are kept.

    Returns:
        {generated, reference: {value, interval}}.

    Raises ValueError for images of another size than the network's.
    """
    real = source.rows("train_real")
    rows = {"used": real.take(real.labels == 1), "generated": source.rows("train_generated"), "reference": source.rows("reference")}
    seen = {name: network_features.features(network, each, "embedding", cache, source) for name, each in rows.items()}
    found = {name: two_sample.kernel_distance(seen[name], seen["used"]) for name in ("generated", "reference")}
    return {name: {"value": value, "interval": list(bounds)} for name, (value, bounds) in found.items()}


def auc(rows: Rows, scores: np.ndarray) -> dict[str, Any]:
    """AUC of scores [N] of rows, and its interval over the patients, which may have no bound."""
    bounds = score_metrics.auc_interval(rows.labels, scores, rows.groups)
    return {"value": score_metrics.auc(rows.labels, scores), "interval": list(bounds)}
