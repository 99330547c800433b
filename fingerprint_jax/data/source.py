"""A packed data set: its records by number, and the rows of its splits."""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format  # comes with tensorflow-datasets, which lets its errors through
from google.protobuf.message import DecodeError

from fingerprint_jax.data import builder, folders, images, tables, tasks
from fingerprint_jax.runtime import distributed, files

log = logging.getLogger(__name__)

_BLOCK = 1024  # records that are verified at once


@dataclasses.dataclass(frozen=True)
class Rows:
    """A selection of records, in order. All arrays have length N."""

    ids: np.ndarray  # str
    labels: np.ndarray  # int, -1 unknown
    groups: np.ndarray  # str, patient or near-duplicate cluster
    index: np.ndarray  # int, record number, unique over all splits of the data set

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, selection: np.ndarray) -> "Rows":
        """The rows of an index array or a boolean mask."""
        return Rows(self.ids[selection], self.labels[selection], self.groups[selection], self.index[selection])

    @staticmethod
    def concatenate(parts: "Sequence[Rows]") -> "Rows":
        """The rows of all parts, in order."""
        columns = ([getattr(part, field.name) for part in parts] for field in dataclasses.fields(Rows))
        return Rows(*(np.concatenate(column) for column in columns))


def pixel_digest(image: np.ndarray) -> str:
    """SHA-256 of the pixels of an image."""
    return hashlib.sha256(image.tobytes()).hexdigest()


