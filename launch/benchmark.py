"""Makes benchmarks out of a folder of real images: generators whose training images are known, at graded leaks.

    python -m launch.benchmark --real_dir=IMAGES --groups=groups.csv --output=out --images=50,200 --steps=1000,4000 --seeds=0,1
    python -m launch.benchmark --task=subtask2 --real_dir=IMAGES --output=out --images=100 --steps=2000

Of subtask 1 whole patients are drawn into used, not used and reference, and a generator learns the used ones. Of subtask 2 they are
dealt into five sets, or the five folders of IMAGES are the sets, and each set has a generator that is trained twice (`a` and `b`).
Each combination of so many images, steps, seed and `--set` leaves in `<output>/<name>`:

- `images`: the official folders, with `groups.csv` and, in a file of its own, `truth.csv`; `data`: the same, packed. Of subtask 2
  there are two of both, in `a` and `b`;
- `run`: the generator; `generated`: all that it made; of subtask 2 both are below `generators`;
- `grid.png`: some of what was made, and under each image the nearest real ones; of subtask 2 in `a` and `b`, and of its own set;
- `benchmark.json`: what the generators' own loss tells (the oracle: how large the leak is, without any attack), and what the
  systems of `--rows` find.

`table.md` has those of the last command, `curves.png` each of their figures against the oracle where there are several. The same
command goes on where it was stopped, and adds what further flags ask for. Started several times at once, as an array of Slurm say,
each takes the next benchmark that no other makes. `pool.json` says what images a benchmark is of; by it a folder is one.
"""

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import base
from fingerprint_jax import Config, methods
from fingerprint_jax.data import tables
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.leaks import generators, pool
from fingerprint_jax.runs.config import code_hash
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import cli, environment, files, names, paths, preemption
from fingerprint_jax.runtime.progress import show_log
from launch import sweep
from launch.formats import interval, markdown, number
from launch.leaks import members, sets, shadow
from launch.leaks.cells import Cell, Figure
from launch.leaks.curves import curves

LITE = "efficientnet_lite0"
KINDS = {kind.TASK: kind for kind in (members, sets)}


def read(path: Path) -> dict[str, Any]:
    """A `benchmark.json`, as far as it has come; raises ValueError where it is none."""
    known = files.read_json(path, {"plan": dict, "attacks": dict}, pool.OTHER)
    own = [("oracle", {"figures": {"": known["oracle"]}})] if "oracle" in known else []
    own += [("likeness", known["likeness"])] if "likeness" in known else []
    for name, entry in [*own, *known["attacks"].items()]:
        figures = entry.get("figures") if isinstance(entry, dict) else None
        if not isinstance(figures, dict) or not figures or not all(map(_is_figure, figures.values())):
            raise ValueError(f"{path} cannot be used ({name} is no value with its interval): {pool.OTHER}")
        scores, labels = entry.get("scores", []), entry.get("labels", [])
        whole = isinstance(scores, list) and isinstance(labels, list) and len(scores) == len(labels)
        if not whole or not all(type(x) is float for x in scores) or not set(map(repr, labels)) <= {"0", "1"}:
            raise ValueError(f"{path} cannot be used ({name} has not a score and a label an image): {pool.OTHER}")
    return known


def _is_figure(found: object) -> bool:
    if not isinstance(found, dict) or not isinstance(bounds := found.get("interval"), list) or len(bounds) != 2:
        return False
    numbers = [found.get("value"), found.get("p", 0.0), *(bound for bound in bounds if bound is not None)]
    return all(isinstance(value, float) for value in numbers)


def make(
    kind: types.ModuleType,
    cell: Cell,
    folder: Path,
    real: Source,
    attacks: dict[str, Config],
    settings: dict[str, int],
    network: Run | None = None,
) -> dict[str, Any]:
    """Makes what is missing of a benchmark; `benchmark.json`, returned, comes last.

    Raises ValueError where the folder holds one of other images or settings.
    """
    path = folder / "benchmark.json"
    plan = {"config": code_hash(cell.config), "pool": real.fingerprints["train"], "images": cell.images, **settings}
    known: dict[str, Any] = {"plan": plan, "attacks": {}}
    if path.exists():
        known = read(path)
        if changed := [name for name in plan if known["plan"].get(name) != plan[name]]:
            raise ValueError(f"{folder} was made with another {changed[0]}: give that, or another --output")
    if "oracle" not in known:
        pool.verified(real, folder.parent / "pool")
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(known, indent=1))
        with tables.anew():  # whoever had the folder can have put anything there
            known |= kind.build(cell, folder, real, **settings)
        known |= {"truth": _truth(kind, folder), "data": _contents(kind, folder)}
        files.write_text(path, json.dumps(known, indent=1))
    if "data" in known and known["data"] != _contents(kind, folder):  # benchmarks of before do not say it
        raise ValueError(f"{folder}: its data are others than those that were made: put them back, or {pool.OTHER}")
    if network is not None:
        (identity,) = methods.checkpoints(network.workdir, methods.state(network)).values()
        if known.get("likeness", {}).get("network") != identity:
            source = pool.verified(open_source(str(folder / "data"), kind.TASK), path)
            with tables.anew():
                found = generators.likeness(network, source, folder / "features")
            known["likeness"] = {"network": identity, "figures": found}
            files.write_text(path, json.dumps(known, indent=1))
    for name, config in attacks.items():
        entry = known["attacks"].get(name, {})
        if entry.get("config") != code_hash(config) or not entry.keys() >= {*kind.KEEPS}:
            for data_dir in kind.data(folder):
                pool.verified(open_source(str(data_dir), kind.TASK), path)
            if "truth" in known and known["truth"] != _truth(kind, folder):  # those of before do not say it
                raise ValueError(f"{folder}: the labels in truth.csv are others than those that were made: {pool.OTHER}")
            with tables.anew():
                found = kind.attacked(config, folder / "attacks" / f"{name}-{code_hash(config)}", folder)
            known["attacks"][name] = {"config": code_hash(config), **found}
            files.write_text(path, json.dumps(known, indent=1))
    return known


