"""A run is a directory and the data seen through its config; predictions are a table."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from fingerprint_jax import (
    Config,
    bootstrap,
    checkpoint,
    checks,
    distributed,
    environment,
    files,
    methods,
    names,
    paths,
    ranges,
    tables,
)
from fingerprint_jax.data.source import Rows, Source, open_source

log = logging.getLogger(__name__)

# The labelled rows a system is asked about: held-out and validation rows come from here.
TARGET = {"subtask1": "train_real", "subtask2": "train_generated", "images": "train"}
PARTS = {"valid": 1, "heldout": 2, "sequestered": 3}  # of the target split; 0 is the rest, which a run learns from
# What moves images between them, where it changes; an `extra_labels` that changed is a change of `data`.
MOVING = ("data", *(f"data.{name}" for name in ("folds", "fold", "valid", "sequester", "split_seed", "max_damaged")))

# What every config has; `FIELDS` of a method has the rest.
FIELDS: dict = dict.fromkeys(("data", "decision", "decision.params"), dict)
FIELDS |= dict.fromkeys(("method", "task", "data_dir", "data.extra_labels", "decision.name", "decision.known"), str)
FIELDS |= dict.fromkeys(("seed", "data.folds", "data.fold", "data.max_damaged", "data.split_seed"), int)
FIELDS |= dict.fromkeys(("data.valid", "data.sequester"), (int, float))
_ANEW = "train this run anew in another folder"
# What can lie in a work directory before its config does: what the launcher writes, logs, and what a kill has left.
_BEGUN = re.compile(
    r"lock|provenance\.json|(failed|cost)\.json|log(-[0-9]+)?\.txt|.+\.(log|out|err)|\.(config|provenance)\.json\.[0-9]+\.tmp"
)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores of N records. Higher is likelier; attribution has K = classes columns, membership K >= 1 and column 0 counts."""

    ids: np.ndarray  # [N] str
    scores: np.ndarray  # [N, K] float
    probabilities: bool  # scores are probabilities


