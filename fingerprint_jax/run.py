"""A run is a directory and the data seen through its config; predictions are a table."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from fingerprint_jax import Config, methods, tables
from fingerprint_jax.data.source import Rows, Source, open_source

# The labelled rows a system is asked about: held-out and validation rows come from here.
TARGET = {"subtask1": "train_real", "subtask2": "train_generated", "images": "train"}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores of N records. Higher is likelier; attribution has K = classes columns, membership K >= 1 and column 0 counts."""

    ids: np.ndarray  # [N] str
    scores: np.ndarray  # [N, K] float
    probabilities: bool  # scores are probabilities


class Run:
    """`config`, `workdir` and `step` (best | latest | a number, read by `predict`)."""

    def __init__(self, config: Config, workdir: str | Path, step: str = "best"):
        self.config = config
        self.workdir = Path(workdir)
        self.step = step

    @staticmethod
    def load(workdir: str | Path, step: str = "best", data_dir: str = "") -> "Run":
        """The run of a finished or running workdir; `data_dir` replaces the data it was made with."""
        path = Path(workdir) / "config.json"
        if not path.exists():
            raise ValueError(f"workdir={str(workdir)!r}: no run there ({path} is missing)")
        config: Config = ConfigDict(json.loads(path.read_text(), object_hook=_lists_to_tuples))
        if data_dir:
            config.data_dir = data_dir
        return Run(config, workdir, step)

    def save_config(self) -> None:
        """Writes config.json before step 0, or checks it: a resumed run must have the same config, but for `data_dir`."""
        path, provenance = self.workdir / "config.json", self.workdir / "data.json"
        fingerprints = self.source.fingerprints
        if path.exists():
            before, after = identity(Run.load(self.workdir).config), identity(self.config)
            for field in sorted(before.keys() | after.keys()):
                if before.get(field) != after.get(field):
                    raise ValueError(
                        f"{self.workdir}: config.{field} is {after.get(field)!r}, the run was started with {before.get(field)!r};"
                        " use another --workdir"
                    )
            known = json.loads(provenance.read_text())
            for split in sorted(known.keys() | fingerprints.keys()):
                if known.get(split) != fingerprints.get(split):
                    raise ValueError(
                        f"{self.workdir}: the data of split {split} is not what the run was started with"
                        f" ({self.config.data_dir}: {fingerprints.get(split)}, before: {known.get(split)})"
                    )
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        tables.write_text(provenance, json.dumps(fingerprints, indent=1))
        tables.write_text(path, json.dumps(self.config.to_dict(), indent=1))

    @property
    def source(self) -> Source:
        """The packed data set."""
        if not self.config.data_dir:
            raise ValueError("config.data_dir is empty: give the folder that `fingerprint_jax.pack` wrote")
        return open_source(str(self.config.data_dir), self.config.task)

    @property
    def target(self) -> str:
        """The packed split that held-out and validation rows come from."""
        return TARGET[self.config.task]

    def rows(self, split: str) -> Rows:
        """What this run sees of a split: a packed split, `heldout`, `valid`, or any of them as `split:label`.

        Of the target split a run sees what is neither held out nor validation.
        """
        split, _, label = split.partition(":")
        if split in (self.target, "valid", "heldout"):
            rows = self.source.rows(self.target)
            rows = rows.take(self.parts == {"valid": 1, "heldout": 2}.get(split, 0))
            if not len(rows) and split == "valid":
                raise ValueError("split valid is empty: set data.valid to a share of the labelled rows")
            if not len(rows) and split == "heldout":
                raise ValueError("split heldout is empty: set data.folds, and data.fold or method=ensemble")
        else:
            rows = self.source.rows(split)
        return rows.take(rows.labels == int(label)) if label else rows

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """0 training, 1 validation, 2 held out, for every row of the target split."""
        rows, data = self.source.rows(self.target), self.config.data
        part = np.zeros(len(rows), np.int8)
        if data.folds:
            if data.fold >= data.folds or data.fold < -1:
                raise ValueError(f"data.fold={data.fold} is outside the data.folds={data.folds} folds")
            if data.fold >= 0:
                part[fold_of(rows, data.folds, data.split_seed) == data.fold] = 2
            elif self.config.method == "ensemble":  # each row is held out from one child
                part[:] = 2
        if data.valid:
            left = np.flatnonzero(part == 0)
            if len(left):
                folds = max(2, round(1 / data.valid))
                part[left[fold_of(rows.take(left), folds, data.split_seed + 1) == 0]] = 1
        return part

    def folds(self, rows: Rows) -> np.ndarray:
        """The fold in which each row of the target split is held out: [N] int."""
        target = self.source.rows(self.target)
        fold = dict(zip(target.index, fold_of(target, self.config.data.folds, self.config.data.split_seed), strict=True))
        return np.array([fold[i] for i in rows.index])

    def child(self, name: str, config: Config, *, seed: int, fold: int) -> "Run":
        """A run at `workdir/children/name` from a member's config: on the data of this one, with its folds, holding out `fold`."""
        config = ConfigDict(config.to_dict())
        config.data_dir, config.seed = self.config.data_dir, seed
        for field in ("folds", "valid", "split_seed"):
            config.data[field] = self.config.data[field]
        config.data.fold = fold
        return Run(config, self.workdir / "children" / name, "best")

    def predict(self, split: str) -> Predictions:
        """The table of a split: read where it stands, computed and written where it is missing or stale."""
        meta = {
            "state": methods.get(self.config.method).state(self),
            "config": config_hash(self.config),
            "fingerprints": self.source.fingerprints,
        }
        path = self.workdir / "predictions" / f"{split.replace(':', '-')}.csv"
        if path.exists():
            ids, scores, known = tables.read_predictions(path)
            if {key: known.get(key) for key in meta} == json.loads(json.dumps(meta)):
                return Predictions(ids, scores, known["probabilities"])
        predictions = methods.get(self.config.method).predict(self, split)
        # float32, as in the table, so that the first reading and every later one are equal.
        predictions = dataclasses.replace(predictions, scores=np.asarray(predictions.scores, np.float32))
        if not np.isfinite(predictions.scores).all():
            bad = predictions.ids[~np.isfinite(predictions.scores).all(axis=1)]
            raise ValueError(f"split {split}: the scores of {len(bad)} images are not finite, the first is {bad[0]!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.write_predictions(path, predictions.ids, predictions.scores, meta | {"probabilities": predictions.probabilities})
        return predictions


def fold_of(rows: Rows, folds: int, seed: int) -> np.ndarray:
    """Stratified folds of whole groups: [N] int in 0..folds-1."""
    if folds < 2:
        raise ValueError(f"data.folds={folds}: at least 2 are needed")
    whole = len(np.unique(rows.groups)) < len(rows)
    if whole:
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows.labels, rows.labels, rows.groups)
    else:
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows.labels, rows.labels)
    fold = np.empty(len(rows), np.int64)
    for k, (_, held) in enumerate(splits):
        fold[held] = k
    return fold


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
    """The flat config without `data_dir`, which may move."""
    return {key: value for key, value in flat_config(config).items() if key.rpartition(".")[2] != "data_dir"}


def config_hash(config: Config) -> str:
    """Digest of a config's identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


def _lists_to_tuples(fields: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