def _truth(kind: types.ModuleType, folder: Path) -> list[str]:
    """The digest of each `truth.csv` of a benchmark."""
    return [files.digest(data_dir.with_name("images") / "truth.csv") for data_dir in kind.data(folder)]


def _contents(kind: types.ModuleType, folder: Path) -> list[dict[str, str]]:
    """The fingerprints of each packed data set of a benchmark."""
    return [open_source(str(data_dir), kind.TASK).fingerprints for data_dir in kind.data(folder)]


def line(cell: Cell, found: dict[str, Any], attacks: dict[str, Config], likeness: bool) -> dict[str, str]:
    """A row of the table, with or without the `likeness`, which may be that of an earlier command and another network."""

    def text(of: Figure) -> str:
        bounds = interval(*of["interval"])
        return number(of["value"]) + (f" ({bounds})" if bounds else "") + (f", p {of['p']:.3f}" if "p" in of else "")

    out = {"images": f"{cell.images}", "steps": f"{cell.config.num_steps:,}", "seed": f"{cell.config.seed}"}
    out |= {name: str(value) for name, value in cell.overrides.items()} | {"oracle": text(found["oracle"])}
    if likeness:
        out |= {f"KID, {name}": text(figure) for name, figure in found["likeness"]["figures"].items()}
    for name in attacks:
        for column, figure in found["attacks"][name]["figures"].items():
            out[f"{name}, {column}" if column else name] = text(figure)
    return out


def _shadow(found: list[tuple[Cell, dict[str, Any]]], attacks: list[str]) -> dict[str, Any]:
    """Weights of the attacks, learned on all benchmarks."""
    of = [shadow.joined([known["attacks"][name] for name in attacks]) for _, known in found]
    return shadow.shadow(attacks, of, [cell.config.seed for cell, _ in found])


def cells(values: flags.FlagValues) -> list[Cell]:
    """Every combination of what the flags list, the shortest training first. Raises ValueError for what is no number."""
    listed = {}
    for name, least in (("images", 4), ("steps", 1), ("seeds", 0)):
        texts: list[str] = values[name].value or []
        if not texts or not all(text.isdecimal() and int(text) >= least for text in texts):
            raise ValueError(f"--{name}={','.join(texts)}: use whole numbers from {least} on")
        listed[name] = sorted({int(text) for text in texts})
    more = sweep.product(*map(sweep.parse, values.set))
    if own := sorted({"num_steps", "seed", "data_dir"} & {field for overrides in more for field in overrides}):
        raise ValueError(f"--set={own[0]}=...: that is for --steps, --seeds and --real_dir")
    return [
        Cell(count, sweep.resolve(values.config, overrides | {"num_steps": steps, "seed": seed}), overrides)
        for steps in listed["steps"]
        for overrides in more
        for count in listed["images"]
        for seed in listed["seeds"]
    ]


