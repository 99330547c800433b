"""Makes benchmarks of membership out of a folder of real images: generators whose training images are known, at graded leaks.

    python -m launch.benchmark --real_dir=IMAGES --groups=groups.csv --output=out --images=50,200 --steps=1000,4000 --seeds=0,1

Whole patients are drawn into used, not used and reference. Each generator, of so many used images, steps, seed and `--set`, leaves
in `<output>/<name>`:

- `images`: the official folders of subtask 1, with `groups.csv` and, in a file of its own, `truth.csv`; `data`: the same, packed;
- `run`: the generator; `generated`: all that it made; `grid.png`: some of it, and under each the nearest used and not used image;
- `benchmark.json`: what its own loss tells of used and not used images (the oracle: how large the leak is, without any attack), and
  what the attacks of `--rows` find.

`table.md` has them all. The same command goes on where it was stopped, and adds what further flags ask for.
"""

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from fingerprint_jax import Config, methods, objectives
from fingerprint_jax.data import builder, controls, images, packing, phantom
from fingerprint_jax.data.phantom import Split
from fingerprint_jax.data.source import Rows, Source, open_source
from fingerprint_jax.estimators import search
from fingerprint_jax.runs.config import config_hash
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli, environment, files, names, paths, preemption
from fingerprint_jax.runtime.progress import show_log
from fingerprint_jax.stats import permutation, score_metrics
from fingerprint_jax.training import inference, sampling
from launch import power, sweep
from launch.collect import interval, markdown, number
from launch.systems import resolve

SHARES = 2, 2, 1  # of the images: may be used, may not be used, reference
LABELLED = 3, 1  # of a side: labelled, unknown
SHOWN = 12  # images in a row of the grid
BATCH = 64  # images that are made at a time


@dataclasses.dataclass(frozen=True)
class Cell:
    """A generator: what decides how much it leaks.

    Args:
        images: it is trained on, at most: patients stay whole.
        config: of its training, with its steps and its seed.
        overrides: `--set` of it.
    """

    images: int
    config: Config
    overrides: sweep.Overrides

    @property
    def name(self) -> str:
        """Of its folder."""
        fields = {"images": self.images, "num_steps": self.config.num_steps, "seed": self.config.seed, **self.overrides}
        return sweep.name("generator.py", fields)


def pack(real: Path, groups: str, size: int, output: Path) -> None:
    """Packs all images of a folder, or of the folders in it, in `<output>/pool`."""
    output.mkdir(parents=True, exist_ok=True)
    flat = real.is_dir() and not any(path.is_dir() for path in real.iterdir())
    labels = output / "labels.csv" if flat else ""
    if labels:  # of a folder without classes: all of one
        with files.replacing(labels) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "label"])
            writer.writerows([path.stem, "real"] for path in sorted(real.iterdir()) if path.suffix.lower() in images.FORMATS)
    packing.pack("images", output / "pool", real, groups=groups, labels=labels, image_size=size)


def draw(rows: Rows, images: int, seed: int) -> dict[str, Rows]:
    """Whole groups, `{used, not_used, used unknown, not_used unknown, reference}`: as many of either side, up to a group.

    What fewer images are is part of what more are. Raises ValueError where there are too few.
    """
    rng = np.random.default_rng([seed, 0])
    part, found = controls.cut(rows.groups, SHARES, rng), {}
    for k, side in enumerate(("used", "not_used")):
        whole = rows.take(part == k)
        names = rng.permutation(np.unique(whole.groups))
        order = np.argsort(names)
        rank = order[np.searchsorted(names[order], whole.groups)]  # of the group of an image
        before = np.cumsum(np.bincount(rank))
        if before[-1] < images:
            raise ValueError(f"--images={images}: of {len(rows)} images {before[-1]} may be {side}: give fewer")
        some = whole.take(before[rank] <= images)
        if len(np.unique(some.groups)) < len(LABELLED):
            raise ValueError(f"--images={images}: these are {len(np.unique(some.groups))} patients of a side, more are needed")
        unknown = controls.cut(some.groups, LABELLED, np.random.default_rng([seed, 1, k]))
        found[side], found[f"{side} unknown"] = some.take(unknown == 0), some.take(unknown == 1)
    return found | {"reference": rows.take(part == 2)}


