"""Ways to get from a run to a table of predictions. The file name is the registry; each file is a `Method`.

Everything outside asks the functions here, which ask the method of the run.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import json
import logging
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from ml_collections import ConfigDict

from fingerprint_jax import Config
from fingerprint_jax.data import tables
from fingerprint_jax.data.source import Rows
from fingerprint_jax.runs import checkpoint, start, unchanged
from fingerprint_jax.runs.config import config_hash, without_effect
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.runs.views import PARTS, check_folds
from fingerprint_jax.runtime import distributed, environment, names, plugins
from fingerprint_jax.runtime.targets import Target
from fingerprint_jax.stats import decisions

log = logging.getLogger(__name__)

Read = tuple[Run, str, Callable[[], Rows]]  # a run that read labelled images, what for, and what gives the rows


TRAINED, FITTED = "was trained on", "fitted its estimator to"  # what a network has read its streams for, an estimator its gallery
BEGAN = "began with"  # a network that is not there any more


class Method(Protocol):
    """What each file of this folder has."""

    FIELDS: dict[str, Any]  # {field: type} that a config of it has, beside those of every config; of a section `dict`

    def check(self, run: Run) -> None:
        """Raises ValueError where it, or a child, cannot be fitted, as far as config and data tell; writes nothing."""
        ...

    def fit(self, run: Run) -> None:
        """Called again it continues, or returns when done. It works inside `methods.fitting`, and `run.finish` is its last."""
        ...

    def predict(self, run: Run, split: str) -> Predictions:
        """The scores of the rows `run.rows(split)`, in their order; what it learns from is of `run.own`."""
        ...

    def state(self, run: Run) -> Any:
        """What `predict` would use, as JSON: a step, the states of children."""
        ...

    def reads(self, config: Config, split: str) -> bool:
        """Whether a run of this config learns from, compares with or chooses by rows of a split, `valid` included."""
        ...

    def sources(self, run: Run) -> Iterator[Read]:
        """The rows whose labels had a part in the scores of a run, those of the runs that it stands on included."""
        ...

    def inner(self, config: Config) -> list[Config]:
        """The configs of children, or of the finished runs that a config names, whose outputs are in the scores."""
        ...

    def transductive(self, config: Config) -> list[str]:
        """Why scores of a run of this config depend on images that it is asked about, but for its gallery and those of `inner`."""
        ...

    def network(self, run: Run) -> Run | None:
        """The run of the network, trained by gradients, that compares images; None where there is none."""
        ...

    def describe(self, run: Run, target: Target | None = None) -> list[tuple[str, str]]:
        """Rows (what, figure) of what fitting would take, here or on a target; nothing is written or trained."""
        ...


def get(name: str) -> Method:
    """A method by its name; raises ValueError with the known names."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    names.check("method", name, known)
    return cast(Method, importlib.import_module(f"{__name__}.{name}"))


def load(workdir: str | Path, step: str = "best", data_dir: str = "", field: str = "workdir") -> Run:
    """`Run.load`, with every field that its method needs there; the way to open a run that somebody else may have written."""
    return Run.load(workdir, step, data_dir, field, fields)


def fields(method: str) -> dict[str, Any]:
    """The fields that a config of a method has, beside those of every config, with their types."""
    return get(method).FIELDS


def fit(run: Run) -> None:
    """Fits a run; called again it continues, or returns when done."""
    get(run.config.method).fit(run)


def fitting(run: Run) -> contextlib.AbstractContextManager[None]:
    """The block in which `fit` may change a run, see `start.fitting`."""
    return start.fitting(run, check, fields)


def state(run: Run) -> Any:
    """What `predict` would use of a run, as JSON; with `code` of other packages, by its digests, where its config names some.

    Raises ValueError where the run in the work directory is one of another config.
    """
    unchanged.require_config(run, fields)
    if packages := unchanged.other_code(run):
        checkpoint.warn_once(f"{run.workdir} was trained by other code of {', '.join(packages)} than that which is there now")
    found, code = get(run.config.method).state(run), plugins.code(run.config)
    return {"state": found, "code": code} if code else found


class Exchanged(ValueError):
    """A finished run that another one names is not the one that that was fitted with."""


