"""A run is a directory and the data seen through its config; predictions are a table."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.runs import checkpoint, ranges
from fingerprint_jax.runs.config import another, config_hash, differing, from_json, identity, network_config, wrong_field
from fingerprint_jax.runs.views import View
from fingerprint_jax.runtime import distributed, environment, files, names, paths

log = logging.getLogger(__name__)

# What moves images between them, where it changes; an `extra_labels` that changed is a change of `data`.
MOVING = ("data", *(f"data.{name}" for name in ("folds", "fold", "valid", "sequester", "split_seed", "max_damaged")))

_ANEW = "train this run anew in another folder"
# What can lie in a work directory before its config does: what the launcher writes, logs, and what a kill has left.
_BEGUN = re.compile(
    r"lock|provenance\.json|(failed|cost)\.json|log(-[0-9]+)?\.txt|.+\.(log|out|err)|\.(config|provenance|failed|cost)\.json\.[0-9]+\.tmp"
)
# What a start writes before there is anything to go on with. Whatever else lies there came from somebody else meanwhile.
_STARTED = (
    *("lock", "config.json", "provenance.json", "metrics.jsonl", "pairs.npz", "labels", "children", "checkpoints", "digests"),
    *("damaged", "outputs", "features", "predictions", "tensorboard", "profile"),
)


def _no_fields(method: str) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores of N records. Higher is likelier; attribution has K = classes columns, membership K >= 1 and column 0 counts."""

    ids: np.ndarray  # [N] str
    scores: np.ndarray  # [N, K] float
    probabilities: bool  # scores are probabilities


@dataclasses.dataclass
class Profile:
    """A profile that is asked for, of the first training of a run or of its children: they share one step. `begun` once it is."""

    folder: Path
    begun: bool = False