class Source:
    """Random access to the records of one packed data set. Record numbers count through the splits in sorted order.

    ArrayRecord notices damage by itself. A damaged record keeps its row, by what `files.csv` says of it; its image is replaced
    by that of the next record of its split with the same label. `damaged` holds the numbers of those met so far: all of a split
    once its `rows` were read.
    """

    def __init__(self, data_dir: str, task: str) -> None:
        path = builder.dataset_dir(data_dir, task)
        if not (path / "summary.json").exists():
            raise ValueError(f"data_dir={data_dir!r}: no packed data for task {task!r} ({path}); {builder.remedy(data_dir, task)}")
        self.path = path
        self.damaged: set[int] = set()
        try:
            self.summary = _summary(path, task)
            self.image_shape: tuple[int, int, int] = tuple(self.summary["image_shape"])
            self.splits = sorted(self.summary["splits"])
            tfds_builder: Any = builder.opened(path, task, self.image_shape)
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._sources = [tfds_builder.as_data_source(split, deserialize_method=raw) for split in self.splits]
            # Of a record only what is asked for is decoded: at 64 px all four features would take 1.6 times as long as the image.
            self._image = _features(tfds_builder, "image")
            self._facts = _features(tfds_builder, "id", "label", "group")
            self._all = _features(tfds_builder, "image", "id", "label", "group")
            self._offsets = np.concatenate([[0], np.cumsum([len(s) for s in self._sources])])
            for split, records in zip(self.splits, self._sources, strict=True):
                if len(records) != (count := self.summary["splits"][split]["count"]):
                    raise ValueError(f"{split} has {len(records)} records, summary.json says {count}")
        except (ValueError, KeyError, OSError, RuntimeError, AssertionError, TypeError, json_format.Error) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(f": {builder.REMEDY}")
            raise ValueError(f"{path} is damaged ({reason}): {builder.REMEDY}") from None
        self._verified: dict[str, bool] = {}  # whether all of a split could be compared

    @property
    def num_classes(self) -> int:
        """Classes of the task."""
        return len(self.summary["classes"])

    @property
    def window(self) -> dict[str, str]:
        """`window` and `slices` of the DICOM or NIfTI that it was packed from; nothing where there was none."""
        return {name: self.summary[name] for name in ("window", "slices") if isinstance(self.summary.get(name), str)}

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digest of the decoded content of every split."""
        return {split: self.summary["splits"][split]["fingerprint"] for split in self.splits}

    def span(self, split: str) -> tuple[int, int]:
        """First record number of a split, and the one after its last."""
        position = self._position(split)
        return int(self._offsets[position]), int(self._offsets[position + 1])

    def _position(self, split: str) -> int:
        if split not in self.splits:
            remedy = "; pack it with --reference_dir" if split == "reference" else ""
            raise ValueError(f"split {split!r} is not in the data set: it has {', '.join(self.splits)}{remedy}")
        return self.splits.index(split)

    @functools.cache  # noqa: B019 - a source lives as long as the process
    def rows(self, split: str) -> Rows:
        """All rows of a packed split. Every record is read, so that a damaged one is known from here on."""
        position = self._position(split)
        start, stop = self.span(split)
        records = self._read(position, np.arange(stop - start), self._facts)
        known = folders.read_files(self.path / "files.csv").get(split, []) if None in records else []
        if known and len(known) != len(records) or (None in records and not known):
            raise ValueError(f"{self.path / 'files.csv'} has {len(known)} rows of {split}, not {len(records)}: {builder.REMEDY}")
        for i, record in enumerate(records):
            if record is None:
                id, label, group = known[i]
                records[i] = {"id": id, "label": label, "group": group}
                self.damaged.add(start + i)
        ids, groups = ([_text(r[name]) for r in records] for name in ("id", "group"))
        for name in itertools.chain(ids, groups):  # before they are an array, which holds all as long as the longest
            if reason := folders.unfit(name) if name else "is empty":
                raise ValueError(f"{self.path}: {split} has an id or a group {name[:80]!r} that {reason}")
        for id in ids:  # images are written under them
            if not files.inside(id):
                raise ValueError(f"{self.path}: {split} has an id {id[:80]!r} that leads out of a folder: {builder.REMEDY}")
        rows = Rows(
            ids=np.array(ids, dtype=str),
            labels=np.array([int(r["label"]) for r in records], dtype=np.int64),
            groups=np.array(groups, dtype=str),
            index=np.arange(start, stop),
        )
        if len(rows) and not -1 <= rows.labels.min() <= rows.labels.max() < self.num_classes:
            raise ValueError(f"{self.path}: {split} has a label that is none of -1 to {self.num_classes - 1}: {builder.REMEDY}")
        if known:
            log.warning("%s: damaged records in %s: %s", self.path, split, self.damaged_ids(rows))
        return rows

    @functools.cached_property
    def _named(self) -> np.ndarray:
        """The groups that an image of another id is of."""
        rows = Rows.concatenate([self.rows(split) for split in self.splits])
        return np.unique(rows.groups[rows.groups != rows.ids])

    def known(self, groups: np.ndarray) -> np.ndarray:
        """Whether names of groups [N] stand for one group in all splits, as those of patients and of equal images do: bool [N].

        Any other is the id of an image that is alone, without a known patient or the only one of its patient: the same name in
        another split is another image's.
        """
        return np.isin(groups, self._named)

    @functools.cached_property
    def _equal(self) -> list[str]:
        """The names that equal images without a patient may share, see `groups.join_equal`."""
        return [f"{split}/{id}" for split in self.splits for id in self.rows(split).ids.tolist()]

    def patients(self, groups: np.ndarray) -> np.ndarray:
        """Whether names of groups [N] are those of patients, and not of images without one, alone or equal: bool [N]."""
        return self.known(groups) & ~np.isin(groups, self._equal)

    def verify(self, needed: Collection[str] | None = None, only: Collection[str] | None = None) -> None:
        """Reads every record and compares the content of each split with its fingerprint; a second call does nothing.

        A damaged record has no content, and its split cannot be compared: that is an error for the splits that are `needed`, all of
        them by default, and a warning for others. `only` some splits are looked at where it is given.

        Raises ValueError that names the split.
        """
        for position, split in enumerate(self.splits):
            must = needed is None or split in needed
            if only is not None and split not in only or split in self._verified and (self._verified[split] or not must):
                continue
            content, (start, stop) = hashlib.sha256(), self.span(split)
            for first in range(0, stop - start, _BLOCK):
                where = np.arange(first, min(first + _BLOCK, stop - start))
                for number, record in zip(start + where, self._read(position, where, self._all), strict=True):
                    if record is None:
                        self.damaged.add(int(number))
                        continue
                    digest = images.digest(record["image"][..., 0])
                    content.update(images.described(_text(record["id"]), int(record["label"]), _text(record["group"]), digest))
            if damaged := [number for number in self.damaged if start <= number < stop]:
                text = f"{self.path}: {len(damaged)} damaged records in {split}: its content is not compared"
                if must:
                    raise ValueError(f"{text} with summary.json, of which no figure is given: {builder.REMEDY}")
                log.warning("%s", text)
            elif content.hexdigest() != self.fingerprints[split]:
                raise ValueError(
                    f"{self.path}: the records of {split} are not those that summary.json describes, as after a copy that was"
                    f" interrupted: {builder.REMEDY}, or copy it anew"
                )
            self._verified[split] = not damaged

    def require_whole(self, max_damaged: int | None) -> None:
        """Raises ValueError where more records than these were damaged when they were read; None: any number may be."""
        if max_damaged is not None and len(self.damaged) > max_damaged:
            ids = {split: self.damaged_ids(self.rows(split)) for split in self.splits}
            where = "; ".join(f"in {split}: {some}" for split, some in ids.items() if some)
            raise ValueError(
                f"{self.path}: {len(self.damaged)} damaged records, data.max_damaged={max_damaged} ({where});"
                " pack the data again, or allow that neighbours replace them"
            )

    def damaged_ids(self, rows: Rows) -> str:
        """Ids of the damaged among some rows, at most ten of them written out; '' for none."""
        ids = rows.ids[np.isin(rows.index, list(self.damaged))].tolist()
        return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")

    def _read(self, position: int, where: np.ndarray, features: tfds.features.FeaturesDict) -> list:
        """These features of the records `where` of a split; None where one is damaged."""
        if not len(where):
            return []
        try:
            return [features.deserialize_example_np(record) for record in self._sources[position].__getitems__(where.tolist())]
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError, DecodeError):  # it names no record: read them one by one
            return [self._read(position, part, features)[0] for part in np.split(where, len(where))] if len(where) > 1 else [None]

    def images(self, index: np.ndarray) -> np.ndarray:
        """Records by number: [N] -> uint8 [N,H,W,1]."""
        index = np.asarray(index)
        out = np.empty((len(index), *self.image_shape), np.uint8)
        owner = np.searchsorted(self._offsets, index, side="right") - 1
        for position in np.unique(owner):
            where = np.flatnonzero(owner == position)
            records = self._read(position, index[where] - self._offsets[position], self._image)
            for i, record in zip(where, records, strict=True):
                out[i] = self._replacement(int(index[i])) if record is None else record["image"]
        return out

    def digests(self, index: np.ndarray) -> np.ndarray:
        """SHA-256 of the pixels of records by number: [N] -> [N] str."""
        parts = np.array_split(index, len(index) // 256 + 1)  # not all images at once
        return np.array([pixel_digest(image) for part in parts for image in self.images(part)], dtype=str)

    def cached(self, path: Path, compute: Callable[[], dict[str, np.ndarray]], rows: Rows, name: str = "") -> dict[str, np.ndarray]:
        """The arrays of an npz file, made from images of these rows, the array `name` among them where one is needed.

        Where it is missing, damaged or another one under its name they are computed, and written. The splits of the rows are
        compared with their fingerprints before: the file goes by these, and others may find it. Raises ValueError as `verify`.
        """
        found, of = distributed.first(lambda: tables.read_arrays(path)), np.frombuffer(path.name.encode(), np.uint8)
        if found is not None and not np.array_equal(found.pop("of", of[:0]), of):
            found = None
        if found is None or (name and name not in found) or any(x.shape[:1] != (len(rows),) for x in found.values()):
            owners = np.unique(np.searchsorted(self._offsets, rows.index, side="right") - 1)
            distributed.first(lambda: self.verify((), [self.splits[position] for position in owners]))
            found = compute()
            if not self.damaged:  # what stands in for a damaged record may be there again tomorrow
                tables.write_arrays(path, found | {"of": of})
        return found

    def _replacement(self, damaged: int) -> np.ndarray:
        position = int(np.searchsorted(self._offsets, damaged, side="right")) - 1
        rows = self.rows(self.splits[position])
        self.damaged.add(damaged)  # in case it was whole when the rows were read
        own = damaged - rows.index[0]
        for i in np.roll(np.arange(len(rows)), -own - 1):
            if rows.labels[i] == rows.labels[own] and int(rows.index[i]) not in self.damaged:
                record = self._read(position, np.array([i]), self._image)[0]
                if record is not None:
                    return record["image"]
        raise ValueError(f"{self.path}: every record like {str(rows.ids[own])!r} is damaged; pack the data again")


def _summary(path: Path, task: str) -> dict:
    """summary.json, whose seal and sizes of files hold; data sets that were packed before there were any have neither."""
    fields = {"task": str, "image_shape": list, "classes": list, "splits": dict}
    found = files.read_json(path / "summary.json", fields, builder.REMEDY)
    if found["task"] != task:
        raise ValueError(f"summary.json is of the task {found['task']!r}")
    shape = found["image_shape"]
    if len(shape) != 3 or any(type(n) is not int or not 0 < n <= 2**15 for n in shape) or shape[2] != 1:
        raise ValueError(f"summary.json: image_shape is {str(shape)[:80]}")
    if not found["classes"] or not all(isinstance(name, str) and not folders.unfit(name) for name in found["classes"]):
        raise ValueError("summary.json: classes are no names")
    if list(tasks.of(task).classes or found["classes"]) != found["classes"]:
        raise ValueError(f"summary.json: its classes are not those of {task}")
    for name, split in found["splits"].items():
        if name not in tasks.of(task).splits:  # TFDS takes names such as train[:9], and `heldout` is ours
            raise ValueError(f"summary.json: split {name[:40]!r} is none of {', '.join(tasks.of(task).splits)}")
        kinds = {"count": int, "groups": int, "fingerprint": str, "classes": dict}
        if not isinstance(split, dict) or any(not isinstance(split.get(field), kind) for field, kind in kinds.items()):
            raise ValueError(f"summary.json: split {name[:40]!r} lacks one of {', '.join(kinds)}")
    if len(found["classes"]) > max(1, sum(split["count"] for split in found["splits"].values())):
        raise ValueError("summary.json: more classes than records")  # tables of classes by classes would fill the memory
    if "seal" in found and found["seal"] != files.seal(found):
        raise ValueError("summary.json was changed after it was packed")
    sizes = found.get("files", {})
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        file = path / Path(name).name
        if not file.is_file() or file.stat().st_size != size:
            there = f"{file.stat().st_size:,} bytes" if file.is_file() else "no file"
            raise ValueError(f"{file.name}: {there}, {size:,} bytes were packed")
    return found


def _features(tfds_builder: Any, *names: str) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict({name: tfds_builder.info.features[name] for name in names})


def _text(value: str | bytes) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)  # which `unfit` names


@functools.lru_cache(maxsize=8)
def open_source(data_dir: str, task: str) -> Source:
    """The one source of a data set in this process, so that children share what was read."""
    return Source(data_dir, task)
