"""Which rows of the data a run sees: folds, valid, sequestered, galleries, extra labels."""

import dataclasses
import functools

import numpy as np

from fingerprint_jax import Config
from fingerprint_jax.data import tables, tasks
from fingerprint_jax.data.source import Rows, Source, open_source
from fingerprint_jax.data.tasks import Task
from fingerprint_jax.runs import ranges
from fingerprint_jax.runtime import files, names
from fingerprint_jax.stats import bootstrap

PARTS = {"valid": 1, "heldout": 2, "sequestered": 3}  # of the target split; 0 is the rest, which a run learns from


class View:
    """The rows that a config gives of the packed data that it names.

    Args:
        config: the experiment.
        labels: of all rows of the target split, in place of their own; None for those.
    """

    def __init__(self, config: Config, labels: np.ndarray | None = None) -> None:
        self.config = config
        self.labels = labels

    @property
    def same_target(self) -> bool:
        """Whether rows of the target split may be held out; a run says no where it was started with another one."""
        return True

    @property
    def name(self) -> str:
        """What the view is of, for messages."""
        return str(self.config.data_dir)

    @property
    def source(self) -> Source:
        """The packed data set."""
        if not self.config.data_dir:
            raise ValueError("config.data_dir is empty: give the folder that `fingerprint_jax.pack` wrote, --config.data_dir=DIR")
        return open_source(str(self.config.data_dir), self.task.name)

    @property
    def task(self) -> Task:
        """What is asked."""
        return tasks.of(self.config.task)

    @property
    def target(self) -> str:
        """The packed split that held-out, validation and sequestered rows come from."""
        return self.task.target

    @property
    def cross_fits(self) -> bool:
        """Whether it is of all folds: an ensemble, whose members hold out one each and together every labelled row."""
        data = self.config.data
        return bool("ensemble" in self.config and data.folds and data.fold < 0)

    def packed(self, split: str) -> str:
        """The packed split that the rows of a split come from."""
        name = split.partition(":")[0]
        return self.target if name in PARTS else name

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
                f"split {split}: {self.name} was started with another {self.target} than that of {self.config.data_dir} and"
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
        self.source.require_whole(self.config.data.max_damaged)
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
        """The packed split that a stream of `data.streams` reads; of a stream `x:label` the rows of one label, `split:label`.

        Raises ValueError for rows that are held out of the training.
        """
        name = stream.partition(":")[0]
        if f"train_{name}" in self.source.splits:
            return f"train_{stream}"
        if name in PARTS:
            raise ValueError(f"data.streams.{stream}: {name} is held out of the training, use splits of the data set")
        return stream

    def training_rows(self, split: str) -> Rows:
        """`rows`, joined in the target split by those of `data.extra_labels`; in the order of their record numbers.

        Extra ones that are of a group with a row that is held out, validates or is sequestered, as copies of it are, stay out.
        """
        rows = self.rows(split)
        split, _, label = split.partition(":")
        if split == "reference" and self.task.membership:
            self._require_apart(rows)
        if split != self.target or not self.config.data.extra_labels:
            return rows
        extra = self.extra.take(self.extra.labels == int(label)) if label else self.extra
        shared = np.isin(extra.groups, self._target_rows.groups[self.parts != 0])
        if shared.any():
            extra = extra.take(~(shared & self.source.known(extra.groups)))
        rows = Rows.concatenate([rows, extra])
        return rows.take(np.argsort(rows.index))

    def _require_apart(self, reference: Rows) -> None:
        """Raises ValueError where the reference has images that are asked about, or of their patients: it would tell the answer.

        A constant image of the reference shows nobody.
        """
        asked = [self.source.rows(split).groups for split in (self.target, self.task.test) if split in self.source.splits]
        shared = reference.take(np.isin(reference.groups, np.concatenate(asked)) & self.source.known(reference.groups))
        if len(shared):
            images = self.source.images(shared.index)
            shared = shared.take(np.ptp(images.reshape(len(images), -1), axis=1) > 0)
        if len(shared):
            raise ValueError(
                f"{len(shared)} images of the reference of {self.config.data_dir} are images that are asked about, or of their"
                f" patients (first: {str(shared.ids[0])!r} of {str(shared.groups[0])!r}): leave them out of --reference_dir and"
                " pack the data again"
            )

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
            optional = name == "rivals" and {split.partition(":")[0] for split in splits} <= {*self.task.splits}
            if not present and optional:  # more images to choose from, where there are some
                continue
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
            # An array holds all as long as the longest. So one that can be no form of an id is named before there is one.
            longest = rows.ids.dtype.itemsize + 16  # four times the characters of the longest: a form may be longer by so much
            if far := sorted(name for name in labels if len(name) > longest):
                what = f"{len(far)} ids are not in {split}, they are too long (first: {ascii(far[0][:80])})"
                raise ValueError(f"data.extra_labels={path!r}: {what}")
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

    @property
    def extra_splits(self) -> list[str]:
        """The splits that the file `data.extra_labels` names; raises ValueError as `tables.read_extra_labels`."""
        return list(tables.read_extra_labels(self.config.data.extra_labels, self.source.num_classes, self.config.task))

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """The part of every row of the target split, a number of PARTS or 0; all 0 for one that the run was not started with."""
        rows, data = self._target_rows, self.config.data
        part = np.zeros(len(rows), np.int8)
        if not self.same_target:
            return part
        if self.cross_fits:
            part[:] = 2
        elif data.folds and data.fold >= 0:
            if data.fold >= data.folds:
                raise ValueError(f"data.fold={data.fold} is outside the data.folds={data.folds} folds")
            check_folds(rows, data.folds, f"data.folds={data.folds}", self.source.summary["classes"])
            part[fold_of(rows, data.folds, data.split_seed) == data.fold] = 2
        # One after the other from what is left, so that a share of the second moves nothing in the first.
        for draw, (number, name) in enumerate(((1, "valid"), (3, "sequester")), 1):
            left, share = np.flatnonzero(part == 0), data[name]
            if share and len(left):
                taken, folds = ranges.parts_of(f"data.{name}", share)
                field = f"data.{name}={share}, {taken if taken > 1 else 'one'} of {folds} parts"
                check_folds(rows.take(left), folds, field, self.source.summary["classes"])
                part[left[fold_of(rows.take(left), folds, data.split_seed + draw) < taken]] = number
        return part

    def folds(self, rows: Rows) -> np.ndarray:
        """The fold in which each row of the target split is held out: [N] int."""
        target = self._target_rows
        fold = dict(zip(target.index, fold_of(target, self.config.data.folds, self.config.data.split_seed), strict=True))
        return np.array([fold[i] for i in rows.index])

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digest of the content of every split, and of the file `data.extra_labels` where there is one."""
        path = self.config.data.extra_labels
        return self.source.fingerprints | ({"extra_labels": files.digest(path)} if path else {})


def fold_of(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Stratified folds of whole groups: [N] int in 0..folds-1."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # here, as it is half of a binary's start

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


def check_folds(rows: Rows, folds: int, field: str, classes: list[str]) -> None:
    """Raises ValueError where some labelled rows cannot be cut into so many folds; `field` is what asks for them."""
    if folds < 2:
        raise ValueError(f"{field}: at least 2 folds are needed")
    groups, labels = len(np.unique(rows.groups)), np.unique(rows.labels).tolist()
    if groups >= folds and max((rows.labels == label).sum() for label in labels) >= folds:
        return
    count, least = min((len(np.unique(rows.groups[rows.labels == label])), label) for label in labels)
    what = "patients" if groups < len(rows) else "images"
    raise ValueError(f"{field}: class {classes[least]!r} has {count} {what}, at most {count} folds")
