"""Which images and labels a run has read, and what that does to its figures."""

from collections.abc import Iterator

import numpy as np

from fingerprint_jax import Config, methods
from fingerprint_jax.data import tasks
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runs.views import PARTS
from fingerprint_jax.stats import decisions
from fingerprint_jax.stats.permutation import uneven


def unavailable(run: Run, rows: Rows, refitted: bool = False) -> str | None:
    """Why permuting the labels of these rows would give a wrong p for the run's scores; None where it is right.

    It is right where no label of these rows, or of another image of their groups, had a part in their scores: on a fixed held-out
    fold, and on a packed split that the run did not read labels of. A cross-fitted score depends on the labels of the other folds:
    permuting them afterwards leaves that out and gives false alarms. So does a label that goes with the size of a group.

    Where the estimators of a cross-fitted run are `refitted` to every permutation (`refitted_p`), it is also right if nothing else
    read the labels: a network would have to be trained anew.
    """
    if len(np.unique(rows.labels)) < 2:
        return f"all {len(rows)} labels are {rows.labels[0]}"
    if reason := uneven(rows.labels, rows.groups):
        return reason
    if refitted and ("ensemble" not in run.config or len(rows) < len(run.source.rows(run.target))):
        return "refits need an ensemble whose folds together hold out every labelled image"
    return _learned(run, rows, refitted)


def cross_fitted(run: Run, split: str) -> bool:
    """Whether a split is that of all folds, whose images are scored by what learned from the labels of the others.

    Resampling the scores leaves that out: its intervals hold the fits fixed and are too narrow (docs/statistics.md).
    """
    folds = split.partition(":")[0] == "heldout" and run.cross_fits
    return bool(folds and _learned(run, run.rows(split), certain=True))


def readers(run: Run) -> Iterator[Run]:
    """The runs of the task of a run, itself and those that it stands on, that read labelled images; each as it sees these data."""
    seen = set()
    for source, _, read in methods.sources(run):
        if source.config.task != run.config.task or source.workdir in seen:
            continue
        try:
            index = read().index
        except ValueError:  # of other data than these it holds nothing out, and chose by nothing of these
            continue
        if np.isin(index, source.source.rows(source.target).index).any():
            seen.add(source.workdir)
            yield source


def _learned(run: Run, rows: Rows, refitted: bool = False, certain: bool = False) -> str | None:
    """Which labels of these rows, or of their groups, had a part in the run's scores, or may have; None where none had.

    Args:
        run: that gave the scores.
        rows: of it.
        refitted: leaves out what estimators read.
        certain: leaves out what only may have.
    """
    real = run.source.rows(run.target).index
    for source, what, read in methods.sources(run):
        unknown, elsewhere = _unknown(run, source, what)
        if unknown and not certain:
            return unknown
        if elsewhere or (refitted and "estimator" in source.config):
            continue
        seen = read()
        # Only real images share groups; the names of others may coincide.
        groups = seen.groups[np.isin(seen.index, real)]
        shared = int((np.isin(rows.index, seen.index) | np.isin(rows.groups, groups)).sum())
        if shared:
            return f"{source.workdir} {what} the labels of {shared} of these {len(rows)} images or of their groups; {_remedy(run)}"
    return None


def _unknown(run: Run, source: Run, what: str) -> tuple[str | None, bool]:
    """Why it is not known which labels a source of a run read, if so; and whether that is since it read other data."""
    if source.config.task != run.config.task:
        return f"{source.workdir} {what} images of {source.config.task}: whether these are among them is not known", True
    # Labels stand in the target split and in extra labels alone: the others may be packed anew. Record numbers are of one data set.
    if not source.same_target or source.source.fingerprints != run.source.fingerprints:
        return f"{source.workdir} {what} images of another data set: whether these patients are among them is not known", True
    moved, before, now = list(source.moved), source.provenance["fingerprints"], source.fingerprints
    if "extra_labels" in before.keys() | now.keys() and before != now:  # they are of images of the other splits
        moved.append("data.extra_labels or its images")
    # A stream that came or went: what it read before is not in the config.
    came = [c for c in source.provenance["changes"] if c["field"].startswith("data.streams.") and not (c["from"] and c["to"])]
    moved += [change["field"] for change in came]
    if moved:
        return f"{', '.join(moved)} changed after {source.workdir} was started: what it learned from is not known", False
    return None, False


