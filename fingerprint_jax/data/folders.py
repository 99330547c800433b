"""The official folders -> the image files in them, with their splits, ids and labels. Nothing is decoded here."""

import csv
import dataclasses
import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from fingerprint_jax.data import images, tasks
from fingerprint_jax.data.tables import LONGEST, normal_form, rows
from fingerprint_jax.data.tasks import TASKS, Task
from fingerprint_jax.runtime.files import read_bytes
from fingerprint_jax.runtime.names import printable


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
    known: bool = False  # whether --groups names its patient
    shape: tuple[int, ...] = ()
    digest: str = ""
    constant: bool = False  # all pixels are equal: there is nothing to see
    info: images.Info = images.Info(0, "", 0)
    thumbnail: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    volume: str = ""  # DICOM or NIfTI
    shown: str = ""  # the path that stands for it where its own would tell a name, see medical.py
    listed: str = ""  # the id that tables of patients and labels have for it, where its own does not tell

    @property
    def place(self) -> str:
        """The path that lines and tables give."""
        return self.shown or str(self.path)

    @property
    def split(self) -> str:
        """The split it goes to."""
        return self.folder.split


# The start of a cell, also where cells are separated by semicolons; the signs are those of ASCII and the full-width ones.
FORMULA = re.compile("(?:^|;)[=+@\uff1d\uff0b\uff20\uff0d-]")

Rejected = list[tuple[str, str]]  # file, reason


def layout(
    task: str,
    train_dir: str | Path,
    test_dir: str | Path = "",
    reference_dir: str | Path = "",
    mapped: dict[str, str] | None = None,
    flat: bool = False,
) -> list[Folder]:
    """The folders of a task; `flat`: one without official folders has no class folders either.

    Raises ValueError that names all missing folders and what is there instead, and for class folders that do not fit.
    """
    mapped, of = mapped or {}, tasks.of(task)
    if of.folders:
        folders = _official(of, Path(train_dir), test_dir, mapped)
    else:
        folders = _class_folders(Path(train_dir), test_dir, flat)
    if unknown := mapped.keys() - ({folder.name for folder in folders} if of.folders else set()):
        raise ValueError(f"--map={min(unknown)}=...: {task} has no official folder of that name; expected {of.layout}")
    for folder in folders:
        if folder.name not in mapped:
            instead = f"; to read it all the same give --map {folder.name}=DIR" if of.folders else ""
            _refuse_link(folder.path, [Path(root) for root in (train_dir, test_dir) if root], instead)
    if reference_dir:
        folders.append(Folder("reference", Path(reference_dir), "reference", 0 if of.membership else -1))
    if missing := [f"{folder.path} ({folder.name})" for folder in folders if not folder.path.is_dir()]:
        instead = _instead(of, str(train_dir), str(test_dir), mapped)
        raise ValueError(f"missing folders ({len(missing)}): {', '.join(missing)}; expected {of.layout}{instead}")
    return folders


def _official(task: Task, train: Path, test_dir: str | Path, mapped: dict[str, str]) -> list[Folder]:
    """The official folders, there or not; those of the test set where it is given, or they are in `mapped`."""
    folders: list[Folder] = []
    for each in task.folders:
        if each.in_test and not test_dir and each.name not in mapped:
            continue
        places = [(Path(test_dir) if each.in_test else train) / place for place in each.places]
        default = next((path for path in places if path.is_dir()), places[0])
        folders.append(Folder(each.name, Path(mapped.get(each.name, default)), each.split, each.label, each.prefix))
    return folders