def splits(source: Source, drawn: dict[str, Rows], generated: np.ndarray) -> dict[str, Split]:
    """Those of subtask 1; a fifth of the generated images [N,H,W] is `test_generated`."""

    def of(sides: dict[str, int], prefix: bool = False) -> Split:
        rows = Rows.concatenate([drawn[name] for name in sides])
        counts = [len(drawn[name]) for name in sides]
        prefixes = np.repeat([f"real_{name}/" if prefix else "" for name in sides], counts)
        groups = np.where(source.known(rows.groups), rows.groups, "")  # an image without a patient is one of its own
        return Split(source.images(rows.index)[..., 0], np.repeat(list(sides.values()), counts), groups, prefixes)

    def made(images: np.ndarray) -> Split:
        none = np.full(len(images), "")
        return Split(images, np.ones(len(images), np.int64), none, none)

    known = len(generated) - len(generated) // 5
    return {
        "train_generated": made(generated[:known]),
        "train_real": of({"used": 1, "not_used": 0}, prefix=True),
        "test_generated": made(generated[known:]),
        "test_real": of({"used unknown": 1, "not_used unknown": 0}),
        "reference": of({"reference": 0}),
    }


def train(cell: Cell, folder: Path, source: Source, drawn: dict[str, Rows]) -> Run:
    """The run of the generator in `<folder>/run`, on its used images and nothing else, packed in `<folder>/used`."""
    packed = folder / "used"
    if not builder.dataset_dir(packed, "images").exists():
        members = Rows.concatenate([drawn["used"], drawn["used unknown"]])
        with tempfile.TemporaryDirectory() as temporary:
            (used := Path(temporary) / "used").mkdir()
            for i, image in enumerate(source.images(members.index)[..., 0]):
                Image.fromarray(image).save(used / f"{i:06d}.png")
            packing.pack("images", packed, temporary)
    config = cell.config.copy_and_resolve_references()
    config.data_dir = str(packed)
    run = Run(config, folder / "run")
    methods.fit(run)
    return methods.load(run.workdir)


@contextlib.contextmanager
def _whole(folder: Path) -> Generator[Path]:
    """A temporary folder that takes the name of `folder` when the block ends well."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
    yield temporary
    os.replace(temporary, folder)


def images_of(folder: Path, count: int) -> np.ndarray:
    """The generated images by number [N,H,W]."""
    return np.stack([images.decode(folder / f"{i:06d}.png")[0] for i in range(count)])


def write(folder: Path, found: dict[str, Split], seed: int) -> Source:
    """The official folders and the packed data, each whole or not there."""
    official, data = folder / "images", folder / "data"
    if not official.exists():
        with _whole(official) as temporary:
            phantom.write(temporary, "subtask1", found, seed)
    if not builder.dataset_dir(data, "subtask1").exists():
        controls.pack("subtask1", data, official, found)
    return open_source(str(data), "subtask1")


def grid(generated: np.ndarray, used: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Some of the generated images [N,H,W], and under each the used and the not used image that is the nearest by its pixels."""
    shown = generated[:SHOWN]
    flat = [x.reshape(len(x), -1).astype(np.float32) for x in (shown, used, other)]
    rows = [shown, *(side[search.nearest(flat[0], x, 1)[1][:, 0]] for side, x in zip((used, other), flat[1:], strict=True))]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def oracle(run: Run, source: Source, cache: Path) -> dict[str, Any]:
    """AUC, with its interval, of what the generator itself knows better, for used against not used images."""
    rows = source.rows("train_real")
    return auc(rows, sampling.generative(run).known(inference.outputs(run, rows, cache, source=source)))