def named_state(run: Run, by: Run) -> Any:
    """`state` of a finished run that the config of another one, `by`, names, with what it is.

    Raises ValueError where it is not finished, or not any more: its checkpoint would be another one each time it is asked for.
    Raises Exchanged where it is not the one that `by` was fitted with: another folder of that name, or one made anew since.
    """
    if not run.done:
        raise ValueError(f"{run.workdir}, which another run names, is not finished: train it to its end before")
    found, digest = _named(run)
    if by.named.get(str(run.workdir), digest) != digest:
        raise Exchanged(
            f"{run.workdir} is another run than that which {by.workdir} was fitted with: put that back, or fit this one anew"
        )
    return found


def named(run: Run) -> dict[str, str]:
    """{work directory: digest} of a finished run that the config of another one names, for the file `done` of that."""
    return {str(run.workdir): _named(run)[1]}


def _named(run: Run) -> tuple[dict[str, Any], str]:
    """State of a finished run, with what it is, and the digest of that and of its weights, wherever it lies."""
    found = {"state": state(run), "config": config_hash(run.config), "data": run.provenance["fingerprints"]}
    known = [_bare(found), sorted(checkpoints(run.workdir, found).values())]
    return found, hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def unfinished(run: Run, state: Any) -> list[str]:
    """What networks of a run are scored before their end, or without the last or the best of their checkpoints; mostly empty.

    The `state` is that of the run.
    """
    return [reason for each, used in _networks(run, state) if (reason := _unfinished(each, used))]


def steps(run: Run) -> list[int]:
    """How many steps the training of each network had that is in the scores of a finished run; fewer where `patience` ended it."""
    return [each.steps for each, _ in _networks(run, state(run))]


def _networks(run: Run, state: Any) -> Iterator[tuple[Run, int]]:
    """The run of every network in the state of a run, and the step that is used of it."""
    for path, used in _steps(run.workdir, state).items():
        yield run if Path(path) == run.workdir else load(path), used


def _unfinished(network: Run, used: int) -> str:
    """Why the checkpoint `used` of a network is not that of a whole training; '' where it is."""
    if network.followed:
        return ""
    place, steps, best = network.workdir, network.steps, network.best_step
    last = max(checkpoint.steps(place), default=0)
    if not network.done:
        return f"{place}: the training is not finished: step {last:,} of {steps:,}"
    if last < steps:
        return f"{place} is called finished, and its last checkpoint is of step {last:,} of {steps:,}: copy the whole folder"
    if network.step == "best" and best not in (None, used):
        return f"{place}: its best checkpoint, of step {best:,}, is missing or damaged, and that of {used:,} is used"
    return ""


def pinned(run: Run) -> Run:
    """A run all of whose figures are of one checkpoint: of a network that trains meanwhile that which is now the one asked for."""
    if run.config.method == "gradient" and not run.done:
        run = copy.copy(run)
        run.step = str(get("gradient").state(run))
    return run


def stands_as(run: Run, known: dict[str, Any]) -> bool:
    """Whether `predict` would use the weights and members that figures of a run are of: their `state` and `checkpoints`.

    Where these lie is not asked, runs can be moved; nor is code of other packages, see `plugins.same`, nor what is unsaid.
    """
    try:
        found = state(run)
    except Exchanged:
        return False
    weights = list(checkpoints(run.workdir, found).values())
    return _bare(found) == _bare(known["state"]) and known["checkpoints"] in (None, weights)


def _bare(state: Any) -> Any:
    if isinstance(state, dict):
        return _bare(state["state"]) if state.keys() == {"state", "code"} else [_bare(value) for value in state.values()]
    return state


def checkpoints(workdir: str | Path, state: Any) -> dict[str, str]:
    """{work directory: which weights} of every network in a state: one that was trained anew in its place is another."""
    return {path: checkpoint.Checkpoints(Path(path)).identity(step) for path, step in _steps(workdir, state).items()}


def _steps(workdir: str | Path, state: Any) -> dict[str, int]:
    """{work directory: step} of every network in a state."""
    if isinstance(state, dict):
        nested = state["state"] if state.keys() in ({"state", "code"}, {"state", "config", "data"}) else state
        parts = [_steps(workdir, nested)] if nested is not state else [_steps(*item) for item in nested.items()]
        return {path: step for part in parts for path, step in part.items()}
    return {str(workdir): state}


