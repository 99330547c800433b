"""Subtask 1: one generator, trained on half of the labelled and of the unknown real images."""

from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_jax import Config, methods
from fingerprint_jax.data import controls, images
from fingerprint_jax.data.phantom import Split
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.leaks import generators
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import permutation
from launch import power, systems
from launch.leaks.cells import Cell, Figure

TASK, KIND, ROWS = "subtask1", "generator", ("local_match",)
KEEPS = ("figures", "scores", "labels")  # of an attack, in benchmark.json
SHARES = 2, 2, 1  # of the images: may be used, may not be used, reference
LABELLED = 3, 1  # of a side: labelled, unknown


def attack(row: systems.Row) -> Config:
    """The config of a row of a table; raises ValueError where it reads labels, or trains a network."""
    return power.attack(row.name, systems.resolve(row))


def draw(rows: Rows, images: int, seed: int) -> dict[str, Rows]:
    """Whole groups, `{used, not_used, used unknown, not_used unknown, reference}`: as many of either side, up to a group.

    What fewer images are is part of what more are. Raises ValueError where there are too few.
    """
    rng = np.random.default_rng([seed, 0])
    part, found = controls.cut(rows.groups, SHARES, rng), {}
    for k, side in enumerate(("used", "not_used")):
        chosen = generators.some(rows.take(part == k), images, rng, f"of {len(rows)} images may be {side}")
        if (count := len(np.unique(chosen.groups))) < len(LABELLED):
            raise ValueError(f"--images={images}: these are {count} patients of a side, more are needed")
        unknown = controls.cut(chosen.groups, LABELLED, np.random.default_rng([seed, 1, k]))
        found[side], found[f"{side} unknown"] = chosen.take(unknown == 0), chosen.take(unknown == 1)
    return found | {"reference": rows.take(part == 2)}


def splits(source: Source, drawn: dict[str, Rows], generated: np.ndarray) -> dict[str, Split]:
    """Those of the task, the generated images [N,H,W] among them."""
    known, unknown = generators.synthetic(generated, 1)
    return {
        "train_generated": known,
        "train_real": generators.real(source, drawn, {"used": 1, "not_used": 0}, prefix=True),
        "test_generated": unknown,
        "test_real": generators.real(source, drawn, {"used unknown": 1, "not_used unknown": 0}),
        "reference": generators.real(source, drawn, {"reference": 0}),
    }


def build(cell: Cell, folder: Path, pool: Source, count: int, solver_steps: int) -> dict[str, Figure]:
    """Trains the generator and writes its benchmark; the oracle: AUC of what it knows better itself, used against not used."""
    drawn = draw(pool.rows("train"), cell.images, cell.config.seed)
    members = Rows.concatenate([drawn["used"], drawn["used unknown"]])
    run = generators.train(cell.config, folder / "run", folder / "used", pool, members)
    found = splits(pool, drawn, generators.made(run, folder / "generated", count, solver_steps))
    source, real = generators.write(TASK, folder, found, cell.config.seed), found["train_real"]
    sides = (real.images[real.labels == label] for label in (1, 0))
    images.save(folder / "grid.png", generators.grid(found["train_generated"].images, *sides))
    return {"oracle": generators.oracle(run, source)}


def attacked(config: Config, workdir: Path, folder: Path) -> dict[str, Any]:
    """KEEPS of an attack that reads no label: its AUC with the p of permuting the labels, and a score and a label an image."""
    config = config.copy_and_resolve_references()
    config.data_dir = str(folder / "data")
    run = Run(config, workdir)
    methods.fit(run)
    rows = run.rows("train_real")
    scores = methods.predict(run, "train_real").scores[:, 0]
    p = permutation.permutation_p(permutation.auc_of(scores), rows.labels, rows.groups)["p"][0]
    figures = {"": generators.auc(rows, scores) | {"p": p}}
    return {"figures": figures, "scores": scores.tolist(), "labels": rows.labels.tolist()}


def data(folder: Path) -> list[Path]:
    """The packed data sets of a benchmark."""
    return [folder / "data"]