def auc(rows: Rows, scores: np.ndarray) -> dict[str, Any]:
    """AUC of scores [N] of rows, and its interval."""
    bounds = score_metrics.auc_interval(rows.labels, scores, rows.groups)
    return {"auc": score_metrics.auc(rows.labels, scores), "interval": list(bounds)}


def attacked(config: Config, folder: Path, data_dir: Path) -> dict[str, Any]:
    """AUC, with its interval and its p, of an attack that reads no label."""
    config = config.copy_and_resolve_references()
    config.data_dir = str(data_dir)
    run = Run(config, folder)
    methods.fit(run)
    rows = run.rows("train_real")
    scores = methods.predict(run, "train_real").scores[:, 0]
    p = permutation.permutation_p(permutation.auc_of(scores), rows.labels, rows.groups)["p"][0]
    return auc(rows, scores) | {"p": p}


def make(cell: Cell, folder: Path, pool: Source, attacks: dict[str, Config], settings: dict[str, Any]) -> dict[str, Any]:
    """Makes what is missing of a generator and its benchmark; `benchmark.json`, returned, comes last.

    Raises ValueError where the folder holds one of other images or settings.
    """
    path = folder / "benchmark.json"
    plan = {"config": config_hash(cell.config), "pool": pool.fingerprints["train"], "images": cell.images, **settings}
    known: dict[str, Any] = {"plan": plan, "attacks": {}}
    if path.exists():
        known = files.read_json(path, {"plan": dict, "attacks": dict}, "give another --output")
        if changed := [name for name in plan if known["plan"].get(name) != plan[name]]:
            raise ValueError(f"{folder} was made with another {changed[0]}: give that, or another --output")
    if "oracle" not in known:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(known, indent=1))
        drawn = draw(pool.rows("train"), cell.images, cell.config.seed)
        run = train(cell, folder, pool, drawn)
        wanted = [(f"{i:06d}.png", -1) for i in range(settings["count"])]
        sampler = sampling.Sampler(run, cell.config.seed, settings["solver_steps"])
        (folder / "generated").mkdir(exist_ok=True)
        sampling.make(sampler, folder / "generated", wanted, min(settings["count"], BATCH), pool.image_shape[:2])
        found = splits(pool, drawn, images_of(folder / "generated", settings["count"]))
        source, real = write(folder, found, cell.config.seed), found["train_real"]
        shown = grid(found["train_generated"].images, real.images[real.labels == 1], real.images[real.labels == 0])
        with files.replacing(folder / "grid.png") as temporary:
            Image.fromarray(shown).save(temporary, format="PNG")
        known |= {"oracle": oracle(run, source, folder / "run" / "outputs"), "used": int((real.labels == 1).sum())}
        files.write_text(path, json.dumps(known, indent=1))
    for name, config in attacks.items():
        if known["attacks"].get(name, {}).get("config") != config_hash(config):
            found = attacked(config, folder / "attacks" / f"{name}-{config_hash(config)}", folder / "data")
            known["attacks"][name] = {"config": config_hash(config), **found}
            files.write_text(path, json.dumps(known, indent=1))
    return known


def line(cell: Cell, found: dict[str, Any], attacks: dict[str, Config]) -> dict[str, str]:
    """A row of the table."""

    def figure(of: dict[str, Any]) -> str:
        bounds = interval(*of["interval"])
        return number(of["auc"]) + (f" ({bounds})" if bounds else "") + (f", p {of['p']:.3f}" if "p" in of else "")

    out = {"images": f"{cell.images}", "steps": f"{cell.config.num_steps:,}", "seed": f"{cell.config.seed}"}
    out |= {name: str(value) for name, value in cell.overrides.items()}
    return out | {"oracle": figure(found["oracle"])} | {name: figure(found["attacks"][name]) for name in attacks}