def reads(config: Config, split: str) -> bool:
    """Whether a run of a config learns from, compares with or chooses by rows of a split."""
    return get(config.method).reads(config, split)


def reads_itself(config: Config, split: str) -> bool:
    """`reads`, without what the network of a config begins with."""
    alone = ConfigDict({name: value for name, value in config.to_dict().items() if name != "pretrain"})
    if "init_from" in alone:
        alone.init_from = ""
    return reads(alone, split)


def inner(config: Config) -> list[Config]:
    """The configs of what is in the scores of a run of a config, children or finished runs."""
    return get(config.method).inner(config)


def transductive(config: Config) -> list[str]:
    """Why scores of a run of a config depend on images that it is asked about, by its own doing; empty where they do not."""
    return get(config.method).transductive(config)


def network(run: Run) -> Run | None:
    """The run of the network that compares the images of a run; None where there is none."""
    return get(run.config.method).network(run)


def describe(run: Run, target: Target | None = None) -> list[tuple[str, str]]:
    """Rows (what, figure) of what fitting would take, a dry run, on the devices that are here or on those of a target."""
    return get(run.config.method).describe(run, target)


def sources(run: Run) -> Iterator[Read]:
    """The rows whose labels had a part in the scores of a run."""
    if (followed := run.followed) and run.chosen_here:
        yield run, "chose its checkpoint by", functools.partial(run.rows, followed)
    yield from get(run.config.method).sources(run)


def predict(run: Run, split: str) -> Predictions:
    """The table of a split: read where it stands, computed and written where it is missing or stale.

    Raises ValueError where it cannot be: damaged records, scores that are not finite, or labels of other classes.
    """
    unchanged.require_classes(run)
    unchanged.require_window(run)
    unchanged.require_gallery(run)
    if run.labels is not None:
        return _predicted(run, split)
    found = state(run)
    meta = {
        "state": found,
        "checkpoints": checkpoints(run.workdir, found),
        "config": config_hash(run.config),
        "fingerprints": run.fingerprints,
    }
    path = run.place / "predictions" / f"{split.replace(':', '-')}.csv"
    _require_undamaged(run, split)

    now = {name: environment.code()[name] for name in ("fingerprint_jax", "commit")}

    def read() -> dict | None:
        if tables.counts(path) and path.exists() and path.with_name(path.name + ".json").exists():
            try:
                ids, scores, known = tables.read_predictions(path)
                if {key: known.get(key) for key in meta} == json.loads(json.dumps(meta)):
                    if ids != run.rows(split).ids.tolist():
                        raise ValueError(f"{path}: its ids are not those of the split")
                    whole = np.isfinite(scores).all() and _fits(run, scores)
                    if not whole or not isinstance(known.get("probabilities"), bool):
                        raise ValueError(f"{path}: not scores")
                    by = known["by"] if isinstance(known.get("by"), dict) else None
                    if by != now:
                        before = " of ".join(str(value)[:40] for value in by.values() if value) if by else "an older version"
                        log.warning("%s was computed by %s, which is not this one: --recompute makes it anew", path, before)
                    return {"ids": run.rows(split).ids, "scores": scores, "probabilities": known["probabilities"], "by": by}
            except ValueError as error:
                log.warning("%s; it is computed again", error)
        return None

    if table := distributed.first(read):
        return Predictions(**table)
    distributed.first(run.refuse_links)
    predictions = _predicted(run, split)
    _require_undamaged(run, split)  # since they were looked at
    # float32, as in the table, so that the first reading and every later one are equal; to the last bit on all processes too,
    # since what they do next may hang on it.
    scores = distributed.first(lambda: np.asarray(predictions.scores, np.float32))
    if not _fits(run, scores):
        raise ValueError(f"split {split}: {scores.shape[1]} scores an image, the task has {run.source.num_classes} classes")
    predictions = dataclasses.replace(predictions, scores=scores, by=now)
    if not np.isfinite(predictions.scores).all():
        bad = predictions.ids[~np.isfinite(predictions.scores).all(axis=1)]
        raise ValueError(f"split {split}: the scores of {len(bad)} images are not finite, the first is {bad[0]!r}")
    meta |= {"probabilities": predictions.probabilities, "by": now}
    tables.write_predictions(path, predictions.ids, predictions.scores, meta)
    return predictions


