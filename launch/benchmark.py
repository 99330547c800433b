"""Makes benchmarks of membership out of a folder of real images: generators whose training images are known, at graded leaks.

    python -m launch.benchmark --real_dir=IMAGES --groups=groups.csv --output=out --images=50,200 --steps=1000,4000 --seeds=0,1

Whole patients are drawn into used, not used and reference. Each generator, of so many used images, steps, seed and `--set`, leaves
in `<output>/<name>`:

- `images`: the official folders of subtask 1, with `groups.csv` and, in a file of its own, `truth.csv`; `data`: the same, packed;
- `run`: the generator; `generated`: all that it made; `grid.png`: some of it, and under each the nearest used and not used image;
- `benchmark.json`: what its own loss tells of used and not used images (the oracle: how large the leak is, without any attack), and
  what the attacks of `--rows` find.

`table.md` has them all. The same command goes on where it was stopped, and adds what further flags ask for. `pool.json` says what
images a benchmark is of; by it a folder is one.
"""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from fingerprint_jax import Config, methods, objectives
from fingerprint_jax.data import builder, controls, folders, images, packing, phantom, tables
from fingerprint_jax.data.folders import File
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
RECORD, FIELDS = "pool.json", {"image_size": int, "real_dir": str, "groups": str}  # of what all is made
OTHER = "give another --output"


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


def found_in(real: Path, groups: str) -> list[File]:
    """The files of a folder, or of the folders in it, as `pack` finds them."""
    skip = {os.path.realpath(groups)} if groups else set()
    places = folders.layout("images", real, flat=not folders.class_names(real))
    return [file for place in places for file in folders.scan(place, skip)[0]]


def given(real: Path, groups: str, size: int, output: Path) -> dict[str, int | str]:
    """What a benchmark is of: its size, digests of names and content of the images, and of the file of patients, '' for none.

    Raises ValueError where something is not there.
    """
    if not real.is_dir():
        raise ValueError(f"--real_dir={real}: there is no such folder")
    if output.resolve().is_relative_to(real.resolve()):
        raise ValueError(f"--output={output} is in --real_dir={real}: name a folder elsewhere")
    if groups and not Path(groups).is_file():
        raise ValueError(f"--groups={groups}: there is no such file")
    found = [file.path for file in found_in(real, groups) if file.path.suffix.lower() in images.FORMATS]
    if not found:
        raise ValueError(f"--real_dir={real}: no image in it, which is named {', '.join(images.FORMATS)}")
    content = hashlib.sha256()
    for path in found:
        content.update(json.dumps([str(path.relative_to(real)), _digest(path)]).encode())
    return {"image_size": size, "real_dir": content.hexdigest(), "groups": _digest(Path(groups)) if groups else ""}


def _digest(path: Path) -> str:
    return hashlib.sha256(files.read_bytes(path)).hexdigest()


def pack(real: Path, groups: str, output: Path, now: dict[str, int | str]) -> Source:
    """All images of a folder, or of the folders in it, packed in `<output>/pool`, now or before.

    `now` is what `given` says of them; raises ValueError where others were packed.
    """
    size, record = int(now["image_size"]), output / RECORD
    if builder.dataset_dir(output / "pool", "images").exists():
        known = files.read_json(record, FIELDS, OTHER)
        was = {"image_size": f"images of {known['image_size']} pixels", "real_dir": "other images", "groups": "other patients"}
        if changed := [name for name in FIELDS if known[name] != now[name]]:
            value = {"image_size": size, "real_dir": real, "groups": groups}[changed[0]]
            raise ValueError(f"--{changed[0]}={value}: {output} is of {was[changed[0]]}: give those, or another --output")
        return open_source(str(output / "pool"), "images")
    files.write_text(record, json.dumps(now, indent=1))  # before there is anything that it could be wrong about
    with tempfile.TemporaryDirectory() as temporary:
        labels = "" if folders.class_names(real) else Path(temporary) / "labels.csv"
        if labels:  # of a folder without classes: all of one
            with labels.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([["id", "label"], *([each.id, "real"] for each in found_in(real, groups))])
        packing.pack("images", output / "pool", real, groups=groups, labels=labels, image_size=size)
    return open_source(str(output / "pool"), "images")


def verified(source: Source, made: Path) -> Source:
    """A packed data set whose records are those that its summary describes; raises ValueError that says what to remove."""
    try:
        source.verify()
    except ValueError as error:
        raise ValueError(f"{error}; here: remove {made}, and the same command makes it anew") from None
    return source


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
    packed, members = folder / "used", Rows.concatenate([drawn["used"], drawn["used unknown"]])
    if not builder.dataset_dir(packed, "images").exists():
        with tempfile.TemporaryDirectory() as temporary:
            (used := Path(temporary) / "used").mkdir()
            for i, image in enumerate(source.images(members.index)[..., 0]):
                Image.fromarray(image).save(used / f"{i:06d}.png")
            packing.pack("images", packed, temporary)
    found = verified(open_source(str(packed), "images"), packed)
    if sorted(found.digests(found.rows("train").index)) != sorted(source.digests(members.index)):
        raise ValueError(f"{packed} has other images than those that were drawn: remove it, and the same command makes it anew")
    config = cell.config.copy_and_resolve_references()
    config.data_dir = str(packed)
    run = Run(config, folder / "run")
    methods.fit(run)
    return methods.load(run.workdir)