def in_turns(named: dict[str, Cell], made: Callable[[str, Cell], dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What is made of benchmarks by their names, and what is said of those that other processes are making.

    These are tried again as long as another one was made here: they may be finished by then.
    """
    found: dict[str, dict[str, Any]] = {}
    while True:
        before, taken = len(found), []
        for name, cell in named.items():
            if name not in found:
                try:
                    found[name] = made(name, cell)
                except files.Held as held:
                    taken.append(str(held))
        if not taken or len(found) == before:
            return found, taken


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this binary."""
    paths.define("real_dir", None, "The real images.", required=True, flag_values=values)
    paths.define("groups", "", "CSV `id,group`: which images are of one patient.", flag_values=values)
    paths.define("output", None, "Where everything goes.", required=True, flag_values=values)
    paths.define("config", "generators/flow", "Config of the generators.", flag_values=values)
    flags.DEFINE_enum("task", "subtask1", list(KINDS), "What is asked of the synthetic images.", flag_values=values)
    flags.DEFINE_integer("image_size", 32, "Side in pixels that images are brought to.", 16, 1024, flag_values=values)
    flags.DEFINE_list("images", ["100"], "Images that a generator is trained on; several with commas.", flag_values=values)
    flags.DEFINE_list("steps", ["2000"], "Steps of its training; several with commas.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Seeds of patients, training and noise; several with commas.", flag_values=values)
    flags.DEFINE_multi_string("set", [], "field=v1,v2,... of the config, such as augment.flip=0,0.5.", flag_values=values)
    flags.DEFINE_integer("count", 500, "Images that a generator makes; a fifth is the test set.", 10, 1_000_000, flag_values=values)
    flags.DEFINE_integer("solver_steps", 0, "Steps from noise to image; 0: as many as `generate` takes.", 0, flag_values=values)
    text = f"A finished run of one network, or {LITE}: in its embedding generated images are compared with the used ones."
    paths.define("network", "", text, flag_values=values)
    paths.define("file", "", "A Python file whose rows() returns systems; empty: tables/<task>.", flag_values=values)
    text = "Systems of --file. Subtask 1: attacks that read no label and train no network; unless given local_match."
    flags.DEFINE_list("rows", None, f"{text} Subtask 2: any; unless given residual_svm and mosaic.", flag_values=values)


def _network(name: str, output: Path, real: Source) -> Run | None:
    """The run of `--network`, for images such as the `real` ones; None where none is asked for.

    That of ImageNet is made of the pool's images.
    """
    if not name:
        return None
    if name != LITE:
        found = methods.load(name, field="--network")
        if found.config.method != "gradient" or not found.done:
            raise ValueError(f"--network={name} is no finished run of one network: give that of one, or {LITE}")
        if found.source.image_shape != real.image_shape:
            theirs, ours = ("x".join(map(str, source.image_shape[:2])) for source in (found.source, real))
            raise ValueError(f"--network={name} takes images of {theirs} pixels, these have {ours} (--image_size)")
        return found
    config = base.frozen("images")
    config.data_dir, config.decision.name = str(output / "pool"), "argmax"
    config.data.streams = ConfigDict({"train": 8})
    methods.fit(run := Run(config, output / "network"))
    return run


def main(values: flags.FlagValues) -> None:
    """All benchmarks, then the table."""
    show_log()
    preemption.stop_at_once()
    environment.self_test()
    kind = KINDS[values.task]
    file, chosen = values.file or f"tables/{kind.TASK}", values.rows if values.rows is not None else kind.ROWS
    rows = {row.name: row for row in sweep.load_file(file, "rows")}
    if unknown := sorted(set(chosen) - set(rows)):
        raise ValueError(f"--rows={unknown[0]}: use of {', '.join(rows)}")
    attacks = {name: kind.attack(rows[name]) for name in chosen}
    if foreign := [name for name, config in attacks.items() if config.task != kind.TASK]:
        raise ValueError(f"--rows={foreign[0]}: a system of {attacks[foreign[0]].task}, give those of --task={kind.TASK}")
    if values.network and kind is not members:
        raise ValueError(f"--network={values.network}: the images of one generator are compared, those of --task=subtask1")
    wanted, output = cells(values), Path(values.output)
    for cell in wanted:
        generators.check(cell.config, f"--config={values.config}").way(values.solver_steps, "")
    files.refuse_foreign(output, "benchmark", pool.RECORD, pool.FIELDS, pool.OTHER)
    now = pool.given(Path(values.real_dir), values.groups, values.image_size, output)
    output.mkdir(parents=True, exist_ok=True)
    lock = output / "lock"
    with files.locked(lock):
        real = pool.pack(Path(values.real_dir), values.groups, output, now)
        for cell in wanted:  # before any is trained
            kind.draw(real.rows("train"), cell.images, cell.config.seed)
        network = _network(values.network, output, real)
    settings, lines = {"count": values.count, "solver_steps": values.solver_steps}, {}

    def made(name: str, cell: Cell) -> dict[str, Any]:
        folder = output / name
        folder.mkdir(exist_ok=True)
        with files.locked(folder / "lock", f"{folder}: %s makes this benchmark"):
            known = make(kind, cell, folder, real, attacks, settings, network)
        lines[name] = line(cell, known, attacks, network is not None)
        print(names.printable(f"{name}: " + ", ".join(f"{column} {of}" for column, of in lines[name].items())), flush=True)
        return known

    named = {cell.name(kind.KIND): cell for cell in wanted}
    found, taken = in_turns(named, made)
    if taken:
        print(names.printable("\n".join(taken)) + "\nThe last of them writes the table.")
        return
    each, text = [(cell, found[name]) for name, cell in named.items()], markdown([lines[name] for name in named])
    with files.locked(lock):
        (output / "shadow.json").unlink(missing_ok=True)
        if kind is members and len(attacks) > 1:
            files.write_text(output / "shadow.json", json.dumps(_shadow(each, list(attacks)), indent=1))
        files.write_text(output / "table.md", text)
        (output / "curves.png").unlink(missing_ok=True)
        if len(each) > 1 and attacks:
            with files.replacing(output / "curves.png") as temporary:
                curves(each, list(attacks)).savefig(temporary, format="png", dpi=150)
    print(text)


def command() -> None:
    """The console script."""
    cli.run("benchmark", define_flags, main, devices=True)


if __name__ == "__main__":
    command()