def _remedy(run: Run) -> str:
    fields = "--config.data.folds=2 --config.data.fold=0"
    if run.config.decision.known == "heldout":  # from which a decision on it could then not learn
        fields += " --config.data.valid=0.2 --config.decision.known=valid"
    return f"train on a fixed half, the same for every member, with {fields} and score heldout"


def transductive(config: Config) -> list[str]:
    """Why labels or scores of a run of this config may depend on images that it was asked about; empty where they do not."""
    reasons, decision, asked = [], config.decision, tasks.of(config.task).test
    if decisions.sees_split(decision.name, decision.known):
        reasons.append(f"the decision {decision.name} sees all images of the split at once")
    for each in stands_on(config):
        if each.data.extra_labels:
            reasons.append("images of data.extra_labels were trained on")
        if any(split.partition(":")[0] == asked for splits in each.get("gallery", {}).values() for split in splits):
            reasons.append(f"images of {asked} are in the gallery")
        reasons += methods.transductive(each)
    return list(dict.fromkeys(reasons))


def in_sample(run: Run, split: str) -> list[str]:
    """Why the figures of a split are too good, or may be: its images were trained on, or have chosen; empty where they were not."""
    base = split.partition(":")[0]
    if base not in (run.target, *PARTS):
        rows = run.rows(split)
        notes = _of_another_split(run, rows) + (_of_other_data(run, rows, False) if (rows.labels >= 0).all() else [])
        return notes + _chosen_by(run, rows)
    here, elsewhere, out = [], [], []
    for reader in readers(run):
        same = reader.same_target and reader.source.fingerprints[run.target] == run.source.fingerprints[run.target]
        (here if same else elsewhere).append(reader)
    reasons = {
        run.target: "holds images that the run was trained on: its figures are too good.",
        "valid": "may have chosen the checkpoint: its figures are too good. Quote heldout.",
        "sequestered": "may have chosen the round of pseudo-labels: its figures are too good. Quote heldout.",
    }
    if base == "heldout" == run.followed.partition(":")[0]:
        out.append("The split heldout has chosen the checkpoint: its figures are too good.")
    if here and base in reasons:
        out.append(f"The split {base} {reasons[base]}")
    elif elsewhere and base == run.target:  # the parts were compared when the run was started
        total, read = len(run.rows(split)), [methods.started_with(r, run.source.image_shape) for r in elsewhere]
        known = [digests for digests in read if digests is not None]
        found = int(np.isin(run.source.digests(run.rows(split).index), np.concatenate(known)).sum()) if known else 0
        if found:
            some = f"{found} of these {total} images are in the {base} that the run was trained on"
            out.append(f"{some}: its figures are too good.")
        if len(known) < len(read):
            why = "those are gone, or of another size"
            others = "others of these" if found else f"any of these {total}"
            out.append(
                f"Whether {others} images {'are' if found else 'is'} among those that the run was trained on is not known: {why}."
            )
    out += _of_other_data(run, run.rows(split)) + _chosen_by(run, run.rows(split))
    moved = list(dict.fromkeys(field for reader in here for field in reader.moved))
    if base in PARTS and moved:
        out.append(f"{', '.join(moved)} changed in mid-training: the split {base} may hold images that were trained on before.")
    return out