def images_of(folder: Path, count: int) -> np.ndarray:
    """The generated images by number [N,H,W]."""
    return np.stack([images.decode(folder / f"{i:06d}.png")[0] for i in range(count)])


def write(folder: Path, found: dict[str, Split], seed: int) -> Source:
    """The official folders and the packed data, each whole or not there, in the place of any that were there."""
    official, temporary = folder / "images", folder / ".images.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
    phantom.write(temporary, "subtask1", found, seed)
    shutil.rmtree(official, ignore_errors=True)
    os.replace(temporary, official)
    controls.pack("subtask1", folder / "data", official, found, overwrite=True)
    return open_source(str(folder / "data"), "subtask1")


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


def read(path: Path) -> dict[str, Any]:
    """A `benchmark.json`, as far as it has come; raises ValueError where it is none."""
    known = files.read_json(path, {"plan": dict, "attacks": dict}, OTHER)
    figures = known["attacks"] | ({"oracle": known["oracle"]} if "oracle" in known else {})
    if wrong := [name for name, found in figures.items() if not _is_figure(found)]:
        raise ValueError(f"{path} cannot be used ({wrong[0]} is no AUC with its interval): {OTHER}")
    return known


def _is_figure(found: object) -> bool:
    if not isinstance(found, dict) or not isinstance(bounds := found.get("interval"), list) or len(bounds) != 2:
        return False
    numbers = [found.get("auc"), found.get("p", 0.0), *(bound for bound in bounds if bound is not None)]
    return all(isinstance(value, float) for value in numbers)


def make(cell: Cell, folder: Path, pool: Source, attacks: dict[str, Config], settings: dict[str, Any]) -> dict[str, Any]:
    """Makes what is missing of a generator and its benchmark; `benchmark.json`, returned, comes last.

    Raises ValueError where the folder holds one of other images or settings.
    """
    path = folder / "benchmark.json"
    plan = {"config": config_hash(cell.config), "pool": pool.fingerprints["train"], "images": cell.images, **settings}
    known: dict[str, Any] = {"plan": plan, "attacks": {}}
    if path.exists():
        known = read(path)
        if changed := [name for name in plan if known["plan"].get(name) != plan[name]]:
            raise ValueError(f"{folder} was made with another {changed[0]}: give that, or another --output")
    if "oracle" not in known:
        verified(pool, folder.parent / "pool")
        sampling.check_folder(folder / "generated", "output")
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(known, indent=1))
        drawn = draw(pool.rows("train"), cell.images, cell.config.seed)
        run = train(cell, folder, pool, drawn)
        wanted = [(f"{i:06d}.png", -1) for i in range(settings["count"])]
        sampler = sampling.Sampler(run, cell.config.seed, settings["solver_steps"])
        sampling.make(sampler, folder / "generated", wanted, min(settings["count"], BATCH), flag="output")
        found = splits(pool, drawn, images_of(folder / "generated", settings["count"]))
        source, real = write(folder, found, cell.config.seed), found["train_real"]
        shown = grid(found["train_generated"].images, real.images[real.labels == 1], real.images[real.labels == 0])
        with files.replacing(folder / "grid.png") as temporary:
            Image.fromarray(shown).save(temporary, format="PNG")
        with tables.anew():  # whoever had the folder can have put anything there
            known |= {"oracle": oracle(run, source, folder / "run" / "outputs"), "used": int((real.labels == 1).sum())}
        files.write_text(path, json.dumps(known, indent=1))
    for name, config in attacks.items():
        if known["attacks"].get(name, {}).get("config") != config_hash(config):
            verified(open_source(str(folder / "data"), "subtask1"), path)
            with tables.anew():
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
    paths.define("config", "generators/flow", "Of the generators.", flag_values=values)
    flags.DEFINE_integer("image_size", 32, "Side in pixels that images are brought to.", 16, 1024, flag_values=values)
    flags.DEFINE_list("images", ["100"], "Used images of a generator, several each.", flag_values=values)
    flags.DEFINE_list("steps", ["2000"], "Steps of its training, several each.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Of patients, training and noise, several each.", flag_values=values)
    flags.DEFINE_multi_string("set", [], "field=v1,v2,... of the config, such as augment.flip=0,0.5.", flag_values=values)
    flags.DEFINE_integer("count", 500, "Images that each makes; a fifth is the test set.", 10, 1_000_000, flag_values=values)
    flags.DEFINE_integer("solver_steps", 0, "From noise to image; 0: as many as `generate` takes.", 0, flag_values=values)
    paths.define("file", "tables/subtask1", "A Python file whose rows() returns the attacks.", flag_values=values)
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
            raise ValueError(f"--config={values.config}: no generator of the task images: use generators/flow")
        objective.way(values.solver_steps, "")
    files.refuse_foreign(output, "benchmark", RECORD, FIELDS, OTHER)
    now = given(Path(values.real_dir), values.groups, values.image_size, output)
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output / "lock", f"--output={output}: %s makes benchmarks there; wait for it, or give another --output"):
        pool = pack(Path(values.real_dir), values.groups, output, now)
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