def _predicted(run: Run, split: str) -> Predictions:
    predictions = get(run.config.method).predict(run, split)
    return dataclasses.replace(predictions, scores=by_class(run, predictions.scores))


def by_class(run: Run, scores: np.ndarray) -> np.ndarray:
    """A score a class: one column that stands for two classes, the second where it is above 0, becomes two; not of membership."""
    if run.task.membership or scores.shape[1] != 1 or run.source.num_classes != 2:
        return scores
    return np.concatenate([-scores, scores], axis=1)


def _require_undamaged(run: Run, split: str) -> None:
    if damaged := run.source.damaged_ids(run.rows(split)):
        raise ValueError(f"split {split}: damaged records are not scored: {damaged}; pack the data again")


def _fits(run: Run, scores: np.ndarray) -> bool:
    """Whether there is a score a class; of membership there is one or more."""
    return scores.shape[1] > 0 if run.task.membership else scores.shape[1] == run.source.num_classes


def check(run: Run) -> None:
    """Raises ValueError where a run, or a child of it, cannot be fitted or go on, or be decided; nothing is written.

    The decision is that of the outermost run: nobody asks a child for its labels.
    """
    method = get(run.config.method)
    if run.outermost == run.workdir and (text := without_effect(run.config)):
        raise ValueError(text)
    _check_parts(run)
    method.check(run)
    start.require_change(run, fields)
    if run.outermost == run.workdir:
        check_decision(run)


def _check_parts(run: Run) -> None:
    """The held-out fold, `valid` and `sequestered` can be drawn, are not empty and, of membership, hold both classes."""
    data = run.config.data
    if data.folds:
        if data.fold < 0 and run.config.method != "ensemble":
            raise ValueError(
                f"data.folds={data.folds} and data.fold={data.fold}: nothing is held out, set data.fold to hold one fold out, or"
                " data.folds=0; method='ensemble' cross-fits"
            )
        classes = run.source.summary["classes"]
        check_folds(run.source.rows(run.target), data.folds, f"data.folds={data.folds}", classes)
    asked = {"heldout": run.cross_fits or (data.folds and data.fold >= 0)}
    if not run.cross_fits:  # of folds, each child has its own
        asked |= {"valid": data.valid, "sequestered": data.sequester}
    named = {"heldout": "folds", "valid": "valid", "sequestered": "sequester"}
    for split in (split for split, wanted in asked.items() if wanted):
        rows, field = run.rows(split), f"data.{named[split]}={data[named[split]]}"
        if run.task.membership and len(found := np.unique(rows.labels)) < 2:
            label = run.source.summary["classes"][found[0]]
            raise ValueError(f"{field}: all {len(rows)} images of {split} are {label!r}, both classes are needed; use larger parts")


def check_decision(run: Run) -> None:
    """Raises ValueError where the decision of a run cannot be made; nothing is computed or written."""
    decision = run.config.decision
    decisions.check(decision, run.task.membership)
    if not decision.known:
        return
    try:
        labels = run.rows(decision.known).labels
    except ValueError as error:
        raise ValueError(f"decision.known={decision.known!r}: {error}") from None
    if decisions.needs_known(decision.name, decision.params.to_dict()) and set(labels.tolist()) != {0, 1}:
        found = sorted(set(labels.tolist()))
        raise ValueError(f"decision.known={decision.known!r}: a threshold is learned from the labels 0 and 1, these are {found}")


def gallery_reads(config: Config, split: str) -> bool:
    """Whether `config.gallery` lists a split, or some of its rows as `split:label`."""
    return any(entry.partition(":")[0] == split for entries in config.gallery.values() for entry in entries)


def reads_synthetic(config: Config) -> bool:
    """Whether anything of a synthetic image is in the scores of a run of this config, as far as its method can say."""
    return any(reads(config, split) for split in ("train_generated", "test_generated"))


def started_with(run: Run, shape: tuple[int, ...]) -> np.ndarray | None:
    """SHA-256 of the pixels of the labelled images that a run was started with, without those that it holds out.

    Of folds all: each is held out from one child only. None where the images are gone, or not of a shape.
    """
    try:
        own = run if run.same_target else run.own
        if not own.same_target or own.source.image_shape != shape:
            return None
    except ValueError:  # no data there, or others
        return None
    apart = [PARTS["heldout"]] * (own.config.data.fold >= 0)
    if own.config.method != "pseudo_label":  # which chooses a round by them
        apart.append(PARTS["sequestered"])
    return own.source.digests(own.source.rows(own.target).index[~np.isin(own.parts, apart)])


