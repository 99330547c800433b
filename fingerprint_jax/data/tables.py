"""The tables on disk: `id,label` files, predictions, submissions. Every write is complete or not there, and by process 0."""

import array
import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fingerprint_jax.data import tasks
from fingerprint_jax.runtime import distributed, files

log = logging.getLogger(__name__)

LONGEST = 4096  # characters of a name: paths on Linux have no more, and an array of names holds all as long as the longest

LONGEST_LINE = 2**20  # characters of a line of a table

EXTRA_LABELS = ["split", "id", "label"]  # the header of such a file

STYLES = {"int": "0..{0}", "t": "t1..t{1}", "gen_t": "gen_t1..gen_t{1}"}  # how the labels of 1 + {0} = {1} classes are written

_EXTENSION = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)
_LABEL = re.compile(r"(?:gen_)?t([1-9][0-9]{0,8})|([0-9]{1,9})")


def normal_form(text: str) -> str:
    """The form in which ids, groups and classes are compared: Unicode NFC, without blanks at either end.

    macOS writes file names decomposed (NFD), keyboards write composed characters, and spreadsheets leave blanks.
    """
    return unicodedata.normalize("NFC", text).strip()


def without_extension(text: str) -> str:
    """The normal form of a text from which one image extension is cut off: .png, .jpg or .jpeg."""
    return normal_form(_EXTENSION.sub("", normal_form(text)))


def styles(task: str) -> list[str]:
    """The keys of STYLES in which labels of a task may be written: those of attribution are sets, others have numbers alone."""
    return list(STYLES) if tasks.of(task).attribution else ["int"]


def check_style(task: str, style: str) -> None:
    """Raises ValueError where labels of a task are not written in a style."""
    if style not in styles(task):
        raise ValueError(f"style={style!r}: labels of {task} are not sets; use {', '.join(styles(task))}")


def parse_label(text: str, classes: int, task: str) -> int | None:
    """0..K-1, in attribution also t1..tK or gen_t1..gen_tK -> 0..K-1; None where it is none of them."""
    match = _LABEL.fullmatch(text.strip())
    if not match or (match[1] and styles(task) == ["int"]):
        return None
    label = int(match[1]) - 1 if match[1] else int(match[2])
    return label if label < classes else None


def read_labels(path: str | Path, classes: int, task: str) -> tuple[list[str], np.ndarray]:
    """Ids [N] as they are written and labels int [N] in 0..classes-1 of an `id,label` file, in its order.

    A header is optional: a first line whose label has no digit. Labels are written in one of `styles(task)`. Which images the ids
    are is for `find` to say: whether the end of an id is a file extension hangs on the ids that there are.

    Raises ValueError with file, line and value for a wrong number of columns, a label outside the set, an
    empty or repeated id, a file without labels or one that is not UTF-8 CSV.
    """
    labels: dict[str, int] = {}
    for position, (line, row) in enumerate(_lines(path)):
        if len(row) != 2:
            raise ValueError(f"{path}, line {line}: {len(row)} columns, expected id,label")
        name, text = row
        label = parse_label(text, classes, task)
        if label is None:
            # A word is a header; a number out of range or nothing at all is a mistake, on the first line too.
            if position == 0 and text.strip() and not re.search(r"\d", text):
                continue
            raise _no_label(path, line, text, classes, task)
        if not name:
            raise ValueError(f"{path}, line {line}: the id is empty")
        if len(name) > LONGEST:
            raise ValueError(f"{path}, line {line}: an id of {len(name):,} characters, more than {LONGEST:,}")
        if not normal_form(name).isprintable():
            raise ValueError(f"{path}, line {line}: the id {name!r} holds a control character")
        if name in labels:
            raise ValueError(f"{path}, line {line}: id {name!r} is repeated, each must occur once")
        labels[name] = label
    if not labels:
        raise ValueError(f"{path}: no labels in it, expected lines of id,label")
    return list(labels), np.array(list(labels.values()), dtype=np.int64)  # an array of ids would hold all as long as the longest