def cells(values: flags.FlagValues) -> list[Cell]:
    """Every combination of what the flags list, the shortest training first. Raises ValueError for what is no number."""
    listed = {}
    for name, least in (("images", 4), ("steps", 1), ("seeds", 0)):
        texts: list[str] = values[name].value or []
        if not texts or not all(text.isdecimal() and int(text) >= least for text in texts):
            raise ValueError(f"--{name}={','.join(texts)}: use whole numbers from {least} on")
        listed[name] = sorted({int(text) for text in texts})
    more = sweep.product(*map(sweep.parse, values.set))
    return [
        Cell(count, sweep.resolve(values.config, overrides | {"num_steps": steps, "seed": seed}), overrides)
        for steps in listed["steps"]
        for overrides in more
        for count in listed["images"]
        for seed in listed["seeds"]
    ]


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("real_dir", None, "The real images.", required=True, flag_values=values)
    paths.define("groups", "", "CSV `id,group`: which images are of one patient.", flag_values=values)
    paths.define("output", None, "Where everything goes.", required=True, flag_values=values)
    paths.define("config", "configs/generators/flow.py", "Of the generators.", flag_values=values)
    flags.DEFINE_integer("image_size", 32, "Side in pixels that images are brought to.", 16, 1024, flag_values=values)
    flags.DEFINE_list("images", ["100"], "Used images of a generator, several each.", flag_values=values)
    flags.DEFINE_list("steps", ["2000"], "Steps of its training, several each.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Of patients, training and noise, several each.", flag_values=values)
    flags.DEFINE_multi_string("set", [], "field=v1,v2,... of the config, such as augment.flip=0,0.5.", flag_values=values)
    flags.DEFINE_integer("count", 500, "Images that each makes; a fifth is the test set.", 10, 1_000_000, flag_values=values)
    flags.DEFINE_integer("solver_steps", 0, "From noise to image; 0: as many as `generate` takes.", 0, flag_values=values)
    paths.define("file", "launch/tables/subtask1.py", "A Python file whose rows() returns the attacks.", flag_values=values)
    flags.DEFINE_list("rows", ["local_match"], "Attacks that read no label and train no network.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """All generators, then the table."""
    show_log()
    preemption.stop_at_once()
    environment.self_test()
    rows = {row.name: row for row in sweep.load_file(values.file, "rows")}
    if unknown := sorted(set(values.rows) - set(rows)):
        raise ValueError(f"--rows={unknown[0]}: use of {', '.join(rows)}")
    attacks = {name: power.attack(name, resolve(rows[name])) for name in values.rows}
    wanted, output = cells(values), Path(values.output)
    for cell in wanted:
        objective = objectives.of(cell.config.objective.name) if cell.config.method == "gradient" else None
        if objective is None or not issubclass(objective, objectives.Generative) or cell.config.task != "images":
            raise ValueError(f"--config={values.config}: no generator of the task images: use configs/generators/flow.py")
        objective.way(values.solver_steps, "")
    if not builder.dataset_dir(output / "pool", "images").exists():
        pack(Path(values.real_dir), values.groups, values.image_size, output)
    pool = open_source(str(output / "pool"), "images")
    if pool.image_shape[0] != values.image_size:
        raise ValueError(
            f"--image_size={values.image_size}: {output} has images of {pool.image_shape[0]} pixels: give that, or another --output"
        )
    for cell in wanted:  # before any is trained
        draw(pool.rows("train"), cell.images, cell.config.seed)
    settings, lines = {"count": values.count, "solver_steps": values.solver_steps}, []
    for cell in wanted:
        found = make(cell, output / cell.name, pool, attacks, settings)
        lines.append(line(cell, found, attacks))
        print(names.printable(f"{cell.name}: " + ", ".join(f"{name} {text}" for name, text in lines[-1].items())), flush=True)
    text = markdown(lines)
    files.write_text(output / "table.md", text)
    print(text)


def command() -> None:
    """The console script."""
    cli.run("benchmark", define_flags, main, devices=True)


if __name__ == "__main__":
    command()
