"""The official folders -> the image files in them, with their splits, ids and labels. Nothing is decoded here."""

import csv
import dataclasses
import os
import stat
import sys
from pathlib import Path

import numpy as np

from fingerprint_jax.data import images

CLASSES = {"subtask1": ["not_used", "used"], "subtask2": ["t1", "t2", "t3", "t4", "t5"]}
LAYOUT = {
    "subtask1": "<train_dir>/{generated,real_used,real_not_used}, <test_dir>/{generated,real_unknown}; or --map NAME=DIR",
    "subtask2": "<train_dir>/real/{t1..t5}, <train_dir>/generated/{gen_t1..gen_t5}, <test_dir>/generated_unknown;"
    " or --map NAME=DIR",
    "images": "<train_dir>/<class>, or images in <train_dir> and --labels=CSV",
}


@dataclasses.dataclass(frozen=True)
class Folder:
    """One folder of the layout, under its name in --map: files go to `split` with `label`, ids start with `prefix`."""

    name: str
    path: Path
    split: str
    label: int
    prefix: str = ""


@dataclasses.dataclass
class File:
    """An image on its way into the data set."""

    path: Path
    folder: Folder
    id: str
    label: int
    order: int  # position by name among the images of its folder
    group: str
    shape: tuple[int, ...] = ()
    digest: str = ""
    info: images.Info = images.Info(0, "", 0)
    thumbnail: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def split(self) -> str:
        """The split it goes to."""
        return self.folder.split


Rejected = list[tuple[str, str]]  # file, reason


def layout(
    task: str,
    train_dir: str | Path,
    test_dir: str | Path = "",
    reference_dir: str | Path = "",
    mapped: dict[str, str] | None = None,
    flat: bool = False,
) -> list[Folder]:
    """The folders of a task; `flat`: those of the task images have no class folders.

    Raises ValueError that names all missing folders, and for class folders that do not fit.
    """
    mapped = dict(mapped or {})
    train, test = Path(train_dir), Path(test_dir)
    folders: list[Folder] = []

    def add(name: str, candidates: list[Path], *rest) -> None:
        default = next((path for path in candidates if path.is_dir()), candidates[0])
        folders.append(Folder(name, Path(mapped.pop(name, default)), *rest))

    if task == "subtask1":
        # Every synthetic image counts as positive: it is what a used image is compared with.
        add("generated", [train / "generated"], "train_generated", 1)
        add("real_used", [train / "real_used"], "train_real", 1, "real_used/")
        add("real_not_used", [train / "real_not_used"], "train_real", 0, "real_not_used/")
        if test_dir or "test_generated" in mapped:
            add("test_generated", [test / "generated"], "test_generated", 1)
        if test_dir or "real_unknown" in mapped:
            add("real_unknown", [test / "real_unknown"], "test_real", -1)
    elif task == "subtask2":
        for k, t in enumerate(CLASSES[task]):
            generated = train / "generated"
            add(t, [train / "real" / t], "train_real", k, f"{t}/")
            add(f"gen_{t}", [generated / f"gen_{t}", generated / t], "train_generated", k, f"gen_{t}/")
        if test_dir or "generated_unknown" in mapped:
            add("generated_unknown", [test / "generated_unknown"], "test_generated", -1)
    else:
        names = class_names(train)
        for split, root in [("train", train), ("test", test)][: 2 if test_dir else 1]:
            if flat or not root.is_dir():
                folders.append(Folder(split, root, split, -1))
                continue
            found = class_names(root)
            if not found:
                raise ValueError(f"{root}: no class folders in it; a flat folder needs --labels")
            if set(found) - set(names):
                raise ValueError(f"{root}: class folders {found}, expected {names}")
            folders += [Folder(n, root / n, split, names.index(n), f"{n}/") for n in found]
    if reference_dir:
        folders.append(Folder("reference", Path(reference_dir), "reference", 0 if task == "subtask1" else -1))
    if mapped:
        raise ValueError(f"--map={min(mapped)}=...: {task} has no official folder of that name; expected {LAYOUT[task]}")
    if missing := [f"{folder.path} ({folder.name})" for folder in folders if not folder.path.is_dir()]:
        raise ValueError(f"missing folders ({len(missing)}): {', '.join(missing)}; expected {LAYOUT[task]}")
    return folders