def _chosen_by(run: Run, rows: Rows) -> list[str]:
    """Why figures are too good, or may be: --watch has chosen the checkpoint by other data than the run was started with."""
    if not (split := run.followed) or not run.chosen_on or (rows.labels < 0).any():
        return []
    packed, of = run.packed(split), f"of these {len(rows)} images"
    if run.own_fingerprints.get(packed) == run.chosen_on.get(packed):  # its own, which are compared elsewhere
        return []
    if not run.chosen_here:
        return [f"Whether any {of} have chosen the checkpoint, by --watch on other data, is not known."]
    count = int(np.isin(rows.index, run.rows(split).index).sum())
    return [f"{count} {of} have chosen the checkpoint: the figures are too good."] if count else []


def _of_other_data(run: Run, rows: Rows, alike: bool = True) -> list[str]:
    """Why figures of images of the target may be too good: what learned from them in a data set of its own.

    Those of the same task that lay in the target there are counted elsewhere; without `alike`, all of the same task. What compares
    images compares none with itself.
    """
    out, looked_at = [], set()
    for source, what, _ in methods.sources(run):
        same, of = source.config.task == run.config.task, f"of these {len(rows)} images"
        if what.startswith(methods.BEGAN):
            out.append(f"{source.workdir} {what} some {of}: whether the figures are too good is not known.")
        if what not in (methods.TRAINED, methods.FITTED) or source.workdir in looked_at or (same and not alike):
            continue
        looked_at.add(source.workdir)
        try:
            digests = methods.elsewhere(run, source)
        except (ValueError, OSError):
            # Of the target of the same task `in_sample` says so, or they were compared when the run was started.
            if not same or not methods.reads_itself(source.config, run.target):
                why = "they are gone, or of another size"
                out.append(f"Whether any {of} is among those that {source.workdir} {what} is not known: {why}.")
            continue
        if found := int(np.isin(run.source.digests(rows.index), digests).sum()) if len(digests) else 0:
            where = "in another split" if same else f"as {source.config.task}"
            out.append(f"{source.workdir} {what} {found} {of}, {where}: the figures are too good.")
    return list(dict.fromkeys(out))


def _of_another_split(run: Run, rows: Rows) -> list[str]:
    """Why figures of labelled rows of a split that is not the target may be too good: who read them, wherever they lay."""
    out, gone, looked_at = [], [], set()
    known: dict[tuple[str, bytes], np.ndarray] = {}  # members have read the same images
    if not (rows.labels >= 0).all():
        return out

    def digests(source: Source, index: np.ndarray) -> np.ndarray:
        key = str(source.fingerprints), index.tobytes()
        if key not in known:
            known[key] = source.digests(index)
        return known[key]

    def found(own: Run, what: str, read: Rows) -> None:
        if count := int(np.isin(digests(run.source, rows.index), digests(own.source, read.index)).sum()):
            out.append(f"{own.workdir} {what} the labels of {count} of these {len(rows)} images: the figures may be too good.")

    for reader in (source for source, _, _ in methods.sources(run) if source.config.task == run.config.task):
        if reader.workdir in looked_at:
            continue
        looked_at.add(reader.workdir)
        try:
            own = methods.readable(reader, run.source.image_shape)
            for source, what, read in methods.sources(own):
                if source.workdir == own.workdir:
                    found(own, what, read())
        except ValueError:
            gone.append(str(reader.workdir))
    if known_by := run.config.decision.known:
        try:
            own = methods.readable(run, run.source.image_shape)
            found(own, "learned its decision from", own.rows(known_by))
        except ValueError:
            gone.append(str(run.workdir))
    if gone:
        why = "those are gone, or of another size"
        out.append(f"Whether any of these {len(rows)} images is among those that {gone[0]} has read is not known: {why}.")
    return list(dict.fromkeys(out))


def stands_on(config: Config) -> Iterator[Config]:
    """A config, and those of its children or of the finished runs that it uses."""
    yield config
    for each in methods.inner(config):
        yield from stands_on(each)