def _class_folders(train: Path, test_dir: str | Path, flat: bool) -> list[Folder]:
    """The folders of the task images; a test folder may lack classes. Class names are compared in their normal form."""
    folders: list[Folder] = []
    names = class_names(train)
    if "train" in names and ("test" in names or set(names) <= {"train", "val", "valid", "validation"}):
        raise ValueError(f"{train}: its folders are {', '.join(names)}, no classes; use --train_dir={train / 'train'}")
    label = {normal_form(name): k for k, name in enumerate(names)}
    for split, root in [("train", train), ("test", Path(test_dir))][: 2 if test_dir else 1]:
        if flat or not root.is_dir():
            folders.append(Folder(split, root, split, -1))
            continue
        found = class_names(root)
        if not found:
            raise ValueError(f"{root}: no class folders in it; a flat folder needs --labels")
        if len({normal_form(name) for name in found}) < len(found):
            raise ValueError(f"{root}: class folders {found}, of which two have one name but for blanks or the Unicode form")
        if {normal_form(name) for name in found} - label.keys():
            raise ValueError(f"{root}: class folders {found}, expected {names}")
        folders += [Folder(n, root / n, split, label[normal_form(n)], f"{n}/") for n in found]
    return folders


def _refuse_link(path: Path, roots: list[Path], instead: str) -> None:
    """Raises ValueError where a folder below one of those that the user names is, or lies behind, a link that leaves that."""
    root = next(root for root in roots if path.is_relative_to(root))
    if path.is_dir() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{path} is a link that leaves {root}, and is not followed{instead}")


def _instead(task: Task, train_dir: str, test_dir: str, mapped: dict[str, str]) -> str:
    """What may have been meant where folders are missing, and what is there."""

    def lacks(task: Task, train_dir: str | Path, test_dir: str | Path) -> int:
        return sum(not folder.path.is_dir() for folder in _official(task, Path(train_dir), test_dir, mapped))

    if task.folders:
        if test_dir and lacks(task, test_dir, train_dir) < lacks(task, train_dir, test_dir):
            return "; folders of --test_dir are in --train_dir: are the two swapped?"
        others = (other for other in TASKS.values() if other.folders and other != task)
        if not mapped and (meant := [other.name for other in others if not lacks(other, train_dir, test_dir)]):
            return f"; these are the folders of {meant[0]}: is --task={meant[0]} meant?"
        trains, tests = ([path, *_below(path)[:20], Path(path).parent] if path else [""] for path in (train_dir, test_dir))
        for train, test in itertools.product(trains, tests):
            if not lacks(task, train, test):
                return f"; is --train_dir={train}{f' --test_dir={test}' if test_dir else ''} meant?"
        of_test = [folder.path for folder in _official(task, Path(), train_dir, {}) if folder.label < 0 and folder.path.is_dir()]
        if of_test and not test_dir:
            return f"; {of_test[0]} is of a test set: is --test_dir={train_dir} meant?"
    found = [f"{path} holds {_listed(path)}" for path in dict.fromkeys((train_dir, test_dir)) if path]
    return f"; {', '.join(found)}"


def _below(path: str | Path) -> list[Path]:
    return [Path(path) / name for name in class_names(Path(path))]


def _listed(path: str | Path) -> str:
    """The folders in a folder, or that there are none."""
    if not Path(path).is_dir():
        return "nothing, it is not there"
    names = [str(below.relative_to(path)) for found in _below(path) for below in (found, *_below(found))]
    return (", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")) or "no folders"


