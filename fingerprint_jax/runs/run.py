"""A run is a directory and the data seen through its config; predictions are a table."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.runs import ranges
from fingerprint_jax.runs.config import GIVEN, another, config_hash, differing, from_json, identity, of_fit, wrong_field
from fingerprint_jax.runs.views import View
from fingerprint_jax.runtime import distributed, environment, files, names, paths

log = logging.getLogger(__name__)

# What moves images between them, where it changes; an `extra_labels` that changed is a change of `data`.
MOVING = ("data", *(f"data.{name}" for name in ("folds", "fold", "valid", "sequester", "split_seed", "max_damaged")))

_ANEW = "train this run anew in another folder"


def _no_fields(method: str) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores of N records. Higher is likelier; attribution has K = classes columns, membership K >= 1 and column 0 counts."""

    ids: np.ndarray  # [N] str
    scores: np.ndarray  # [N, K] float
    probabilities: bool  # scores are probabilities
    by: dict[str, Any] | None = None  # version and commit of this package that computed them; None where a table does not say it


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
        trackers: names of what its training, and those of its children, are shown in too.

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
        trackers: tuple[str, ...] = (),
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
        self.trackers = trackers
        self._guest: Path | None = None
        self.started = False  # whether this process has begun to fit it: the work directory is its own

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
            _keep_at_home(config)
            found = Run(config, workdir, step)
        except (ValueError, AttributeError) as error:  # a field may have the name of what every object has
            raise ValueError(f"{path} cannot be used ({error}): {_ANEW}") from None
        found.refuse_links()  # whoever scores a run writes to it, also where the config of another run names it
        return found

    def refuse_links(self) -> None:
        """Raises ValueError where a name in the work directory, or in one of a child, is a link: it would be written through.

        So it is in every folder from that of the outermost run, which keeps what all children look at, down to this one.
        """
        above = [path for path in self.workdir.parents if path.is_relative_to(self.outermost)]
        for folder in above[::-1]:
            files.refuse_links(folder)
        _refuse_links(self.workdir)
        if self._guest:
            for folder in [path for path in self.place.parents if path.is_relative_to(self._guest.parents[1])][::-1]:
                files.refuse_links(folder)
            files.refuse_links(self.place)

    def kept_by(self, other: "Run") -> "Run":
        """This run, which the config of another one names: what is computed of it is kept in that one, and nothing written here.

        Whoever wrote that config may name any run of the user's.
        """
        name = hashlib.sha256(os.path.abspath(self.outermost).encode()).hexdigest()[:16]
        self._guest = other.shared_place / "named" / name
        return self

    @property
    def place(self) -> Path:
        """Where what is computed of it is kept: its own folder; of a run that another one names, a folder in that one."""
        return self._guest / self.workdir.relative_to(self.outermost) if self._guest else self.workdir

    @property
    def shared_place(self) -> Path:
        """`place` of the outermost run: what all children look at."""
        return self._guest or self.outermost

    @property
    def name(self) -> str:
        """The work directory."""
        return str(self.workdir)

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return distributed.first((self.workdir / "done").exists)

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint of a finished network when it was finished; None where older versions do not say."""
        found = self.outcome.get("best")
        return found if isinstance(found, int) else None

    @property
    def steps(self) -> int:
        """How many the training of a network has, or had where `patience` ended it."""
        found, most = self.outcome.get("steps"), self.config.num_steps
        return min(found, most) if self.config.get("patience") and isinstance(found, int) else most

    @property
    def named(self) -> dict[str, str]:
        """{work directory: digest} of the finished runs that the config names, which it was fitted with; older ones do not say."""
        found = self.outcome.get("named", {})
        if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
            raise ValueError(f"{self.workdir / 'done'} cannot be used (named is not text): {_ANEW}")
        return found

    @property
    def outcome(self) -> dict[str, Any]:
        """What the file `done` of a finished run says; nothing of one that is not.

        Raises ValueError where it is that of another run; older ones do not say which they are of.
        """
        path = self.workdir / "done"

        def read() -> dict[str, Any]:
            found = files.read_json(path, {}, _ANEW) if path.exists() else {}
            if "of" in found and found["of"] != self._made_of():
                remedy = "put the run's own back, or remove it, and the command that trains the run writes it anew"
                raise ValueError(f"{path} is that of another run: {remedy}")
            return found

        return distributed.first(read)

    @distributed.by_first
    def finish(self, **outcome: Any) -> None:
        """Writes the file `done`, the last of a fit: what came of it, and which run it is of."""
        files.write_text(self.workdir / "done", json.dumps({"of": self._made_of()} | outcome))

    def _made_of(self) -> str:
        """A digest of what a fit hangs on, of the config and the data."""
        known = json.dumps([of_fit(self.config), self.provenance["fingerprints"]], sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()[:16]

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

        starts = all(whole(start, (), "topology", ("versions", "settings", "code")) for start in found["starts"])
        changes = all(whole(change, ("step", "from", "to"), "field") for change in found["changes"])
        digests = all(isinstance(digest, str) for digest in found["fingerprints"].values())
        objects = all(isinstance(found.get(name, {}), dict) for name in ("parts", "watched_on", "weights"))
        if not (found["starts"] and starts and changes and digests and objects):
            raise ValueError(f"{path} cannot be used (a start, a change or a fingerprint is not whole): {_ANEW}")
        return found

    @distributed.by_first
    def note(self, **facts: str) -> None:
        """Adds facts to the provenance."""
        self.write_provenance(self.provenance | facts)

    def write_provenance(self, content: dict[str, Any]) -> None:
        """Writes the whole of it anew."""
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

    @distributed.by_first
    def note_weights(self, weights: str, digest: str) -> None:
        """Adds to the provenance of the outermost run what `backbone.weights` a network began with, by the digest of the file.

        Raises ValueError where another child of it began with other ones of that name.
        """
        path = self.outermost / "provenance.json"
        content = files.read_json(path, {"fingerprints": dict, "starts": list, "changes": list}, _ANEW)
        if content.setdefault("weights", {}).setdefault(weights, digest) != digest:
            raise ValueError(
                f"backbone.weights={weights!r} are others than those that {self.outermost} began with: put them back, or start anew"
            )
        files.write_text(path, json.dumps(content, indent=1))

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """As those of a view, and those that the run was started with.

        A library draws folds: raises ValueError where the installed version draws others than the one that the run was started by.
        """
        found = View.parts.func(self)
        if self.labels is None and (self.workdir / "provenance.json").exists():
            known, first = self.provenance.get("parts"), self.provenance["starts"][0].get("versions", {})
            drawn, may_move = self.drawn(found), self.moved or {*MOVING} & {*self.allow_change} or not self.same_target
            if known is not None and drawn.keys() - known.keys() and not may_move:  # older runs do not say it
                raise ValueError(
                    f"{self.workdir / 'config.json'} holds out other images than the run was started with: it is that of another"
                    " run, or was edited; put the run's own back"
                )
            if any((known or {}).get(of, digest) != digest for of, digest in drawn.items()):
                self.source.verify({self.target})  # other records under the same name
                before, now = (libraries.get("scikit-learn") for libraries in (first, environment.libraries()))
                raise ValueError(
                    f"{self.workdir} holds out other images than scikit-learn {now} draws: it was started by {before}, install that"
                )
        return found

    def drawn(self, parts: np.ndarray) -> dict[str, str]:
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
        found.labels, found._guest = self.labels if self.same_target else None, self._guest
        return found

    def refuse_data(self, split: str) -> NoReturn:
        """Raises ValueError: what a run needs of the data that it was started with is no longer there."""
        raise ValueError(f"{self.workdir} was started with another {split} than that of {self.config.data_dir}: {_ANEW}")

    def child(self, name: str, config: Config, *, seed: int, fold: int) -> "Run":
        """A run at `workdir/children/name` from a member's config: on the data of this one, with its folds, holding out `fold`."""
        config = ConfigDict(config.to_dict())
        config.data_dir, config.seed = self.config.data_dir, seed
        for field in (each.removeprefix("data.") for each in GIVEN):
            config.data[field] = self.config.data[field]
        config.data.fold = fold
        allow_change = tuple(re.sub(r"^(member|ensemble\.variants\.[^.]+)\.", "", name) for name in self.allow_change)
        return self._within(config, self.workdir / "children" / name, allow_change=allow_change, labels=self.labels)

    def shared(self, name: str, config: Config, seed: int) -> "Run":
        """A run that reads no row of the target split: one beside the outermost run, for all folds, rounds and members that ask.

        On the data of this run, unless the config names its own.
        """
        config = ConfigDict(config.to_dict())
        config.data_dir = config.data_dir or self.config.data_dir
        config.seed, config.data.max_damaged = seed, self.config.data.max_damaged
        return self._within(config, self.outermost / "children" / f"{name}-{config_hash(config)}")

    def _within(self, config: Config, workdir: Path, **options: Any) -> "Run":
        """A run of the same outermost one, that is shown and kept where this one is."""
        found = Run(config, workdir, outermost=self.outermost, profile=self.profile, trackers=self.trackers, **options)
        found._guest = self._guest
        return found

    @property
    def followed(self) -> str:
        """Of the copy of a training that --watch keeps, the split whose labels have chosen its checkpoint; else ''."""
        with contextlib.suppress(ValueError):  # not begun
            if split := self.provenance.get("watched"):
                return str(split)
        return self.workdir.name.removeprefix("watch-").replace("-", ":") if self._copied else ""  # as older ones have it

    @property
    def chosen_on(self) -> dict[str, str]:
        """Of the copy of a training that --watch keeps, the fingerprints of the data whose labels have chosen its checkpoint.

        Nothing of older ones: they are taken for those of the run.
        """
        with contextlib.suppress(ValueError):  # not begun
            return self.provenance.get("watched_on", {})
        return {}

    @property
    def chosen_here(self) -> bool:
        """Of the copy of a training that --watch keeps, whether the split that has chosen its checkpoint is that of these data."""
        split = self.packed(self.followed)
        return not self.chosen_on or self.chosen_on.get(split) == self.source.fingerprints.get(split)

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
        if self._copied and is_run(path.parent):
            path = path.parent
        while path.parent.name == "children" and is_run(path.parent.parent):
            path = path.parent.parent
        return path


def _keep_at_home(config: ConfigDict) -> None:
    """Leaves out where features are kept for runs to share: a config that somebody else may have written leads nowhere."""
    for name, value in config.items():
        if name == "features" and isinstance(value, ConfigDict) and value.get("cache_dir"):
            value.cache_dir = ""
        elif isinstance(value, ConfigDict):
            _keep_at_home(value)


def _refuse_links(workdir: Path) -> None:
    """Raises ValueError where a name in a work directory, or in one of a child, however deep, is a link."""
    files.refuse_links(workdir)
    files.refuse_links(workdir / "children")
    for path in sorted((workdir / "children").glob("*")):
        if path.is_dir():
            _refuse_links(path)


def is_run(folder: Path) -> bool:
    """Whether a folder has both files that make it a run."""
    return all((folder / name).exists() for name in ("config.json", "provenance.json"))