def rows(content: bytes, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the lines of a CSV, one at a time; it may be somebody else's.

    Lists of cells take a hundred times the memory of the shortest lines. Raises ValueError and csv.Error for what is none, and for
    a line of more than `LONGEST_LINE` characters.
    """
    seen = 0

    def bounded(file: io.TextIOWrapper) -> Iterator[str]:
        nonlocal seen
        while part := file.readline(LONGEST_LINE):
            seen += len(part)
            if seen >= LONGEST_LINE:
                raise ValueError(f"a line of {LONGEST_LINE:,} characters or more")
            yield part

    reader = csv.reader(bounded(io.TextIOWrapper(io.BytesIO(content), encoding, newline="")))
    for row in reader:
        seen = 0
        yield reader.line_num, row


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """`rows` of a file that are not empty; a pipe or a device is none."""
    try:
        yield from (found for found in rows(files.read_bytes(path), "utf-8-sig") if found[1])
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None


def _no_label(path: str | Path, line: int, text: str, classes: int, task: str) -> ValueError:
    expected = ", ".join(STYLES[style].format(classes - 1, classes) for style in styles(task))
    return ValueError(f"{path}, line {line}: label {text!r} is none of {expected}")


def read_extra_labels(path: str | Path, classes: int, task: str) -> dict[str, dict[str, int]]:
    """A CSV with the header `split,id,label` -> {split: {id: label in 0..classes-1}}; ids and labels as in `read_labels`.

    Raises ValueError with file, line and value for another header, a wrong number of columns, a label outside the set, a
    repeated row, a file without labels or one that is not UTF-8 CSV.
    """
    labels: dict[str, dict[str, int]] = {}
    for position, (line, row) in enumerate(_lines(path)):
        if position == 0:
            if [cell.strip() for cell in row] != EXTRA_LABELS:
                raise ValueError(f"{path}: the header is {','.join(row)[:80]!r}, expected {','.join(EXTRA_LABELS)}")
            continue
        if len(row) != len(EXTRA_LABELS):
            raise ValueError(f"{path}, line {line}: {len(row)} columns, expected {','.join(EXTRA_LABELS)}")
        if len(row[0]) > LONGEST:  # whose normal form would take minutes
            raise ValueError(f"{path}, line {line}: a split of {len(row[0]):,} characters, more than {LONGEST:,}")
        split, name, text = normal_form(row[0]), *row[1:]
        label = parse_label(text, classes, task)
        if label is None:
            raise _no_label(path, line, text, classes, task)
        if name in labels.setdefault(split, {}):
            raise ValueError(f"{path}, line {line}: id {name!r} of split {split!r} is repeated, each must occur once")
        labels[split][name] = label
    if not labels:
        raise ValueError(f"{path}: no labels in it, expected lines of {','.join(EXTRA_LABELS)}")
    return labels


@distributed.by_first
def write_extra_labels(path: str | Path, split: str, ids: np.ndarray, labels: np.ndarray) -> None:
    """Writes labels [N] of rows of one split by their ids [N], whole or not at all."""
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(EXTRA_LABELS)
        writer.writerows([split, name, label] for name, label in zip(ids.tolist(), labels.tolist(), strict=True))


def find(known: Iterable[str], given: Iterable[str], either: bool = False) -> np.ndarray:
    """Positions [N] in `known` [M] of the ids `given` [N]; -1 for those that are none of them.

    An id is the known one that equals it, else the one of the same `normal_form`, else the one that has this form once an image
    extension is cut off from the given one; with `either`, from the known one or from both.

    Raises ValueError where an id may be several of the known ones, or two ids are the same one.
    """
    rules = [(str, str), (normal_form, normal_form), (without_extension, normal_form)]
    if either:
        rules += [(normal_form, without_extension), (without_extension, without_extension)]
    names, asked = list(map(str, known)), list(map(str, given))
    found = np.full(len(asked), -1, dtype=np.int64)
    for of_given, of_known in rules:
        positions: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            positions.setdefault(of_known(name), []).append(i)
        for i in np.flatnonzero(found < 0):
            several = positions.get(of_given(asked[i]), [])
            if len(several) > 1:
                raise ValueError(f"id {asked[i]!a} may be any of {_shown([names[k] for k in several])}")
            found[i] = several[0] if several else -1
        if (found >= 0).all():
            break
    taken: dict[int, str] = {}
    for name, i in zip(asked, found.tolist(), strict=True):
        if i >= 0 and i in taken:
            raise ValueError(f"ids {taken[i]!a} and {name!a} are both that of {names[i]!a}, each must occur once")
        taken[i] = name
    return found


def _shown(names: list[str]) -> str:
    return ascii(names[:3])  # what looks alike is not always the same


def align(ids: Iterable[str], others: Iterable[str], either: bool = False) -> np.ndarray:
    """Positions [N] in `others` of each of `ids` [N], which are those that `find` knows.

    Raises ValueError as `find` does, and where an id is repeated or the two sets differ, with counts and the first few.
    """
    ids, others = list(map(str, ids)), list(map(str, others))
    for names in (ids, others):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ValueError(f"{len(repeated)} ids are repeated (first: {_shown(repeated)})")
    found = find(ids, others, either)
    missing = np.setdiff1d(np.arange(len(ids)), found)
    extra = sorted(others[i] for i in np.flatnonzero(found < 0))
    if len(missing) or extra:
        raise ValueError(
            f"{len(missing)} ids are missing (first: {_shown([ids[i] for i in missing])}) and {len(extra)} are not expected"
            f" (first: {_shown(extra)})"
        )
    return np.argsort(found)


@distributed.by_first
def write_submission(
    path: str | Path,
    ids: Iterable[str],
    labels: Sequence[int] | np.ndarray,
    header: bool = False,
    extension: str = "",
    style: str = "int",
) -> None:
    """Writes `id,label` lines, each id once.

    Args:
        path: replaced only when all is written.
        ids: [N] str.
        labels: [N] int in 0..K-1.
        header: whether a first line `id,label` is written.
        extension: appended to each id, for example `.png`.
        style: int (0..K-1), t (t1..tK) or gen_t (gen_t1..gen_tK).

    Raises ValueError for a repeated id, a negative label, another extension than those of images, or one with which ids are
    taken for others.
    """
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} ids are repeated (first: {repeated[:3]}), a submission has each once")
    if min(labels, default=0) < 0:
        raise ValueError(f"{path}: label {min(labels)} is negative, a submission has a class for each id")
    if extension and not _EXTENSION.fullmatch(extension):
        raise ValueError(f"extension={extension!r}: use .png, .jpg or .jpeg")
    written = [f"{name}{extension}" for name in ids]
    try:
        find(ids, written)
    except ValueError as error:
        raise ValueError(f"extension={extension!r}: {error}; leave it out") from None
    render = {"int": str, "t": lambda k: f"t{k + 1}", "gen_t": lambda k: f"gen_t{k + 1}"}[style]
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if header:
            writer.writerow(["id", "label"])
        writer.writerows([name, render(int(label))] for name, label in zip(written, labels, strict=True))


class _Anew(NamedTuple):
    names: Collection[str] | None  # of tables of predictions; None: everything that is kept
    made: set[Path]  # written since


_anew: list[_Anew] = []


@contextlib.contextmanager
def anew(names: Collection[str] | None = None) -> Generator[None]:
    """The block in which nothing that is kept counts but what was written in it: the rest is computed again.

    Whoever had a folder can have changed what is kept there, and its digest. `names` are those of tables of predictions, without
    `.csv`, that alone are made anew; None stands for all, and for the arrays of networks and images.
    """
    _anew.append(_Anew(names, set()))
    try:
        yield
    finally:
        _anew.pop()


def all_anew() -> bool:
    """Whether everything that is kept is being made anew."""
    return any(block.names is None for block in _anew)


def counts(path: Path) -> bool:
    """Whether what is kept under a path may be read, see `anew`."""
    table = path.stem if path.suffix == ".csv" else None
    asked = [block for block in _anew if block.names is None or table in block.names]
    return all(path.absolute() in block.made for block in asked)


def _made(path: Path) -> None:
    for block in _anew:
        block.made.add(path.absolute())


@distributed.by_first
def write_predictions(path: str | Path, ids: np.ndarray, scores: np.ndarray, meta: dict) -> None:
    """Writes ids [N] and scores [N,K] as `id,score_0..score_{K-1}`, float32 to the last bit.

    `meta` says what the table was made from; it stands beside it in `<path>.json`, with the digest of the table.
    """
    path = Path(path)
    described = path.with_name(path.name + ".json")
    described.unlink(missing_ok=True)  # a table without its description counts as stale
    scores = np.asarray(scores, np.float32)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *(f"score_{k}" for k in range(scores.shape[1]))])
    # str of a numpy float32 is the shortest text that reads back as the same float32.
    writer.writerows([name, *map(str, row)] for name, row in zip(ids.tolist(), scores, strict=True))
    content = text.getvalue().encode("utf-8")
    with files.replacing(path) as temporary:
        temporary.write_bytes(content)
    files.write_text(described, json.dumps(meta | {"sha256": hashlib.sha256(content).hexdigest()}, indent=1))
    _made(path)


def read_predictions(path: str | Path) -> tuple[list[str], np.ndarray, dict]:
    """Ids, scores float32 [N,K] and description of a table.

    Raises ValueError that names the file where it is not such a table, or not the one that its description was written for.
    """
    path = Path(path)
    described = path.with_name(path.name + ".json")
    try:
        meta, content = json.loads(files.read_text(described)), files.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != meta.pop("sha256"):
            raise ValueError("its digest differs")
        lines = rows(content)
        _, header = next(lines, (0, []))
        if len(header) < 2:
            raise ValueError("it has no scores")
        ids, values = [], array.array("f")  # no array of ids, which would hold all as long as the longest
        for number, row in lines:
            if len(row) != len(header):
                raise ValueError(f"line {number} has {len(row)} columns, its header {len(header)}")
            ids.append(row[0])
            values.extend(map(float, row[1:]))
        scores = np.array(values, dtype=np.float32).reshape(len(ids), len(header) - 1)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, OSError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of predictions ({error})") from None
    return ids, scores, meta


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an npz file; None where it is missing, damaged or of no account (`anew`): they are to be computed again."""
    if not counts(path) or (not path.exists() and not path.is_symlink()):
        return None
    try:
        with files.opened(path, os.O_RDONLY, "rb") as file, zipfile.ZipFile(file) as packed:
            # Ours are not compressed: what is read is no more than the file is long.
            if not all(name.compress_type == zipfile.ZIP_STORED for name in packed.infolist()):
                raise ValueError("compressed")
            if sum(name.file_size for name in packed.infolist()) > os.fstat(file.fileno()).st_size:
                raise ValueError("its parts overlap")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                found = dict(arrays)
        if not all(array.dtype.kind in "biuf" for array in found.values()):
            raise ValueError("not numbers")
        return found
    except Exception as error:  # zipfile and numpy have many words for a file that is none of ours
        log.warning("%s is damaged (%s); it is computed again", path, error)
        return None


@distributed.by_first
def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz file, whole or not at all."""
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    _made(path)