def class_names(root: Path) -> list[str]:
    """Class subfolders of the task `images`, sorted; empty for a flat folder or none."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []


def _walk(root: str, unlisted: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    try:
        yield from os.walk(root, onerror=unlisted)
    except RecursionError:  # of Python 3.11
        raise ValueError(f"{root}: its folders are nested too deeply") from None


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

    for place, directories, names in _walk(root, unlisted):
        directories[:] = sorted(name for name in directories if name[0] != ".")
        links = [name for name in directories if os.path.islink(os.path.join(place, name))]
        for name in sorted(names) + links:
            real = Path(place, name)
            if name[0] == "." or str(real) in skip:
                continue
            relative = real.relative_to(root)
            id = folder.prefix + relative.with_suffix("").as_posix()
            volume = images.volume(real)
            if reason := "" if volume else unfit(id):  # a volume gets another name
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
                listed = folder.prefix + images.bare(relative.as_posix()) if volume else ""
                file = File(folder.path / relative, folder, id, folder.label, len(files), id, volume=volume, listed=listed)
                files.append(file)
    return files, rejected


def quoted(text: str) -> str:
    """A cell of a table in which spreadsheets see no formula: an apostrophe stands before what would begin one."""
    return FORMULA.sub(lambda found: f"{found[0][:-1]}'{found[0][-1]}", text)


def unfit(text: str) -> str:
    """Why an id, a group or a class cannot stand in a table as it is; nothing where it can."""
    if len(text) > LONGEST:
        return f"has {len(text):,} characters, more than {LONGEST:,}"
    if not text.isprintable():
        return "holds unprintable characters, or bytes that are not UTF-8"
    if found := FORMULA.search(text):
        how = "holds" if found[0].startswith(";") else "starts with"
        return f"{how} {found[0]!r}, which spreadsheets take for a formula"
    return ""


def require_images(folders: list[Folder], files: list[File], rejected: Rejected) -> None:
    """Raises ValueError that names the folders without any image, with the reason for one of their files."""
    full = {file.folder for file in files}
    if empty := [folder.path for folder in folders if folder not in full]:
        why = [f"{path}: {reason}" for path, reason in rejected if Path(path).is_relative_to(empty[0])]
        raise ValueError(f"no image in {', '.join(map(str, empty))}" + (f"; {why[0]}" if why else ""))


def read_column(path: str, names: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """A CSV with header `id,<name>` or `split,id,<name>` -> {(split or '', id): value}, all in their normal form.

    Lines and columns without anything in them are passed over, as spreadsheets leave them.

    Raises ValueError with file and line for another header or delimiter, a line with more cells than the header, an empty cell,
    a value that tables cannot hold as it is, or two values for one id.
    """
    values: dict[tuple[str, str], str] = {}
    lines = _lines(path)
    _, first = next(lines, (0, []))
    header = [cell.casefold() for cell in first]
    name = next((n for n in names if n in header), "")
    if header.count("id") != 1 or header.count(name) != 1:
        expected = " or ".join(f"id,{n}" for n in names)
        shown = printable(",".join(first)[:80])
        cut = next((mark for mark in ";\t|" if "id" in map(normal_form, ",".join(header).split(mark))), "")
        if cut and len(header) == 1:
            raise ValueError(f"{path}: the cells of its header {shown!r} are separated by {cut!r}, expected commas: {expected}")
        raise ValueError(f"{path}: the header is {','.join(first)[:80]!r}, expected {expected}, with or without split")
    for line, cells in lines:
        if len(cells) > len(header):
            raise ValueError(
                f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}; put text with a comma in quotes"
            )
        row = dict(zip(header, cells, strict=False))
        id, value = row.get("id", ""), row.get(name, "")
        if not id or not value:
            raise ValueError(f"{path}, line {line}: the id or the {name} is empty")
        if reason := unfit(value):
            raise ValueError(f"{path}, line {line}: the {name} {value[:80]!r} {reason}")
        if values.setdefault((row.get("split", ""), id), value) != value:
            raise ValueError(f"{path}, line {line}: id {id!r} has a second {name}")
    return values


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells in their normal form, without empty ones at the end) of the lines of a CSV that hold anything."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)  # else quotes after a blank would be part of the cell
            for row in reader:
                cells = [normal_form(cell) for cell in row]
                while cells and not cells[-1]:
                    cells.pop()
                if cells:
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}; save it in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None


def attach(files: list[File], path: str, names: tuple[str, ...], one_split: bool = False) -> tuple[list[str | None], int]:
    """The column of a CSV for every image, None where it has none; and how many ids of the CSV are none of an image.

    An image is found by (split, id) or else by id, compared in their normal form, and where neither is there by its path: its id
    with the extension of an image, or with backslashes. Warns of both gaps.

    Raises ValueError as `read_column`, where not one id is that of an image, and with `one_split` where a line without a split is
    that of images of several.
    """
    values = read_column(path, names)
    keys, seen = _keys(files, values), {}
    for file, key in zip(files, keys, strict=True) if one_split else ():
        if key and not key[0] and (other := seen.setdefault(key, file.split)) != file.split:
            raise ValueError(f"{path}: {key[1]!r} is an image of {other} and one of {file.split}: give the CSV a column `split`")
    used = set(keys)
    if not values:
        raise ValueError(f"{path}: no ids in it, expected lines of id,{names[0]}")
    unused = [key for key in values if key not in used]
    if len(unused) == len(values):
        split, id = unused[0]
        shown = next((file for file in files if not file.split.endswith("generated")), files[0])
        name = shown.listed or shown.id
        pair = (f"{split} {id}", f"{shown.split} {name}") if split else (id, name)
        raise ValueError(f"{path}: none of its ids is that of an image: its first is {pair[0]!r}, that of an image {pair[1]!r}")
    if unused:
        print(f"warning: {path}: {len(unused)} ids match no image, the first is {unused[0][1]!r}", file=sys.stderr)
    if without := [f"{f.split} {f.id}" for f, key in zip(files, keys, strict=True) if key is None]:
        print(f"warning: {path}: {len(without)} images are not in it, the first is {without[0]!r}", file=sys.stderr)
    labelled = {key: file for file, key in zip(files, keys, strict=True) if file.split == "train_real"}
    if labelled.keys() == {None}:  # ids without their folder may be those of synthetic or reference images
        print(f"warning: {path}: no image of train_real is in it, one is {labelled[None].id!r}", file=sys.stderr)
    return [values[key] if key else None for key in keys], len(unused)


def _keys(files: list[File], values: dict[tuple[str, str], str]) -> list[tuple[str, str] | None]:
    """The key of every image among those of a CSV."""
    ids = [normal_form(file.listed or file.id) for file in files]
    known = set(ids)
    paths: dict[tuple[str, str], list[tuple[str, str]]] = {}  # keys by the id of the file that they may be the path of
    for split, name in values:
        if name not in known:
            path = PurePosixPath(name.replace("\\", "/"))  # as Windows writes it
            paths.setdefault((split, normal_form(images.bare(str(path)))), []).append((split, name))
    keys = []
    for file, id in zip(files, ids, strict=True):
        places = (file.split, id), ("", id)
        key = next((place for place in places if place in values), None)
        if key is None:
            found = next((paths[place] for place in places if place in paths), [])
            own = [key for key in found if key[1].lower().endswith(file.path.suffix.lower())] or found
            key = own[0] if len({values[key] for key in own}) == 1 else None
        keys.append(key)
    return keys


def read_facts(path: str | Path, split: str) -> dict[str, list]:
    """files.csv of a packed data set -> the columns id, bytes, mode and metadata_bytes of a split, in the order of its records.

    Raises ValueError that names the file where it cannot be read, or has other columns.
    """
    columns = {"id": str, "bytes": int, "mode": str, "metadata_bytes": int}
    found = [row for row in read_table(path, {"split": str} | columns) if row["split"] == split]
    return {name: [row[name] for row in found] for name in columns}


def read_files(path: str | Path) -> dict[str, list[tuple[str, int, str]]]:
    """files.csv of a packed data set -> {split: [(id, label, group)]} in the order of its records.

    Raises ValueError that names the file where it cannot be read, or has other columns.
    """
    splits: dict[str, list[tuple[str, int, str]]] = {}
    for row in read_table(path, {"split": str, "id": str, "label": int, "group": str}):
        splits.setdefault(row["split"], []).append((row["id"], row["label"], row["group"]))
    return splits


def read_table(path: str | Path, columns: dict[str, type]) -> Iterator[dict]:
    """Columns of a table that `pack` wrote, each of a type, a dict a row, one at a time.

    Raises ValueError that names the file where it cannot be read, or has other columns.
    """
    try:
        lines = rows(read_bytes(path))
        _, header = next(lines, (0, []))
        if missing := [name for name in columns if name not in header]:
            raise KeyError(missing[0])
        for _, row in lines:
            if row and len(row) < len(header):
                raise ValueError("a line is cut short")
            if row:
                yield {name: kind(row[header.index(name)]) for name, kind in columns.items()}
    except KeyError as error:
        raise ValueError(f"{path}: no column {error}; pack the data again") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not the table of packed files: {reason}") from None