def seen(run: Run, source: Run) -> int:
    """Images that a run holds out, and that another one or what it began with was trained on: figures would be too good.

    Where those were started with other data images are compared pixel by pixel, in whichever split and task they lie there. That
    does not see other images of the same patients.

    Raises ValueError where the target split that one has read is gone, or of images of another size, and where a network that one
    began with is gone. Where other images are gone, `in_sample` says that they are not known.
    """
    held, index = np.isin(run.parts, (2, 3)), run.source.rows(run.target).index
    if not held.any():
        return 0
    found, read, stands_on = np.zeros(len(index), bool), [], {}
    for each, what, _ in sources(source):
        stands_on[each.workdir] = each
        if what.startswith(BEGAN):
            raise ValueError(f"{each.workdir} {what} images that this run holds out: put that back, or begin with another run")
    for each in stands_on.values():
        if each.config.task == run.config.task and reads_itself(each.config, run.target):
            if each.same_target and each.source.fingerprints[run.target] == run.source.fingerprints[run.target]:
                found |= held & ~np.isin(each.parts, (2, 3))
            elif (digests := started_with(each, run.source.image_shape)) is not None:
                read.append(digests)
            else:
                raise ValueError(
                    f"{each.workdir} was started with another {run.target} than that of {run.config.data_dir}, which is gone or of"
                    " another size: whether it has images that this run holds out is not known; train it on these data"
                )
        with contextlib.suppress(ValueError, OSError):
            read.append(elsewhere(run, each))
    if any(len(digests) for digests in read):
        found[held] |= np.isin(run.source.digests(index[held]), np.concatenate(read))
    return int(found.sum())


def readable(run: Run, shape: tuple[int, ...]) -> Run:
    """A run on the data that it was started with; raises ValueError where those are gone, or their images of another shape."""
    own = run.own
    if not own.same_target or own.source.image_shape != shape:
        own.refuse_data(own.target)
    return own


def elsewhere(run: Run, source: Run) -> np.ndarray:
    """SHA-256 of the pixels of the images [N] that `source` learned from, where its data are others than those of `run`.

    Of the same task without those of its target. Between tasks with a real and a synthetic side only real images are real ones
    again: a synthetic image with the pixels of a real one is a copy, which is looked for.

    Raises ValueError where its data are gone, or of another size, and OSError where its extra labels are.
    """
    same = source.config.task == run.config.task
    if same and source.fingerprints == run.fingerprints == source.own_fingerprints:
        return np.array([], str)
    own = readable(source, run.source.image_shape)
    made = {split for split in own.source.splits if split.endswith("generated")}
    apart: set[str] = set()
    if made and (run.task.membership or run.task.attribution):
        apart = {*own.source.splits} - made if run.target.endswith("generated") else made
    read = [read() for each, what, read in sources(own) if each.workdir == own.workdir and what in (TRAINED, FITTED)]
    index = np.unique(np.concatenate([np.array([], int), *(rows.index for rows in read)]))
    for split in apart | ({own.target} if same else set()):
        index = np.setdiff1d(index, own.source.rows(split).index)
    return own.source.digests(index) if len(index) else np.array([], str)


def everything(run: Run) -> Callable[[], Rows]:
    """All rows of the data of a run."""
    return lambda: Rows.concatenate([run.source.rows(split) for split in run.source.splits])


def gallery_sources(run: Run, learned: str = "") -> Iterator[Read]:
    """What a run compares images with; of the stream `learned` an estimator has read the labels."""
    for stream, splits in run.config.gallery.items():
        what = FITTED if stream == learned else "compares images with a gallery that may depend on"
        if splits:
            yield run, what, present(run, splits)


def present(run: Run, splits: Sequence[str]) -> Callable[[], Rows]:
    """What a run trains on of splits. Of other data: what is there of them, and no extra labels, whose images may be missing."""
    there = [split for split in splits if split.partition(":")[0] in run.source.splits]
    rows = run.training_rows if run.fingerprints == run.own_fingerprints else run.rows
    return lambda: (
        Rows.concatenate([rows(split) for split in there]) if there else run.source.rows(run.target).take(np.array([], int))
    )