def class_names(root: Path) -> list[str]:
    """Class subfolders of the task `images`, sorted; empty for a flat folder or none."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []


def scan(folder: Folder, skip: set[str]) -> tuple[list[File], Rejected]:
    """Files of a folder in the order of their names, and those that their name or kind rules out.

    Hidden files and folders are passed over, and the real paths in `skip`. Links to folders are not followed, links to
    files have to stay within the folder. What is not an image shows when it is decoded.
    """
    files: list[File] = []
    rejected: Rejected = []
    root = os.path.realpath(folder.path)

    def unlisted(error: OSError) -> None:
        rejected.append((str(error.filename), f"cannot be listed: {error.strerror}"))

    for place, directories, names in os.walk(root, onerror=unlisted):
        directories[:] = sorted(name for name in directories if name[0] != ".")
        links = [name for name in directories if os.path.islink(os.path.join(place, name))]
        for name in sorted(names) + links:
            real = Path(place, name)
            if name[0] == "." or str(real) in skip:
                continue
            relative = real.relative_to(root)
            id = folder.prefix + relative.with_suffix("").as_posix()
            if reason := unfit(id):
                reason = f"the name {reason}"
            elif os.path.islink(real) and not Path(os.path.realpath(real)).is_relative_to(root):
                reason = "a link that leaves the folder"
            else:
                try:
                    mode = real.stat().st_mode
                    if not stat.S_ISREG(mode):
                        reason = "a link to a folder" if stat.S_ISDIR(mode) else "not a regular file"
                except OSError as error:
                    reason = f"cannot be read: {error.strerror}"
            if reason:
                rejected.append((str(folder.path / relative), reason))
            else:
                files.append(File(folder.path / relative, folder, id, folder.label, len(files), id))
    return files, rejected


def unfit(text: str) -> str:
    """Why an id, a group or a class cannot stand in a table as it is; nothing where it can."""
    if not text.isprintable():
        return "holds unprintable characters, or bytes that are not UTF-8"
    return f"starts with {text[0]!r}, which spreadsheets take for a formula" if text.startswith(("=", "+", "-", "@")) else ""


def require_images(folders: list[Folder], files: list[File], rejected: Rejected) -> None:
    """Raises ValueError that names the folders without any image, with the reason for one of their files."""
    full = {file.folder for file in files}
    if empty := [folder.path for folder in folders if folder not in full]:
        why = [f"{path}: {reason}" for path, reason in rejected if Path(path).is_relative_to(empty[0])]
        raise ValueError(f"no image in {', '.join(map(str, empty))}" + (f"; {why[0]}" if why else ""))


def read_column(path: str, names: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """A CSV with header `id,<name>` or `split,id,<name>` -> {(split or '', id): value}.

    Raises ValueError with file and line for another header, an empty cell, a value that tables cannot hold as it is, or
    two values for one id.
    """
    values: dict[tuple[str, str], str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            name = next((n for n in names if n in header), "")
            if header.count("id") != 1 or header.count(name) != 1:
                expected = " or ".join(f"id,{n}" for n in names)
                raise ValueError(f"{path}: the header is {','.join(header)[:80]!r}, expected {expected}, with or without split")
            for row in reader:
                if not row["id"] or not row[name]:
                    raise ValueError(f"{path}, line {reader.line_num}: the id or the {name} is empty")
                if reason := unfit(row[name]):
                    raise ValueError(f"{path}, line {reader.line_num}: the {name} {row[name][:80]!r} {reason}")
                key = (row.get("split") or "", row["id"])
                if values.setdefault(key, row[name]) != row[name]:
                    raise ValueError(f"{path}, line {reader.line_num}: id {row['id']!r} has a second {name}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None
    return values


def attach(files: list[File], path: str, names: tuple[str, ...]) -> list[str | None]:
    """The column of a CSV for every image, by (split, id) or else by id; None where it has none. Warns of both gaps."""
    values = read_column(path, names)
    keys = [next((key for key in ((f.split, f.id), ("", f.id)) if key in values), None) for f in files]
    if unused := [name for split, name in values if (split, name) not in set(keys)]:
        print(f"warning: {path}: {len(unused)} ids match no image, the first is {unused[0]!r}", file=sys.stderr)
    if without := [f"{f.split} {f.id}" for f, key in zip(files, keys, strict=True) if key is None]:
        print(f"warning: {path}: {len(without)} images are not in it, the first is {without[0]!r}", file=sys.stderr)
    return [values[key] if key else None for key in keys]


def read_facts(path: str | Path, split: str) -> dict[str, list]:
    """files.csv of a packed data set -> the columns id, bytes, mode and metadata_bytes of a split, in the order of its records.

    Raises ValueError that names the file where it cannot be read, or has other columns.
    """
    columns = {"id": str, "bytes": int, "mode": str, "metadata_bytes": int}
    found = _packed_files(path, {"split": str} | columns)
    return {name: [row[name] for row in found if row["split"] == split] for name in columns}


def read_files(path: str | Path) -> dict[str, list[tuple[str, int, str]]]:
    """files.csv of a packed data set -> {split: [(id, label, group)]} in the order of its records.

    Raises ValueError that names the file where it cannot be read, or has other columns.
    """
    splits: dict[str, list[tuple[str, int, str]]] = {}
    for row in _packed_files(path, {"split": str, "id": str, "label": int, "group": str}):
        splits.setdefault(row["split"], []).append((row["id"], row["label"], row["group"]))
    return splits


def _packed_files(path: str | Path, columns: dict[str, type]) -> list[dict]:
    """Columns of files.csv, each of a type, a dict a row."""
    found = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if None in row.values():
                    raise ValueError("a line is cut short")
                found.append({name: kind(row[name]) for name, kind in columns.items()})
    except KeyError as error:
        raise ValueError(f"{path}: no column {error}; pack the data again") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not the table of packed files: {error}") from None
    return found
