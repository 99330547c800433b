"""Subtask 2: five sets of real images, a generator of each, and each trained twice, so that data and run can be told apart.

Both runs of a generator read the same images; all ten differ in their beginning, the order of the images and the noise. `a` and `b`
are data sets of the task with the same real images and the synthetic ones of either run. A system that learns on `a` knows the
generators of `b` by nothing but the data they were trained on.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fingerprint_jax import Config, methods
from fingerprint_jax.data import controls, images, tables
from fingerprint_jax.data.phantom import Split
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.evaluation.decide import decide
from fingerprint_jax.leaks import generators
from fingerprint_jax.runs.run import Run
from fingerprint_jax.stats import metrics
from launch import attribution, systems
from launch.leaks.cells import Cell, Figure

TASK, KIND, ROWS = "subtask2", "sets", ("residual_svm", "mosaic")
SETS, RUNS = 5, "ab"
KEEPS = ("figures",)  # of a system, in benchmark.json


def attack(row: systems.Row) -> Config:
    """The config of a row of a table; raises ValueError where it stands on the run of another row."""
    if row.uses:
        raise ValueError(f"row {row.name} uses the run of row {row.uses[1]}: a benchmark has none, leave the row out")
    return systems.resolve(row)


def draw(rows: Rows, images: int, seed: int) -> dict[str, Rows]:
    """`{t1 .. t5}`: of five classes the images of each, else whole groups dealt at random, up to so many images.

    What fewer images are is part of what more are. Raises ValueError where there are too few.
    """
    rng = np.random.default_rng([seed, 0])
    classes = np.unique(rows.labels)
    if len(classes) not in (1, SETS):
        raise ValueError(f"--real_dir has {len(classes)} folders of images: five sets are of five folders, or are dealt out of one")
    part = rows.labels if len(classes) == SETS else controls.cut(rows.groups, (1,) * SETS, rng)
    found = {}
    for k in range(SETS):
        who = f"the images of set {k + 1} of five are"
        found[f"t{k + 1}"] = generators.some(rows.take(part == k), images, rng, who)
    return found


def splits(source: Source, drawn: dict[str, Rows], generated: list[np.ndarray]) -> dict[str, Split]:
    """Those of the task, with the generated images [N,H,W] of each set."""
    found: dict[str, list[Split]] = {"train_generated": [], "train_real": [], "test_generated": []}
    for k, ((name, rows), made) in enumerate(zip(drawn.items(), generated, strict=True)):
        known, unknown = generators.synthetic(made, k, f"gen_{name}/")
        found["train_generated"].append(known)
        found["test_generated"].append(unknown)
        labels, prefixes = np.full(len(rows), k, np.int64), np.full(len(rows), f"{name}/")
        real = Split(source.images(rows.index)[..., 0], labels, generators.patients(source, rows), prefixes)
        found["train_real"].append(real)
    return {name: Split(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in found.items()}


def build(cell: Cell, folder: Path, pool: Source, count: int, solver_steps: int) -> dict[str, Figure]:
    """Trains ten generators and writes both data sets; the `oracle` is that of the runs of `a`."""
    drawn, found = draw(pool.rows("train"), cell.images, cell.config.seed), {}
    for i, letter in enumerate(RUNS):
        runs, generated = [], []
        for k, (name, rows) in enumerate(drawn.items()):
            config = cell.config.copy_and_resolve_references()
            config.seed = len(RUNS) * SETS * cell.config.seed + SETS * i + k
            place = folder / "generators" / name
            runs.append(generators.train(config, place / letter, place / "used", pool, rows))
            generated.append(generators.made(runs[-1], place / f"generated_{letter}", count, solver_steps))
        source = generators.write(TASK, folder / letter, splits(pool, drawn, generated), cell.config.seed)
        if letter == RUNS[0]:
            found["oracle"] = oracle(runs, source)
        pairs = zip(generated, drawn.values(), strict=True)
        grids = [generators.grid(made, pool.images(rows.index)[..., 0]) for made, rows in pairs]
        images.save(folder / letter / "grid.png", np.concatenate(grids))
    return found


def oracle(runs: list[Run], source: Source) -> Figure:
    """How often the generator that knows a real image best is that of its set.

    What each knows is brought to mean 0 and deviation 1 over all real images first, which needs no label.
    """
    real = source.rows("train_real")
    known = [generators.known(run, real, source) for run in runs]
    standard = [(x - x.mean()) / max(x.std(), 1e-12) for x in known]
    return accuracy(real.labels, np.argmax(standard, axis=0), real.groups)


def accuracy(labels: np.ndarray, found: np.ndarray, groups: np.ndarray) -> Figure:
    """Share of right labels, and its interval over the patients."""
    report = metrics.report(labels, found, SETS, groups=groups)
    return {"value": report["accuracy"], "interval": list(report["intervals"]["accuracy"])}


def attacked(config: Config, workdir: Path, folder: Path) -> dict[str, Any]:
    """KEEPS of a system: its accuracy on test images of the generators that it has learned from, and of those trained anew.

    Images of a generator err together, so that the interval over images is too narrow for chance: see `attribution.class_p`.
    """
    config = config.copy_and_resolve_references()
    config.data_dir = str(folder / RUNS[0] / "data")
    methods.fit(Run(config, workdir))
    found = {}
    for letter, column in zip(RUNS, ("same runs", "other runs"), strict=True):
        run = methods.load(workdir, data_dir=str(folder / letter / "data"))
        split = run.task.test
        rows, labels = run.rows(split), decide(run, split, methods.predict(run, split))
        ids, truth = tables.read_labels(folder / letter / "images" / "truth.csv", SETS, TASK)
        truth = truth[tables.align(rows.ids, ids)]
        found[column] = accuracy(truth, labels, rows.groups) | {"p": attribution.class_p(truth, labels, SETS)}
    return {"figures": found}


def data(folder: Path) -> list[Path]:
    """The packed data sets of a benchmark."""
    return [folder / letter / "data" for letter in RUNS]