class Run(View):
    """A config, a directory and what `predict` reads from it.

    Args:
        config: the experiment; a leading `~` of its paths is written out in it.
        workdir: where everything of the run lies.
        step: best | latest | a number, the checkpoint that `predict` reads.
        allow_change: fields that may differ from those the run was started with; `data` stands for the content of the data set.
        labels: of all rows of the target split, in place of their own: what `predict` gives had the labels been these. Nothing is
            read from or written to the tables of the run then.
        outermost: of the run that this one is made as a child of; None where it is none, or lies there.
        profile: what its training, or the first of its children's, is to be profiled to; None for nothing.

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
        profile: Profile | None = None,
    ) -> None:
        ranges.check(config)
        paths.expand_fields(config)
        super().__init__(config, labels)
        self.workdir = Path(workdir)
        if self.workdir.name in ("", ".."):  # what a folder is called, and lies in, says what it is
            self.workdir = Path(os.path.abspath(workdir))
        self.step = step
        self.allow_change = allow_change
        self._outermost = outermost
        self.profile = profile

    @staticmethod
    def load(
        workdir: str | Path,
        step: str = "best",
        data_dir: str = "",
        field: str = "workdir",
        of_method: Callable[[str], dict[str, Any]] = _no_fields,
    ) -> "Run":
        """The run of a finished or running workdir; `data_dir` replaces the data it was made with.

        Use `methods.load`, which knows the fields that each method needs, for a config that was not looked at before: whatever a
        command or another config names.

        Raises ValueError that names the `field` where no run is there, and the file where its config cannot be, or that is a link.
        """
        path = Path(workdir) / "config.json"
        if not path.exists():
            others = [*path.parent.parent.glob("*/config.json"), *path.parent.glob("*/config.json")]
            near = names.nearest(str(workdir), [str(other.parent) for other in others])
            hint = f": did you mean {near!r}?" if near else ""
            raise ValueError(f"{field}={str(workdir)!r}: no run there ({path} is missing){hint}")
        fields = from_json(files.read_json(path, {}, _ANEW))
        if wrong := wrong_field(fields, of_method):
            raise ValueError(f"{path} cannot be used ({wrong}): {_ANEW}")
        try:
            config: Config = ConfigDict(fields)
            if data_dir:
                config.data_dir = data_dir
            found = Run(config, workdir, step)
        except (ValueError, AttributeError) as error:  # a field may have the name of what every object has
            raise ValueError(f"{path} cannot be used ({error}): {_ANEW}") from None
        found.refuse_links()  # whoever scores a run writes to it, also where the config of another run names it
        return found

    @contextlib.contextmanager
    def fitting(self, check: Callable[["Run"], None], of_method: Callable[[str], dict[str, Any]] = _no_fields) -> Generator[None]:
        """The block in which this process, or it and those beside it, may change the run; its config is written or compared first.

        A config that `check` refuses, or records that are not those of their fingerprints, leave nothing behind: no folder, and
        no change of an older config. Nor does a first start that ends with a ValueError before a checkpoint or a finished child
        stands.

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
                if network_config(self.config).method == "gradient":
                    checkpoint.check_place(self.workdir)
                if not (self.workdir / "config.json").exists():
                    check(self)
                if self.config.data.extra_labels:
                    _ = self.extra
                self.source.verify(())  # what is kept of other records would count once the right ones are there
                fingerprints = self.fingerprints
                made = not self.workdir.exists()
                self.workdir.mkdir(parents=True, exist_ok=True)
                held.enter_context(files.locked(self.workdir / "lock", refusal))
                return [self._write_or_check(fingerprints, check, of_method), made]

            first, made = distributed.first(begin)
            try:
                yield
            except ValueError:
                if first:
                    self._withdraw(made)
                raise

    def refuse_links(self) -> None:
        """Raises ValueError where a name in the work directory, or in one of a child, is a link: it would be written through.

        So it is in every folder from that of the outermost run, which keeps what all children look at, down to this one.
        """
        above = [path for path in self.workdir.parents if path.is_relative_to(self.outermost)]
        for folder in above[::-1]:
            files.refuse_links(folder)
        _refuse_links(self.workdir)

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
        for path in (self.workdir / name for name in _STARTED):  # none of them was there before, see `refuse_foreign`
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # where a log lies there
            if made:
                self.workdir.rmdir()

    def _write_or_check(
        self, fingerprints: dict[str, str], check: Callable[["Run"], None], of_method: Callable[[str], dict[str, Any]]
    ) -> bool:
        """Writes the config of a first start, which is True, or compares that of a later one."""
        path = self.workdir / "config.json"
        start: dict[str, Any] = {"step": max(checkpoint.steps(self.workdir), default=0)}
        start["topology"] = f"{jax.process_count()}x{jax.local_device_count()} {jax.default_backend()}"
        if (count := self.config.get("steps_per_dispatch", 1)) > 1:
            start["topology"] += f", {count} steps a dispatch"
        if self.config.get("optimizer", {}).get("shard_state", False):
            start["topology"] += ", sharded optimizer state"
        start["versions"], start["settings"] = environment.libraries(), environment.settings()
        if not path.exists():
            classes = {} if self.task.classes else {"classes": self.source.summary["classes"]}
            about = {"fingerprints": fingerprints, "starts": [start], "changes": []}
            self._write_provenance(about | classes | {"parts": self._drawn(self.parts)})
            files.write_text(path, json.dumps(self.config.to_dict(), indent=1))
            return True
        before, after, changed = self._compared(fingerprints, of_method)
        known, finished = self.provenance, (self.workdir / "done").exists()
        drawn = self._drawn(self.parts)  # of parts that it was started with, else it does not go on
        if changed:
            check(self)
        last = known["starts"][-1]
        rounding = "batches are the same, sums may be rounded otherwise"
        if last["topology"] != start["topology"]:
            change = f"{last['topology']} -> {start['topology']} processes x devices"
            log.warning("%s: topology changed: %s; %s", self.workdir, change, rounding)
        for what in ("versions", "settings"):
            before_it, now = last.get(what, {}), start[what]
            if other := differing(before_it, now):
                change = ", ".join(f"{name} {now.get(name)} (before: {before_it.get(name)})" for name in other)
                log.warning("%s goes on with other %s: %s; %s", self.workdir, what, change, rounding)
        changes = [{"step": start["step"], "field": n, "from": before.get(n), "to": after.get(n)} for n in changed]
        for change in changes:
            log.warning("%s: %s changes at step %d, as allowed", self.workdir, change["field"], change["step"])
        if changed or not finished:  # else nothing is started
            known["starts"].append(start)
        known["changes"] += changes
        self._write_provenance(known | {"fingerprints": fingerprints, "parts": known.get("parts", {}) | drawn})
        if changed:
            (self.workdir / "done").unlink(missing_ok=True)
            files.write_text(path, json.dumps(self.config.to_dict(), indent=1))
        return False

    def _compared(
        self, fingerprints: dict[str, str], of_method: Callable[[str], dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """The config that lies there and this one, with their data, and what they differ in; ValueError where that may not be."""
        if self.followed:
            raise ValueError(f"{self.workdir} is a copy that --watch keeps, it is not trained: use another --workdir")
        known = self.provenance
        self.require_classes()
        before = identity(Run.load(self.workdir, of_method=of_method).config) | {"data": known["fingerprints"]}
        after = identity(self.config) | {"data": fingerprints}
        changed = differing(before, after)
        if refused := [name for name in changed if name not in self.allow_change]:
            raise ValueError(another(self.workdir, before, after, refused))
        if changed and (self.workdir / "done").exists() and not any(name.endswith("num_steps") for name in changed):
            raise ValueError(f"{self.workdir} is finished, {', '.join(changed)} would change nothing: use another --workdir")
        return before, after, changed

    def require_change(self, of_method: Callable[[str], dict[str, Any]]) -> None:
        """Raises ValueError where a run was begun in the work directory that may not go on with this config; nothing is written."""
        if (self.workdir / "config.json").exists():
            self._compared(self.fingerprints, of_method)

    @property
    def name(self) -> str:
        """The work directory."""
        return str(self.workdir)

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return distributed.first((self.workdir / "done").exists)

    @property
    def provenance(self) -> dict[str, Any]:
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
        if not (found["starts"] and starts and changes and digests and isinstance(found.get("parts", {}), dict)):
            raise ValueError(f"{path} cannot be used (a start, a change or a fingerprint is not whole): {_ANEW}")
        return found

    @distributed.by_first
    def note(self, **facts: str) -> None:
        """Adds facts to the provenance."""
        self._write_provenance(self.provenance | facts)

    def _write_provenance(self, content: dict[str, Any]) -> None:
        files.write_text(self.workdir / "provenance.json", json.dumps(content, indent=1))

    @property
    def moved(self) -> list[str]:
        """What changed in mid-training and moved images between parts: it may have read images that it now holds out."""
        return [change["field"] for change in self.provenance["changes"] if change["field"] in MOVING]

    @property
    def same_target(self) -> bool:
        """Whether the target split is that of the data the run was started with; yes where it was not, or where data may change."""
        if "data" in self.allow_change or not (self.workdir / "provenance.json").exists():
            return True
        return self.provenance["fingerprints"].get(self.target) == self.source.fingerprints.get(self.target)

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """As those of a view, and those that the run was started with.

        A library draws folds: raises ValueError where the installed version draws others than the one that the run was started by.
        """
        found = View.parts.func(self)
        if self.labels is None and (self.workdir / "provenance.json").exists():
            known, first = self.provenance.get("parts", {}), self.provenance["starts"][0].get("versions", {})
            if any(known.get(of, digest) != digest for of, digest in self._drawn(found).items()):
                self.source.verify({self.target})  # other records under the same name
                before, now = (libraries.get("scikit-learn") for libraries in (first, environment.libraries()))
                raise ValueError(
                    f"{self.workdir} holds out other images than scikit-learn {now} draws: it was started by {before}, install that"
                )
        return found

    def _drawn(self, parts: np.ndarray) -> dict[str, str]:
        """{what parts are of: their digest}, nothing where all rows are in one."""
        data = self.config.data
        fields = ("folds", "fold", "valid", "sequester", "split_seed")
        of = [self.source.fingerprints[self.target], *(data[name] for name in fields)]
        return {json.dumps(of): hashlib.sha256(parts.tobytes()).hexdigest()[:16]} if parts.any() and not self.cross_fits else {}

    @property
    def own_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data it was started with; of one that was not, those it would be."""
        return self.provenance["fingerprints"] if (self.workdir / "provenance.json").exists() else self.fingerprints

    @property
    def own(self) -> "Run":
        """This run on the data it was started with: itself where it sees those, or where the others there are these.

        Their records are compared with their fingerprints: whoever sent the run may have sent them too.

        Whether its target is that which it was started with is for `same_target` to say.

        Raises ValueError where they are gone, where what it compares images with was changed, or where another config lies there.
        """
        known = self.own_fingerprints
        if self.fingerprints == known:
            return self
        found = Run.load(self.workdir, self.step)
        if found.fingerprints == self.fingerprints:
            return self
        # Where extra labels lie is no part of what a run is, that there are some is.
        before, after = (identity(c) | {"data.extra_labels": bool(c.data.extra_labels)} for c in (found.config, self.config))
        if before != after:
            raise ValueError(another(self.workdir, before, after, differing(before, after)))
        compared = {self.packed(split) for splits in self.config.get("gallery", {}).values() for split in splits} - {self.target}
        for split in sorted(compared & known.keys()):
            if known[split] != found.fingerprints.get(split):
                found.refuse_data(split)
        distributed.first(found.source.verify)
        found.labels = self.labels if self.same_target else None
        return found

    def require_config(self, of_method: Callable[[str], dict[str, Any]]) -> None:
        """Raises ValueError where the run in the work directory is of another config: that of a child which was exchanged, say.

        But for the decision, which is made of the scores.
        """
        if (self.workdir / "config.json").exists():
            before, after = identity(Run.load(self.workdir, of_method=of_method).config), identity(self.config)
            if changed := [name for name in differing(before, after) if not name.startswith("decision.")]:
                there, here = (repr(config.get(changed[0]))[:100] for config in (before, after))
                raise ValueError(
                    f"{self.workdir} is not the run that was trained for this: config.{changed[0]} is {there} there, {here} in the"
                    " run that uses it; put the right one in its place, or train anew"
                )

    def require_classes(self) -> None:
        """Raises ValueError where the data have other classes than those the run was started with, which its labels stand for.

        Those of a task that has classes of its own are always the same; runs of older versions do not say which they had.
        """
        if self.task.classes or not (self.workdir / "provenance.json").exists():
            return
        known, here = self.provenance.get("classes"), self.source.summary["classes"]
        if known is not None and known != here:
            before, now = (str(classes)[:200] for classes in (known, here))
            raise ValueError(
                f"{self.workdir} was started with the classes {before}, {self.config.data_dir} has {now}: give data of the same"
                " classes, in the same order, or train a run on these"
            )

    def refuse_data(self, split: str) -> NoReturn:
        """Raises ValueError: what a run needs of the data that it was started with is no longer there."""
        raise ValueError(f"{self.workdir} was started with another {split} than that of {self.config.data_dir}: {_ANEW}")

    def child(self, name: str, config: Config, *, seed: int, fold: int) -> "Run":
        """A run at `workdir/children/name` from a member's config: on the data of this one, with its folds, holding out `fold`."""
        config = ConfigDict(config.to_dict())
        config.data_dir, config.seed = self.config.data_dir, seed
        for field in ("folds", "valid", "sequester", "split_seed", "max_damaged", "extra_labels"):
            config.data[field] = self.config.data[field]
        config.data.fold = fold
        allow_change = tuple(re.sub(r"^(member|ensemble\.variants\.[^.]+)\.", "", name) for name in self.allow_change)
        return Run(config, self.workdir / "children" / name, "best", allow_change, self.labels, self.outermost, self.profile)

    def shared(self, name: str, config: Config, seed: int) -> "Run":
        """A run that reads no row of the target split: one beside the outermost run, for all folds, rounds and members that ask.

        On the data of this run, unless the config names its own.
        """
        config = ConfigDict(config.to_dict())
        config.data_dir = config.data_dir or self.config.data_dir
        config.seed, config.data.max_damaged = seed, self.config.data.max_damaged
        workdir = self.outermost / "children" / f"{name}-{config_hash(config)}"
        return Run(config, workdir, outermost=self.outermost, profile=self.profile)

    @property
    def followed(self) -> str:
        """Of the copy of a training that --watch keeps, the split whose labels have chosen its checkpoint; else ''."""
        with contextlib.suppress(ValueError):  # not begun
            if split := self.provenance.get("watched"):
                return str(split)
        return self.workdir.name.removeprefix("watch-").replace("-", ":") if self._copied else ""  # as older ones have it

    @property
    def _copied(self) -> bool:
        """Whether it lies where --watch keeps its copy of a training, and says that it is one; older ones say nothing."""
        if not self.workdir.name.startswith("watch-"):
            return False
        with contextlib.suppress(ValueError):  # not begun
            if "watched" in self.provenance:
                return True
        return not (self.workdir / "lock").exists()  # of a training

    @property
    def outermost(self) -> Path:
        """The work directory of the run that this one is a child of, however deep; its own where it is none.

        A folder of somebody's that is called `children` makes no run a child: what lies above it has to be a run.
        """
        if self._outermost is not None:
            return self._outermost
        path = self.workdir
        if self._copied and _is_run(path.parent):
            path = path.parent
        while path.parent.name == "children" and _is_run(path.parent.parent):
            path = path.parent.parent
        return path


def _refuse_links(workdir: Path) -> None:
    """Raises ValueError where a name in a work directory, or in one of a child, however deep, is a link."""
    files.refuse_links(workdir)
    files.refuse_links(workdir / "children")
    for path in sorted((workdir / "children").glob("*")):
        if path.is_dir():
            _refuse_links(path)


def _is_run(folder: Path) -> bool:
    """Whether a folder has both files that make it a run."""
    return all((folder / name).exists() for name in ("config.json", "provenance.json"))