class Run:
    """A config, a directory and what `predict` reads from it.

    Args:
        config: the experiment; a leading `~` of its paths is written out in it.
        workdir: where everything of the run lies.
        step: best | latest | a number, the checkpoint that `predict` reads.
        allow_change: fields that may differ from those the run was started with; `data` stands for the content of the data set.
        labels: of all rows of the target split, in place of their own: what `predict` gives had the labels been these. Nothing is
            read from or written to the tables of the run then.
        outermost: of the run that this one is made as a child of; None where it is none, or lies there.

    Raises ValueError for a number in the config that is out of its range, see ranges.py: there is no run with one.
    """

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        step: str = "best",
        allow_change: tuple[str, ...] = (),
        labels: np.ndarray | None = None,
        outermost: Path | None = None,
    ):
        ranges.check(config)
        paths.expand_fields(config)
        self.config = config
        self.labels = labels
        self.workdir = Path(workdir)
        self.step = step
        self.allow_change = allow_change
        self._outermost = outermost

    @staticmethod
    def load(workdir: str | Path, step: str = "best", data_dir: str = "", field: str = "workdir") -> "Run":
        """The run of a finished or running workdir; `data_dir` replaces the data it was made with.

        Raises ValueError that names the `field` where no run is there, and the file where its config cannot be, or that is a link.
        """
        path = Path(workdir) / "config.json"
        if not path.exists():
            others = [*path.parent.parent.glob("*/config.json"), *path.parent.glob("*/config.json")]
            near = names.nearest(str(workdir), [str(other.parent) for other in others])
            hint = f": did you mean {near!r}?" if near else ""
            raise ValueError(f"{field}={str(workdir)!r}: no run there ({path} is missing){hint}")
        fields = _tuples(files.read_json(path, {}, _ANEW))
        if wrong := wrong_field(fields):
            raise ValueError(f"{path} cannot be used ({wrong}): {_ANEW}")
        config: Config = ConfigDict(fields)
        if data_dir:
            config.data_dir = data_dir
        try:
            found = Run(config, workdir, step)
        except ValueError as error:
            raise ValueError(f"{path} cannot be used ({error}): {_ANEW}") from None
        found.refuse_links()  # whoever scores a run writes to it, also where the config of another run names it
        return found

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """The block in which this process, or it and those beside it, may change the run; its config is written or compared first.

        A config that cannot be fitted (`checks.check`) leaves nothing behind: no folder, and no change of an older config. Nor
        does a first start that ends with a ValueError before a checkpoint or a finished child stands.

        The lock goes with the process, however it ends. `provenance.json` holds the data's fingerprints, every start (step,
        devices, library versions) and every change of the config that was allowed.

        Raises ValueError where another process holds the run, or where config or data differ from those it was started with
        in more than where the data lie and the fields of `allow_change`; names the fields and both values. Also where checkpoints
        cannot lie in the work directory, see `checkpoint.check_place`.
        """
        refusal = f"{self.workdir}: %s is fitting this run; wait for it, or use another --workdir"
        with contextlib.ExitStack() as held:

            def begin() -> list[bool]:
                if self.workdir.exists() and not self.workdir.is_dir():
                    raise ValueError(f"--workdir={self.workdir}: a file is there, name a folder")
                self.refuse_links()
                self.refuse_foreign()
                if network(self.config).method == "gradient":
                    checkpoint.check_place(self.workdir)
                if not (self.workdir / "config.json").exists():
                    checks.check(self)
                if self.config.data.extra_labels:
                    _ = self.extra
                fingerprints = self.fingerprints
                made = not self.workdir.exists()
                self.workdir.mkdir(parents=True, exist_ok=True)
                held.enter_context(files.locked(self.workdir / "lock", refusal))
                return [self._write_or_check(fingerprints), made]

            first, made = distributed.first(begin)
            try:
                yield
            except ValueError:
                if first:
                    self._withdraw(made)
                raise

    def refuse_links(self) -> None:
        """Raises ValueError where a name in the work directory, or in one of a child, is a link: it would be written through."""
        for folder in _tree(self.workdir):
            files.refuse_links(folder)
            files.refuse_links(folder / "children")

    def refuse_foreign(self) -> None:
        """Raises ValueError where the work directory is no run and has files that are none of a run that was just begun.

        What makes it a run is that it has both files that `_write_or_check` writes: what lies beside them is then ours to remove.
        """
        if not self.workdir.is_dir() or _is_run(self.workdir):
            return
        for path in sorted(self.workdir.iterdir()):
            if not (path.is_file() and _BEGUN.fullmatch(path.name)) and not files.litter(path.name):
                raise ValueError(
                    f"--workdir={self.workdir} is no run, and {path.name!r} is in it: name an empty folder, or a new one"
                )
        if (path := self.workdir / "provenance.json").exists():  # all that a kill has left: it has to be ours
            files.read_json(path, {"fingerprints": dict, "starts": list, "changes": list}, "name another --workdir")

    @distributed.by_first
    def _withdraw(self, made: bool) -> None:
        """Takes back what a first start has written, and the folder that it `made`, unless there is something to go on with."""
        if any(path for pattern in ("digests/*.json", "done") for path in self.workdir.rglob(pattern)):
            return
        for path in self.workdir.iterdir():  # nothing else of somebody else's was there, see `refuse_foreign`
            if files.litter(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name in ("lock", "provenance.json") or not _BEGUN.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # where a log lies there
            if made:
                self.workdir.rmdir()

    def _write_or_check(self, fingerprints: dict[str, str]) -> bool:
        """Writes the config of a first start, which is True, or compares that of a later one."""
        path = self.workdir / "config.json"
        start: dict = {"step": max(checkpoint.steps(self.workdir), default=0)}
        start["topology"] = f"{jax.process_count()}x{jax.local_device_count()} {jax.default_backend()}"
        if (count := self.config.get("steps_per_dispatch", 1)) > 1:
            start["topology"] += f", {count} steps a dispatch"
        start["versions"], start["settings"] = environment.libraries(), environment.settings()
        if not path.exists():
            self._write_provenance({"fingerprints": fingerprints, "starts": [start], "changes": []})
            files.write_text(path, json.dumps(self.config.to_dict(), indent=1))
            return True
        known = self.provenance
        before = identity(Run.load(self.workdir).config) | {"data": known["fingerprints"]}
        after = identity(self.config) | {"data": fingerprints}
        changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
        if refused := [name for name in changed if name not in self.allow_change]:
            raise ValueError(checks.another(self.workdir, before, after, refused))
        finished = (self.workdir / "done").exists()
        if changed:
            if finished and not any(name.endswith("num_steps") for name in changed):
                raise ValueError(f"{self.workdir} is finished, {', '.join(changed)} would change nothing: use another --workdir")
            checks.check(self)
        last = known["starts"][-1]
        rounding = "batches are the same, sums may be rounded otherwise"
        if last["topology"] != start["topology"]:
            change = f"{last['topology']} -> {start['topology']} processes x devices"
            log.warning("%s: topology changed: %s; %s", self.workdir, change, rounding)
        for what in ("versions", "settings"):
            before_it, now = last.get(what, {}), start[what]
            if other := [name for name in sorted(before_it.keys() | now.keys()) if before_it.get(name) != now.get(name)]:
                change = ", ".join(f"{name} {now.get(name)} (before: {before_it.get(name)})" for name in other)
                log.warning("%s goes on with other %s: %s; %s", self.workdir, what, change, rounding)
        changes = [{"step": start["step"], "field": n, "from": before.get(n), "to": after.get(n)} for n in changed]
        for change in changes:
            log.warning("%s: %s changes at step %d, as allowed", self.workdir, change["field"], change["step"])
        if changed or not finished:  # else nothing is started
            known["starts"].append(start)
        known["changes"] += changes
        self._write_provenance(known | {"fingerprints": fingerprints})
        if changed:
            (self.workdir / "done").unlink(missing_ok=True)
            files.write_text(path, json.dumps(self.config.to_dict(), indent=1))
        return False

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return distributed.first((self.workdir / "done").exists)

    @property
    def provenance(self) -> dict:
        """`fingerprints` of the data, `starts` and `changes` of this run."""
        path, fields = self.workdir / "provenance.json", {"fingerprints": dict, "starts": list, "changes": list}
        try:
            found = files.read_json(path, fields, _ANEW)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {_ANEW}") from None

        def whole(each: Any, names: tuple[str, ...], text: str, objects: tuple[str, ...] = ()) -> bool:
            fits = isinstance(each, dict) and each.keys() >= {*names} and isinstance(each.get(text), str)
            return fits and all(isinstance(each.get(name, {}), dict) for name in objects)

        starts = all(whole(start, (), "topology", ("versions", "settings")) for start in found["starts"])
        changes = all(whole(change, ("step", "from", "to"), "field") for change in found["changes"])
        digests = all(isinstance(digest, str) for digest in found["fingerprints"].values())
        if not (found["starts"] and starts and changes and digests):
            raise ValueError(f"{path} cannot be used (a start, a change or a fingerprint is not whole): {_ANEW}")
        return found

    def _write_provenance(self, content: dict) -> None:
        files.write_text(self.workdir / "provenance.json", json.dumps(content, indent=1))

    @property
    def moved(self) -> list[str]:
        """What changed in mid-training and moved images between parts: it may have read images that it now holds out."""
        return [change["field"] for change in self.provenance["changes"] if change["field"] in MOVING]

    @property
    def source(self) -> Source:
        """The packed data set."""
        if not self.config.data_dir:
            raise ValueError("config.data_dir is empty: give the folder that `fingerprint_jax.pack` wrote, --config.data_dir=DIR")
        names.check("task", self.config.task, TARGET)
        return open_source(str(self.config.data_dir), self.config.task)

    @property
    def target(self) -> str:
        """The packed split that held-out, validation and sequestered rows come from."""
        return TARGET[self.config.task]

    @property
    def same_target(self) -> bool:
        """Whether the target split is that of the data the run was started with; yes where it was not, or where data may change."""
        if "data" in self.allow_change or not (self.workdir / "provenance.json").exists():
            return True
        return self.provenance["fingerprints"].get(self.target) == self.source.fingerprints.get(self.target)

    @property
    def own(self) -> "Run":
        """This run on the data it was started with: itself where it sees those."""
        return self if self.fingerprints == self.provenance["fingerprints"] else Run.load(self.workdir, self.step)

    def started_with(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """SHA-256 of the pixels of the labelled images that this run was started with, without those that it holds out.

        Of folds all: each is held out from one child only. None where the images are gone, or not of a shape.
        """
        own = self if self.same_target else self.own
        try:
            if not own.same_target or own.source.image_shape != shape:
                return None
        except ValueError:  # no data there
            return None
        apart = [PARTS["heldout"]] * (own.config.data.fold >= 0)
        if own.config.method != "pseudo_label":  # which chooses a round by them
            apart.append(PARTS["sequestered"])
        return own.source.digests(own.source.rows(own.target).index[~np.isin(own.parts, apart)])

    def packed(self, split: str) -> str:
        """The packed split that the rows of a split come from."""
        name = split.partition(":")[0]
        return self.target if name in PARTS else name

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digest of the content of every split, and of the file `data.extra_labels` where there is one."""
        path = self.config.data.extra_labels
        return self.source.fingerprints | ({"extra_labels": hashlib.sha256(files.read_bytes(path)).hexdigest()} if path else {})

    def rows(self, split: str) -> Rows:
        """What this run sees of a split: a packed split, `heldout`, `valid`, `sequestered`, or any of them as `split:label`.

        Of the target split a run sees what is none of the three, and all of one that it was not started with: folds drawn anew
        there would hold out what it was trained on.
        """
        split, colon, label = split.partition(":")
        if colon and not label.isdecimal():
            raise ValueError(f"split {split}:{label}: what follows the colon is a label, a number from 0 on")
        if split not in (*self.source.splits, *PARTS):
            there = f"it has {', '.join(self.source.splits)}"
            if split in ("reference", "test_real", "test_generated"):
                there += f"; pack it with --{split.partition('_')[0]}_dir"
            raise ValueError(f"split {split!r} is not in the data set{names.hint(split, [*PARTS, *self.source.splits])}{there}")
        if split in PARTS and not self.same_target:
            raise ValueError(
                f"split {split}: {self.workdir} was started with another {self.target} than that of {self.config.data_dir} and"
                f" holds nothing out of that; score all of it by --split={self.target}, or train on these data"
            )
        if split in (self.target, *PARTS):
            rows = self._target_rows
            rows = rows.take(self.parts == PARTS.get(split, 0))
            if not len(rows) and split == "valid":
                raise ValueError("split valid is empty: set data.valid to a share of the labelled rows")
            if not len(rows) and split == "heldout":
                raise ValueError("split heldout is empty: set data.folds, and data.fold or method=ensemble")
            if not len(rows) and split == "sequestered":
                raise ValueError("split sequestered is empty: set data.sequester to a share of the labelled rows")
        else:
            rows = self.source.rows(split)
        found, allowed = len(self.source.damaged), self.config.data.max_damaged
        if found > allowed:
            raise ValueError(
                f"{self.config.data_dir}: {found} damaged records, data.max_damaged={allowed} (in {split}:"
                f" {self.source.damaged_ids(rows)}); pack the data again, or allow that neighbours replace them"
            )
        return rows.take(rows.labels == int(label)) if label else rows

    @property
    def _target_rows(self) -> Rows:
        rows = self.source.rows(self.target)
        return rows if self.labels is None else dataclasses.replace(rows, labels=self.labels)

    @property
    def streams(self) -> dict[str, Rows]:
        """The rows behind each stream of `data.streams`: stream `x` reads the split `train_x`, or `x` where there is none."""
        return {name: self.training_rows(self.split_of(name)) for name in self.config.data.streams}

    def split_of(self, stream: str) -> str:
        """The packed split that a stream of `data.streams` reads."""
        return f"train_{stream}" if f"train_{stream}" in self.source.splits else stream

    def training_rows(self, split: str) -> Rows:
        """`rows`, joined in the target split by those of `data.extra_labels`; in the order of their record numbers.

        Extra ones that are of a group with a row that is held out, validates or is sequestered, as copies of it are, stay out.
        """
        rows = self.rows(split)
        split, _, label = split.partition(":")
        if split != self.target or not self.config.data.extra_labels:
            return rows
        extra = self.extra.take(self.extra.labels == int(label)) if label else self.extra
        apart = self._target_rows.groups[self.parts != 0]
        # An image without a patient is a group of its own, and its name may be that of an image in another split.
        extra = extra.take((extra.groups == extra.ids) | ~np.isin(extra.groups, apart))
        rows = Rows.concatenate([rows, extra])
        return rows.take(np.argsort(rows.index))

    @property
    def gallery(self) -> dict[str, Rows]:
        """The rows behind each stream of `config.gallery`, of those of its splits that are there: an auditor has no test splits.

        No row that is held out, validates or is sequestered is among them.
        """
        found = {}
        for name, splits in self.config.gallery.items():
            if not splits:  # switched off on the command line, which cannot remove a field
                continue
            present = [split for split in splits if split.partition(":")[0] in self.source.splits]
            if not present:
                remedy = self._remedy if any(split.partition(":")[0] == "reference" for split in splits) else ""
                there = ", ".join(self.source.splits)
                raise ValueError(f"gallery.{name}: none of {list(splits)} is in the data set ({there}){remedy}")
            found[name] = Rows.concatenate([self.training_rows(split) for split in present])
            if not len(found[name]):
                raise ValueError(f"gallery.{name}: this run sees no row of {', '.join(present)}")
        return found

    @property
    def _remedy(self) -> str:
        """What to do where the data set has no reference."""
        remedy = "; pack it with --reference_dir"
        if "test_real" in self.source.splits:
            remedy += ", or let the images asked about take their place (gallery.reference=('test_real',)), as"
            remedy += " configs/subtask1/local_match.py:official does"
        return remedy

    @functools.cached_property
    def extra(self) -> Rows:
        """The rows of the file `data.extra_labels`, with its labels.

        Raises ValueError for a file that `tables.read_extra_labels` refuses, for a split or an id that is not in the data set, and
        for a row of the target split, whose rows are trained on with their own labels or not at all.
        """
        path, parts = self.config.data.extra_labels, []
        for split, labels in tables.read_extra_labels(path, self.source.num_classes, self.config.task).items():
            others = [name for name in self.source.splits if name != self.target]
            if split not in others:
                why = f": heldout, valid and sequestered are rows of {split}" if split == self.target else ""
                raise ValueError(f"data.extra_labels={path!r} has rows of {split!r}, use {', '.join(others)}{why}")
            rows = self.rows(split)
            names = np.array(list(labels), dtype=str)
            try:
                found = tables.find(rows.ids, names)
            except ValueError as error:
                raise ValueError(f"data.extra_labels={path!r}: {error}") from None
            if unknown := sorted(names[found < 0].tolist()):
                raise ValueError(f"data.extra_labels={path!r}: {len(unknown)} ids are not in {split} (first: {ascii(unknown[:3])})")
            order = np.argsort(found)
            parts.append(dataclasses.replace(rows.take(found[order]), labels=np.array(list(labels.values()))[order]))
        return Rows.concatenate(parts)

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """The part of every row of the target split, a number of PARTS or 0; all 0 for one that the run was not started with."""
        rows, data = self._target_rows, self.config.data
        part = np.zeros(len(rows), np.int8)
        if not self.same_target:
            return part
        if data.folds:
            if data.fold >= data.folds:
                raise ValueError(f"data.fold={data.fold} is outside the data.folds={data.folds} folds")
            if data.fold >= 0:
                checks.check_folds(rows, data.folds, f"data.folds={data.folds}", self.source.summary["classes"])
                part[fold_of(rows, data.folds, data.split_seed) == data.fold] = 2
            elif self.config.method == "ensemble":  # each row is held out from one child
                part[:] = 2
        # One after the other from what is left, so that a share of the second moves nothing in the first.
        for draw, (number, name) in enumerate(((1, "valid"), (3, "sequester")), 1):
            left, share = np.flatnonzero(part == 0), data[name]
            if share and len(left):
                taken, folds = ranges.parts_of(f"data.{name}", share)
                field = f"data.{name}={share}, {taken if taken > 1 else 'one'} of {folds} parts"
                checks.check_folds(rows.take(left), folds, field, self.source.summary["classes"])
                part[left[fold_of(rows.take(left), folds, data.split_seed + draw) < taken]] = number
        return part

    def folds(self, rows: Rows) -> np.ndarray:
        """The fold in which each row of the target split is held out: [N] int."""
        target = self._target_rows
        fold = dict(zip(target.index, fold_of(target, self.config.data.folds, self.config.data.split_seed), strict=True))
        return np.array([fold[i] for i in rows.index])

    def child(self, name: str, config: Config, *, seed: int, fold: int) -> "Run":
        """A run at `workdir/children/name` from a member's config: on the data of this one, with its folds, holding out `fold`."""
        config = ConfigDict(config.to_dict())
        config.data_dir, config.seed = self.config.data_dir, seed
        for field in ("folds", "valid", "sequester", "split_seed", "max_damaged", "extra_labels"):
            config.data[field] = self.config.data[field]
        config.data.fold = fold
        allow_change = tuple(name.removeprefix("member.") for name in self.allow_change)
        return Run(config, self.workdir / "children" / name, "best", allow_change, self.labels, self.outermost)

    def shared(self, name: str, config: Config, seed: int) -> "Run":
        """A run that reads no row of the target split: one beside the outermost run, for all folds, rounds and members that ask.

        On the data of this run, unless the config names its own.
        """
        config = ConfigDict(config.to_dict())
        config.data_dir = config.data_dir or self.config.data_dir
        config.seed, config.data.max_damaged = seed, self.config.data.max_damaged
        return Run(config, self.outermost / "children" / f"{name}-{config_hash(config)}", outermost=self.outermost)

    @property
    def outermost(self) -> Path:
        """The work directory of the run that this one is a child of, however deep; its own where it is none.

        A folder of somebody's that is called `children` makes no run a child: what lies above it has to be a run.
        """
        if self._outermost is not None:
            return self._outermost
        path = self.workdir
        if path.name.startswith("watch-") and not (path / "lock").exists() and _is_run(path.parent):  # a copy that --watch keeps
            path = path.parent
        while path.parent.name == "children" and _is_run(path.parent.parent):
            path = path.parent.parent
        return path

    @distributed.by_first
    def forget(self, split: str = "") -> None:
        """Removes tables of predictions, of the run, its children and the finished runs that these use: they are computed again.

        Of one split, and of the packed one that it is of; without one of all splits, and with them what was kept of networks and
        images on the way, also beside the run that this one is a child of. Other files in these folders are not ours, and a folder
        `features.cache_dir` is left out of use.

        Raises ValueError where a link is in the way, or another run keeps features in such a folder.
        """
        self.refuse_links()
        tables_of = {name.replace(":", "-") for name in (split, self.packed(split))} if split else ()
        for folder in _tree(self.workdir if split else self.outermost):
            for name in tables_of:
                (folder / "predictions" / f"{name}.csv.json").unlink(missing_ok=True)
            for described in () if split else folder.glob("predictions/*.csv.json"):
                described.unlink()
                described.with_suffix("").unlink(missing_ok=True)
            for path in () if split else (*folder.glob("outputs/*.npz"), *folder.glob("features/*.npz")):
                if re.fullmatch(r".+-[0-9a-f]{16,32}\.npz", path.name):
                    path.unlink()
        if not split:
            _without_caches(self.config)
        for path in _used(self.config):
            other = Run.load(path)
            if not split and _without_caches(other.config):
                raise ValueError(f"{path}: features.cache_dir in its config.json is not removed, which may hold anything: empty it")
            other.forget(split)

    def predict(self, split: str) -> Predictions:
        """The table of a split: read where it stands, computed and written where it is missing or stale."""
        if self.labels is not None:
            return methods.get(self.config.method).predict(self, split)
        meta = {
            "state": methods.get(self.config.method).state(self),
            "config": config_hash(self.config),
            "fingerprints": self.fingerprints,
        }
        path = self.workdir / "predictions" / f"{split.replace(':', '-')}.csv"
        if damaged := self.source.damaged_ids(self.rows(split)):
            raise ValueError(f"split {split}: damaged records are not scored: {damaged}; pack the data again")

        def read() -> dict | None:
            if path.exists():
                try:
                    ids, scores, known = tables.read_predictions(path)
                    if {key: known.get(key) for key in meta} == json.loads(json.dumps(meta)):
                        if not np.array_equal(ids, self.rows(split).ids):
                            raise ValueError(f"{path}: its ids are not those of the split")
                        width = self.source.num_classes if self.config.task != "subtask1" else scores.shape[1]
                        whole = np.isfinite(scores).all() and 0 < scores.shape[1] == width
                        if not whole or not isinstance(known.get("probabilities"), bool):
                            raise ValueError(f"{path}: not scores")
                        return {"ids": ids, "scores": scores, "probabilities": known["probabilities"]}
                except ValueError as error:
                    log.warning("%s; it is computed again", error)
            return None

        if found := distributed.first(read):
            return Predictions(**found)
        distributed.first(self.refuse_links)
        predictions = methods.get(self.config.method).predict(self, split)
        # float32, as in the table, so that the first reading and every later one are equal; to the last bit on all processes too,
        # since what they do next may hang on it.
        scores = distributed.first(lambda: np.asarray(predictions.scores, np.float32))
        predictions = dataclasses.replace(predictions, scores=scores)
        if not np.isfinite(predictions.scores).all():
            bad = predictions.ids[~np.isfinite(predictions.scores).all(axis=1)]
            raise ValueError(f"split {split}: the scores of {len(bad)} images are not finite, the first is {bad[0]!r}")
        tables.write_predictions(path, predictions.ids, predictions.scores, meta | {"probabilities": predictions.probabilities})
        return predictions


def fold_of(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Stratified folds of whole groups: [N] int in 0..folds-1."""
    whole = len(np.unique(rows.groups)) < len(rows)
    if whole:
        groups = bootstrap.as_they_come(rows.groups)
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows.labels, rows.labels, groups)
    else:
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows.labels, rows.labels)
    fold = np.empty(len(rows), np.int64)
    for k, (_, held) in enumerate(splits):
        fold[held] = k
    return fold


def wrong_field(fields: dict, prefix: str = "") -> str:
    """What of a config as JSON, or of one in it, is missing or of another kind; nothing where all is as its method wants it."""
    found = flat_fields(fields)
    known = FIELDS
    if isinstance(method := fields.get("method"), str):
        known = FIELDS | methods.get(method).FIELDS
    for name, kind in known.items():
        value = found.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return f"field {prefix + name!r} is {'missing' if name not in found else f'of another kind: {str(value)[:40]!r}'}"
    inner = [name for name in ("member", "pretrain", "pairs") if isinstance(fields.get(name), dict)]
    return next(filter(None, (wrong_field(fields[name], f"{prefix}{name}.") for name in inner)), "")


def flat_fields(fields: dict, prefix: str = "") -> dict:
    """`{'data': {...}, 'data.fold': 0, ...}` of nested fields."""
    found = {}
    for name, value in fields.items():
        found[prefix + name] = value
        if isinstance(value, dict):
            found |= flat_fields(value, f"{prefix}{name}.")
    return found


def _tree(workdir: Path) -> Iterator[Path]:
    """A work directory and those of its children, however deep; what else lies there is not walked through."""
    yield workdir
    for path in () if (workdir / "children").is_symlink() else workdir.glob("children/*/config.json"):
        if not path.parent.is_symlink():
            yield from _tree(path.parent)


def _is_run(folder: Path) -> bool:
    """Whether a folder has both files that make it a run."""
    return all((folder / name).exists() for name in ("config.json", "provenance.json"))


def _used(config: Config) -> Iterator[str]:
    """The work directories of the finished runs whose predictions or outputs a run of a config reads."""
    for name, value in flat_config(config).items():
        if value and f".{name}".endswith((".ensemble.runs", ".features.run")):
            yield from [value] if isinstance(value, str) else value


def _without_caches(config: Config) -> bool:
    """Empties every `features.cache_dir` of a config; whether there was one."""
    found = False
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= _without_caches(value)
        elif name == "cache_dir" and value:
            config[name], found = "", True
    return found


def network(config: Config) -> Config:
    """The config of the networks that a config uses, however deep its members lie; where it uses none, that of the estimator."""
    imaged = config.method == "classical" and config.features.name != "network"
    return config if imaged or "member" not in config else network(config.member)


def flat_config(config: Config, prefix: str = "") -> dict:
    """Nested fields as `{'data.fold': 0, ...}`; tuples become lists, as in JSON."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def identity(config: Config) -> dict:
    """The flat config without what changes no result: how steps are dispatched, and paths that may move.

    These are data and extra labels, whose content has fingerprints, and a cache.
    """
    moving = ("data_dir", "extra_labels", "cache_dir", "steps_per_dispatch")
    return {key: value for key, value in flat_config(config).items() if key.rpartition(".")[2] not in moving}


def config_hash(config: Config) -> str:
    """Digest of a config's identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def _tuples(fields: dict) -> dict:
    """JSON as it is in a config: lists are tuples."""

    def converted(value):
        if isinstance(value, dict):
            return _tuples(value)
        return tuple(map(converted, value)) if isinstance(value, list) else value

    return {name: converted(value) for name, value in fields.items()}
