"""Systems on equal terms: the same processor minutes, the same learning rates to choose from, the same data.

Whatever is trained is an ordinary run, `<output>/<data>/<row>/lr<rate>-seed<seed>`. What was measured or chosen lies beside the
runs, so that a comparison goes on where it was stopped, and nothing finished is done again. It all happens in one process, so that
runs of one architecture share their compiled steps.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fingerprint_jax import Config, methods
from fingerprint_jax.data import builder, controls, tasks
from fingerprint_jax.data.source import open_source
from fingerprint_jax.data.tasks import Task
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs import unchanged
from fingerprint_jax.runs.config import code_hash, differing, identity, network_config
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files, plugins, sharding
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.stats import score_metrics
from fingerprint_jax.training import inputs
from fingerprint_jax.training.model import forget_many_programs, model_of
from launch import compare, sweep
from launch.compare import Scored

log = logging.getLogger(__name__)

RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)
REFITS = 99  # permutations for which a system that trains no network, and reads labels, is fitted anew, with the first seed
STEPS = ("num_steps", "eval_every", "checkpoint_every")  # the fields that the minutes give
KEPT: dict[str, dict] = {  # what lies beside the runs, with its fields
    "calibration.json": {"network": str, "parameters": (int, NoneType), "processor_s": (int, float, NoneType)},
    "choice.json": {"learning_rate": (int, float, NoneType), "valid": dict},
    "cost.json": {"processor_s": (int, float)},
    "failed.json": {"error": str},
    "settings.json": {"minutes": (int, float)},
    "source.json": {"fingerprints": dict},  # in the folder of a control: of the data set that it was made from
}
TABLES = ("table.json", "table.csv", "table.md")
TIMED = 20, 2.0  # steps and processor seconds that a calibration lasts at least


@dataclasses.dataclass(frozen=True)
class Row:
    """A system."""

    name: str
    config: str  # FILE or FILE:variant
    overrides: sweep.Overrides = dataclasses.field(default_factory=dict)  # a dict replaces a node, such as `ensemble.variants`
    networks: int = 1  # how many a run trains for the minutes, one after the other; 0: none, its learning rate is not chosen
    published: str = ""  # figure and run
    size: str = ""  # a note on how it differs from the published size
    uses: tuple[str, str] | None = None  # (field, row): the field takes the run of that row on the same data, with the same seed
    refits: int = REFITS  # of membership: permutations that estimators are fitted anew to, where nothing else gives a p; 0: none


def resolve(row: Row) -> Config:
    """The config of a row; raises ValueError as `sweep.resolve` does."""
    nodes = {field: value for field, value in row.overrides.items() if isinstance(value, dict)}
    config = sweep.resolve(row.config, {field: value for field, value in row.overrides.items() if field not in nodes})
    for field, value in nodes.items():
        _assign(config, field, ConfigDict(value))
    plugins.trust(plugins.packages(config))  # the file of the rows is what the command line names
    return config


def _assign(config: Config, field: str, value: Any) -> None:
    *path, last = field.split(".")
    node = config
    for name in path:
        node = node.get(name, {})
    if last not in node:
        raise ValueError(f"the config has no field {field!r}")
    node[last] = value


def processor_seconds(run: Run) -> float:
    """Processor seconds of a training step over all threads of this process: the mean of TIMED, after the one that compiles."""
    model = model_of(run)
    rate = np.float32(run.config.optimizer.learning_rate)
    key, rate = jax.device_put((jax.random.key(0), rate), sharding.replicated(model.mesh))
    _, cache, batches = inputs.of_run(run, 0, paired=False)  # a first stage has made no pairs yet
    state = model.init(key)
    begin, steps = 0.0, -1
    while steps < TIMED[0] or time.process_time() - begin < TIMED[1]:
        state, reported = model.step(state, next(batches), cache, rate, key)
        jax.block_until_ready(reported)
        steps += 1
        if not steps:
            begin = time.process_time()
    return (time.process_time() - begin) / steps


def read(path: Path) -> dict:
    """What lies beside the runs, one of KEPT; {} where it is not there yet. Raises ValueError where it is none."""
    return files.read_json(path, KEPT[path.name], "remove it, and the same command makes it anew") if path.exists() else {}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, where and for how long."""

    output: Path
    rows: list[Row]
    data: dict[str, str]  # {name: where `pack` wrote it}
    controls: str  # where the control data sets lie, or are to be made from the first of `data`; '' for none
    minutes: float  # processor minutes of the training steps of a run
    rates: tuple[float, ...] = RATES  # tried with the first seed; the best on `valid` is taken
    seeds: tuple[int, ...] = SEEDS  # of the runs on `heldout`
    one_seed: tuple[str, ...] = ()  # data sets on which rows that train networks have the first seed alone

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
            raise ValueError(f"{twice[0]!r} is the name of several rows: each has its own")
        for row in self.rows:
            if row.uses and row.uses[1] not in names[: names.index(row.name)]:
                raise ValueError(f"row {row.name!r} uses {row.uses[1]!r}, which is no row before it")
        if reserved := set(self.data) & {*controls.ATTRIBUTION, *controls.MEMBERSHIP, "other_run"}:
            raise ValueError(f"--data: {min(reserved)!r} is the name of a control, use another")
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"--minutes={self.minutes:g}: more than 0 are needed")
        if wrong := [name for name in self.data if not re.fullmatch(r"\w[\w.+-]*", name) or name in TABLES]:
            raise ValueError(f"--data={wrong[0]}=...: the name becomes that of a folder: use letters, digits and ._+-")

    @property
    def first(self) -> str:
        """The data set that the controls are made from, and whose steps and learning rates they take."""
        return next(iter(self.data))

    @functools.cached_property
    def configs(self) -> dict[str, Config]:
        """{row: its config}; every override is checked."""
        return {row.name: resolve(row) for row in self.rows}

    @functools.cached_property
    def load(self) -> Callable[..., Scored]:
        """`Scored.load`, once a run and split."""
        return functools.cache(Scored.load)

    @property
    def task(self) -> Task:
        """The task of all rows. Raises ValueError where they differ, or it has no table."""
        named = sorted({config.task for config in self.configs.values()})
        task = tasks.of(named[0])
        if len(named) > 1 or not (task.membership or task.attribution):
            raise ValueError(f"the rows are of {', '.join(named)}: a table is of subtask1 or of subtask2")
        return task

    @property
    def kinds(self) -> tuple[str, ...]:
        """The controls that go with the first data set."""
        return (controls.MEMBERSHIP if self.task.membership else controls.ATTRIBUTION) if self.controls else ()

    def row(self, name: str) -> Row:
        """A row by name."""
        return next(row for row in self.rows if row.name == name)

    def data_dir(self, data: str) -> str:
        """Where a data set, or a control, lies."""
        runs = {"phantom_runs": "phantom_runs/a", "other_run": "phantom_runs/b"}
        return self.data.get(data) or str(Path(self.controls) / runs.get(data, data))

    def folder(self, data: str, row: Row) -> Path:
        """Where the runs of a row lie."""
        return self.output / data / row.name

    def workdir(self, data: str, row: Row, rate: float | None, seed: int) -> Path:
        """Where a run lies."""
        return self.folder(data, row) / (f"seed{seed}" if rate is None else f"lr{rate:g}-seed{seed}")

    def calibration(self, data: str, row: Row) -> dict:
        """{network, parameters, processor_s}: name and size of a row's network, and what a step of it takes; measured once.

        A row without a network has the name of its features, and None for the rest.
        """
        path = self.folder(data, row) / "calibration.json"
        if not (found := self.kept(data, row, path.name)):
            config: Config = ConfigDict(self.configs[row.name].to_dict())
            config.data_dir = self.data_dir(data)
            run = Run(config, path.parent).child("calibration", network_config(config), seed=0, fold=config.data.fold)
            if run.config.method == "gradient":
                run.config.num_steps = 10**6  # as many as it may want
                parameters = sum(x.size for x in model_of(run).abstract["params"].values())
                spent = processor_seconds(run) if row.networks else None
                found = {"network": run.config.backbone.name, "parameters": parameters, "processor_s": spent}
            else:
                found = {"network": run.config.features.name, "parameters": None, "processor_s": None}
            files.write_text(path, json.dumps(found | {"of": self._of(data, row, path.name)}))
        return found

    def made_of(self, data: str, row: Row) -> str:
        """A digest of what the steps and the learning rate of a row hang on, without the minutes: config, data, what it uses."""
        known = [code_hash(self.configs[row.name]), open_source(self.data_dir(data), self.task.name).fingerprints, self.rates]
        used = self.made_of(data, self.row(row.uses[1])) if row.uses else ""
        return hashlib.sha256(json.dumps([*known, self.seeds[0], used], sort_keys=True).encode()).hexdigest()[:16]

    def kept(self, data: str, row: Row, name: str) -> dict:
        """`read` of what lies in the folder of a row; {} where it was measured or chosen for another config, or on other data."""
        if not (known := read(self.folder(data, row) / name)) or "of" not in known:  # as older ones
            return known
        try:
            return known if known["of"] == self._of(data, row, name) else {}
        except ValueError:  # the data are gone
            return known

    def _of(self, data: str, row: Row, name: str) -> str:
        """What `calibration.json` or `choice.json` of a row is of: a learning rate is chosen among trainings of so many minutes."""
        return self.made_of(data, row) + (f", {self.minutes:g} minutes" if name == "choice.json" and row.networks else "")

    def steps(self, data: str, row: Row) -> int:
        """Steps of each network of a row, so that together they take `minutes`."""
        return max(1, int(60 * self.minutes / (row.networks * self.calibration(data, row)["processor_s"])))

    def config(self, data: str, row: Row, rate: float | None, seed: int, steps: bool = True) -> Config:
        """The config of a run, with the steps that the minutes allow, or with its own."""
        config: Config = ConfigDict(self.configs[row.name].to_dict())
        config.data_dir, config.seed = self.data_dir(data), seed
        if row.networks:
            inner = network_config(config)
            if steps:
                inner.num_steps = self.steps(data if data in self.data else self.first, row)
                inner.eval_every = inner.checkpoint_every = math.ceil(inner.num_steps / 4)
            if rate is not None:
                inner.optimizer.learning_rate = rate
        self._share_features(config)
        if row.uses:
            _assign(config, row.uses[0], str(self.workdir(data, self.row(row.uses[1]), rate, seed)))
        return config

    def _share_features(self, config: Config) -> None:
        """Features of images lie in one place: all runs look at the same."""
        if "features" in (inner := network_config(config)):
            inner.features.cache_dir = str(self.output.absolute() / "features")

    def fit(self, data: str, row: Row, rate: float | None, seed: int) -> Path:
        """Trains a run, or goes on with it. `cost.json` has what it took, `whole` unless a kill has cut off some of that."""
        workdir, config = self.workdir(data, row, rate, seed), self.config(data, row, rate, seed)
        finished, begin = (workdir / "done").exists(), time.process_time()
        known = read(workdir / "cost.json")
        # Not for the first start, which makes the folder: a kill before its first checkpoint leaves a run without a cost.
        whole = known.get("whole", not (workdir / "provenance.json").exists() or bool(known))
        run = Run(config, workdir)
        try:
            if known and not finished:
                files.write_text(workdir / "cost.json", json.dumps(known | {"whole": False}))
            methods.fit(run)
        finally:
            if not finished:
                spent = known.get("processor_s", 0.0) + time.process_time() - begin
                files.write_text(workdir / "cost.json", json.dumps({"processor_s": spent, "whole": whole}))
        return workdir

    def choose(self, data: str, row: Row) -> float | None:
        """The learning rate of a row, the best on `valid` with the first seed; None where its config has one, or chooses itself.

        Raises FloatingPointError where no rate ends well, ValueError where the row that this one uses has not chosen.
        """
        path = self.folder(data, row) / "choice.json"
        if known := self.kept(data, row, path.name):
            return known["learning_rate"]
        config, chosen, valid = self.configs[row.name], None, {}
        if row.uses:
            used = self.kept(data, self.row(row.uses[1]), path.name)
            if not used:
                raise ValueError(f"row {row.name} uses {row.uses[1]}, which is not finished on {data}")
            chosen = used["learning_rate"]
        elif row.networks and config.data.valid and not (config.method == "ensemble" and config.ensemble.best_variant):
            for rate in self.rates:
                try:
                    scored = self.load(self.fit(data, row, rate, self.seeds[0]), "valid")
                except FloatingPointError as error:
                    log.warning("%s", error)
                    continue
                valid[rate] = next(iter(score_metrics.quick(scored.labels, scored.scores, self.task.watched).values()))
                print(f"{data}/{row.name}: {valid[rate]:.4f} on valid with learning rate {rate:g}", flush=True)
            if not valid:
                raise FloatingPointError(f"row {row.name}: no learning rate of {', '.join(map(str, self.rates))} ends well")
            chosen = max(valid, key=lambda rate: valid[rate])
        content = {"learning_rate": chosen, "valid": {f"{r:g}": value for r, value in valid.items()}}
        files.write_text(path, json.dumps(content | {"of": self._of(data, row, path.name)}))
        return chosen

    def scored(self, data: str, row: Row, split: str = "heldout", other: str = "") -> dict[int, Scored]:
        """The finished runs of a row with the learning rate that it chose: {seed: Scored}, of a split of the data `other`.

        What was trained by another config than that of the row now, or on other data, has no figure: see `another`.
        """
        choice = self.kept(data if data in self.data else self.first, row, "choice.json")
        if any(self.of_others(place) for place in (data, other) if place not in ("", *self.data)):
            return {}
        where, found = self.data_dir(other) if other else "", {}
        for seed in self.seeds if choice else ():
            workdir = self.workdir(data, row, choice["learning_rate"], seed)
            if compare.finished(workdir, split, where) and not self.another(data, row, choice["learning_rate"], seed):
                found[seed] = self.load(workdir, split, where)
        return found

    def another(self, data: str, row: Row, rate: float | None, seed: int) -> str:
        """What the run in the folder of a row is of in the place of the row's config and data; '' where of these, or not there."""
        workdir, first = self.workdir(data, row, rate, seed), data if data in self.data else self.first
        if not (workdir / "config.json").exists():
            return ""
        steps = bool(self.kept(first, row, "calibration.json"))  # without which nobody knows them
        run, wanted = methods.load(workdir), identity(self.config(data, row, rate, seed, steps))
        changed = differing(identity(run.config), wanted)
        if changed := [name for name in changed if steps or not name.endswith(STEPS)]:
            return f"config.{changed[0]}"
        if other := unchanged.other_code(run):
            return f"code of {other[0]}"
        try:
            there = open_source(self.data_dir(data), self.task.name).fingerprints
        except ValueError:
            return "data"
        return "data" if run.provenance["fingerprints"] != there else ""

    def of_others(self, control: str) -> str:
        """Why the figures of a control are not those of the first data set; '' where they are, or where it is not there."""
        kind = "phantom_runs" if control == "other_run" else control
        path = Path(self.controls) / kind / "source.json"
        if kind == "phantom_runs" or not path.exists():  # of no data set; `_make_controls` says what is missing
            return ""
        try:
            same = read(path)["fingerprints"] == open_source(self.data[self.first], self.task.name).fingerprints
        except ValueError as error:
            return str(error)
        return "" if same else f"{kind} was made from other data than {self.first}"

    def check(self) -> None:
        """Raises ValueError where what lies in the folder was trained for other minutes, or is somebody else's."""
        path = self.output / "settings.json"
        if not path.exists() and (theirs := [name for name in TABLES if (self.output / name).exists()]):
            raise ValueError(f"{self.output / theirs[0]} is no table of ours, {path.name} is missing: give another --output")
        known = read(path)
        if theirs := sorted(known.keys() - {"minutes"}):
            raise ValueError(f"{path} has {theirs[0]!r} and is none of ours: give another --output")
        if any(row.networks for row in self.rows) and known.get("minutes", self.minutes) != self.minutes:
            raise ValueError(f"--minutes={self.minutes:g}: {path} says {known['minutes']:g}; give that, or another --output")

    def run(self, data: list[str], rows: list[Row], finished: Callable[[], None]) -> list[str]:
        """Everything that is not finished -> `data/row` of what failed; `failed.json` has its reason.

        Args:
            data: the data sets that go on; the first of all brings the controls.
            rows: the rows that go on.
            finished: called after every run that was not, and after every row that failed.

        Raises ValueError as `check` does, where a `failed.json` is somebody else's, and as `_make_controls` does.
        """
        self.check()
        if any(row.networks for row in self.rows) or not (self.output / "settings.json").exists():
            files.write_text(self.output / "settings.json", json.dumps({"minutes": self.minutes}))
        todo = [(name, row) for name in data for row in rows]
        if self.kinds and self.first in data:
            self._make_controls()
            todo += [(kind, row) for kind in self.kinds for row in rows]
        failed = []
        for name, row in todo:
            if name not in self.data and f"{self.first}/{row.name}" in failed:
                continue  # for the same reason
            path = self.folder(name, row) / "failed.json"
            read(path)  # of somebody else it is refused
            path.unlink(missing_ok=True)
            try:
                self._run(name, row, finished)
            except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
                text = (str(error).strip() or type(error).__name__).splitlines()[-1]
                files.write_text(path, json.dumps({"error": text}))
                print(f"failed    {name}/{row.name}: {printable(text)}", flush=True)
                failed.append(f"{name}/{row.name}")
                finished()
            forget_many_programs()
        return failed

    def _run(self, data: str, row: Row, finished: Callable[[], None]) -> None:
        control = data not in self.data
        if not control:
            self._refuse_begun(data, row)
        rate = self.choose(self.first if control else data, row)
        if not row.networks:
            self.calibration(data, row)
        one = control and data != "copies" or row.networks and data in self.one_seed  # copies: a row is said to be blind to them
        for seed in self.seeds[:1] if one else self.seeds:
            workdir = self.fit(data, row, rate, seed)
            refitted = self.task.membership and seed == self.seeds[0] and not control
            anew = self._score(workdir, "heldout", refits=row.refits if refitted else 0)
            if data == "phantom_runs":
                anew |= self._score(workdir, "train_generated", self.data_dir("other_run"))
            if anew:
                finished()

    def _refuse_begun(self, data: str, row: Row) -> None:
        """Raises ValueError where runs of a row were begun with another config or on other data: their steps would be lost."""
        folder = self.folder(data, row)
        for name in ("calibration.json", "choice.json"):
            if read(folder / name) and not self.kept(data, row, name) and any(folder.glob("*/config.json")):
                raise ValueError(
                    f"{folder} was begun with another config or on other data: give these, or move it away and have it made anew"
                )

    def _score(self, workdir: Path, split: str, data_dir: str = "", refits: int = 0) -> bool:
        """Scores a run where that is not done; whether it was not."""
        run = methods.load(workdir, data_dir=data_dir)
        anew = not compare.finished(workdir, split, data_dir)
        if anew := anew or bool(refits) and compare.lacks_refits(run, split):
            self._share_features(run.config)
            found = score.evaluate(run, split, refits=refits)
            figure = found["metrics"]["scores"]["auc"] if self.task.membership else found["metrics"]["accuracy"]
            print(f"{workdir}: {figure:.4f} on {split} {data_dir}".rstrip(), flush=True)
        return anew

    def _made(self, kind: str) -> dict[str, str]:
        """The fingerprints of a control, of all that it consists of."""
        places = ("phantom_runs", "other_run") if kind == "phantom_runs" else (kind,)
        found = {place: open_source(self.data_dir(place), self.task.name).fingerprints for place in places}
        return {f"{place} {split}": digest for place in places for split, digest in found[place].items()}

    def _make_controls(self) -> None:
        """Makes the controls that are missing; raises ValueError where one is not known to be made from the first data set."""
        source = self.data[self.first]
        made_from = open_source(source, self.task.name).fingerprints
        for kind in self.kinds:
            last = self.data_dir("other_run" if kind == "phantom_runs" else kind)
            folder = Path(self.controls) / kind
            if folder.is_symlink():
                raise ValueError(f"{folder} is a link, and nothing is written through one: give another --controls")
            path, phantoms = folder / "source.json", kind == "phantom_runs"  # which are of no data set
            of: dict[str, Any] = {"fingerprints": {} if phantoms else made_from}
            if not (builder.dataset_dir(last, self.task.name) / "summary.json").exists():
                if path.exists():
                    read(path)  # of somebody else it is refused
                elif folder.is_dir() and (theirs := [each.name for each in folder.iterdir() if not files.litter(each.name)]):
                    raise ValueError(f"{folder} has {theirs[0]!r} and is no control of ours: give another --controls")
                files.write_text(path, json.dumps(of))  # first, so that none that is whole, or killed half-way, lacks it
                controls.write(kind, folder, source, overwrite=True)
                files.write_text(path, json.dumps(of | {"made": self._made(kind)}))
                continue
            if not path.exists() and phantoms:  # as older ones
                continue
            if not path.exists():
                raise ValueError(f"{folder} does not say which data it was made from: remove it, and it is made from {source}")
            known, now = read(path), self._made(kind)
            older = open_source(last, self.task.name).fingerprints  # which had the last alone
            if known["fingerprints"] != of["fingerprints"]:
                raise ValueError(f"{folder} was made from other data than {source}: give another --controls")
            if known.get("made", now) not in (now, older):
                raise ValueError(f"{folder} has other data than those that were made: remove it, and it is made anew")
