"""Folders of images -> a TFDS data set."""

import collections
import contextlib
import csv
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags

from fingerprint_jax.data import builder, duplicates, images, medical, pack_report, tasks
from fingerprint_jax.data.folders import File, Folder, Rejected, attach, class_names, layout, quoted, require_images, scan
from fingerprint_jax.data.groups import alike, join_equal
from fingerprint_jax.data.tables import normal_form
from fingerprint_jax.runtime import paths
from fingerprint_jax.runtime.files import litter, opened, seal
from fingerprint_jax.runtime.names import printable
from fingerprint_jax.runtime.progress import progress

_OURS = re.compile(rf"(summary|dataset_info|features)\.json|(files|rejected|duplicates)\.csv|{builder.NAME}-.*\.array_record.*")
_WORK = re.compile(r"\.pack-[a-z0-9_]{8}")  # as `mkdtemp` names it; nothing else is removed
BITS = "Bits of the values in 16-bit files, 8 to 16; 0: 16, with a warning where a folder uses less than half of the range."
MAX_REJECTED = "The largest share of a folder's images that may be rejected; above it nothing is packed."


def warn(text: str) -> None:
    """One line on the terminal."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def inspect(file: File, image_size: int, max_pixels: int, bits: int) -> str:
    """Decodes a file for its shape, digest and thumbnail; returns the reason where it is refused, else nothing."""
    try:
        pixels, file.info = images.decode(file.path, image_size, max_pixels, bits)
    except ValueError as error:
        return str(error)
    file.shape, file.digest, file.thumbnail = pixels.shape, images.digest(pixels), duplicates.thumbnail(pixels)
    file.constant = bool((pixels == pixels.flat[0]).all())
    return ""


def select(files: list[File], reasons: list[str]) -> tuple[list[File], Rejected]:
    """What goes into the data set, by split and id: images of the most common size, each id once whatever its case and form."""
    sizes = collections.Counter(f.shape for f, reason in zip(files, reasons, strict=True) if not reason)
    shape = max(sizes, key=lambda s: (sizes[s], s), default=(0, 0))
    kept: list[File] = []
    rejected: Rejected = []
    seen: dict[tuple[str, str], File] = {}
    for file, reason in sorted(zip(files, reasons, strict=True), key=lambda pair: (pair[0].split, pair[0].id, pair[0].path.name)):
        key = (file.split, normal_form(file.id.casefold()))
        if not reason and file.shape != shape:
            reason = f"{file.shape[1]}x{file.shape[0]} pixels, most have {shape[1]}x{shape[0]}; --image_size=N resizes all"
        if not reason and key in seen:
            but = (
                "case or extension" if file.id.casefold() == seen[key].id.casefold() else "case, extension, blanks or Unicode form"
            )
            reason = f"its id {file.id!r} is that of {seen[key].place} but for {but}: rename one"
        if reason:
            lost = (file.place, f"{file.volume}: {reason}" if file.volume else reason)
            if lost not in rejected[-1:]:  # of a volume, not each of its slices
                rejected.append(lost)
        else:
            seen[key] = file
            kept.append(file)
    return kept, rejected


def _require_place(target: Path, overwrite: bool) -> None:
    path = str(target.absolute())  # the writer of records takes text
    if path.encode(errors="ignore").decode() != path:
        raise ValueError(f"{target} has bytes that are no UTF-8: give another --data_dir, or a symbolic link to it")
    for path in (target.parent, target.parent.parent):  # a folder of data can be somebody else's
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and nothing is written through one: give another --data_dir")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there already: give --overwrite to replace it, or another --data_dir")
    if target.is_symlink() or target.exists() and not target.is_dir():
        raise ValueError(f"{target} is no folder, it is not replaced: move it away")
    for path in sorted(target.iterdir()) if target.exists() else ():
        if not (path.is_file() and (_OURS.fullmatch(path.name) or litter(path.name))):
            raise ValueError(f"{path} is none of a data set's files, and --overwrite would remove it: move it away")


def pack(
    task: str,
    data_dir: str | Path,
    train_dir: str | Path,
    test_dir: str | Path = "",
    reference_dir: str | Path = "",
    groups: str | Path = "",
    labels: str | Path = "",
    mapped: dict[str, str] | None = None,
    image_size: int = 0,
    max_pixels: int = images.MAX_PIXELS,
    strict: bool = False,
    overwrite: bool = False,
    bits: int = 0,
    max_rejected: float = 0.05,
    of_volumes: medical.Options | None = None,
) -> dict:
    """Packs the folders of a task; returns what stands in summary.json.

    Writes `<data_dir>/fingerprint/<task>/1.0.0/`: the TFDS data set, summary.json (counts and content fingerprints),
    files.csv (what the files say beside their pixels), rejected.csv (files left out, and why) and duplicates.csv (pairs
    across splits and classes and within them, and constant images). A failed pack leaves nothing behind. The arguments are the
    flags; `mapped` is {NAME: DIR}, `of_volumes` what they say of DICOM and NIfTI.

    Raises ValueError for missing or empty folders, a folder that lost more than `max_rejected` of its images, a CSV that cannot be
    used, a data set that is there already, another pack that is writing it, and with `strict` for any rejected file.
    """
    target = builder.dataset_dir(data_dir, task)
    _require_place(target, overwrite)
    official = bool(tasks.of(task).folders)
    if labels and official:
        raise ValueError(f"--labels is for the task images, the folders of {task} are its labels")
    folders = layout(task, train_dir, test_dir, reference_dir, mapped, flat=bool(labels))
    volumes = medical.Volumes(of_volumes or medical.Options(), Path(data_dir))
    skip = {os.path.realpath(path) for path in (groups, labels) if path} | volumes.own
    scanned = [(folder, *scan(folder, skip)) for folder in folders]
    for root in [Path(root) for root in (train_dir, test_dir) if root] if not official and not labels else []:
        beside = [p for p in sorted(root.iterdir()) if not p.is_dir() and p.name[0] != "." and os.path.realpath(p) not in skip]
        scanned.append((Folder(str(root), root, "", -1), [], [(str(path), "not in a class folder") for path in beside]))
    files, rejected = volumes.hide(scanned)
    require_images(folders, files, rejected)
    classes = list(tasks.of(task).classes) or class_names(Path(train_dir))
    if labels:
        names, _ = attach(files, str(labels), ("label", "class"), one_split=True)
        classes = sorted({n for n in names if n}, key=lambda n: (int(n), "") if n.isdecimal() else (sys.maxsize, n))
        for file, name in zip(files, names, strict=True):
            file.label = classes.index(name) if name else -1
    unmatched = 0
    if groups:
        patients, unmatched = attach(files, str(groups), ("group",))
        for file, patient in zip(files, patients, strict=True):
            file.group, file.known = patient or file.id, patient is not None
        if pairs := alike(patient for patient in patients if patient):
            names = " and ".join(map(repr, pairs[0]))
            more = f" (and {len(pairs) - 1} more such names)" if len(pairs) > 1 else ""
            warn(f"{groups}: {names} look like one patient{more}, they are taken for different ones")
    with _replacing(target, task, overwrite) as work:
        files, refused = volumes.slices(files, work / "slices", max_pixels, bool(groups))
        rejected += refused
        require_images(folders, files, rejected)
        kept, refused = select(files, _inspected(files, image_size, max_pixels, bits or 16))
        rejected += refused
        require_images(folders, kept, rejected)
        if rejected and strict:
            raise ValueError(f"{len(rejected)} files rejected (--strict), the first: {rejected[0][0]}: {rejected[0][1]}")
        try:
            pack_report.require_share(folders, kept, rejected, max_rejected)
        except ValueError:
            pack_report.report_rejected(rejected, sys.stderr)
            raise
        for text in ([] if bits else pack_report.dark(kept)) + join_equal(kept) + pack_report.asked_about(task, kept):
            warn(text)
        ordered = sorted(kept, key=lambda file: (file.split, file.digest, file.id))
        summary = _write(work, task, ordered, classes, image_size, max_pixels, bits) | volumes.described
        seen = [file for file in kept if not file.constant]
        twins = [(seen[i], seen[j], correlation) for i, j, correlation in sorted(_twins(seen))]
        made = builder.dataset_dir(work, task)
        _csv(
            made / "files.csv",
            ["split", "id", "label", "group", "bytes", "mode", "metadata_bytes", "order"],
            [(f.split, f.id, f.label, f.group, f.info.bytes, f.info.mode, f.info.metadata_bytes, f.order) for f in ordered],
        )
        _csv(made / "rejected.csv", ["file", "reason"], rejected)
        pairs = ((pack_report.likeness(a, b), a.split, a.label, a.id, b.split, b.label, b.id, f"{c:.4f}") for a, b, c in twins)
        _csv(
            made / "duplicates.csv",
            ["kind", "split", "label", "id", "other_split", "other_label", "other_id", "correlation"],
            itertools.chain(pairs, (("constant", f.split, f.label, f.id, "", "", "", "") for f in kept if f.constant)),
        )
        summary |= {"unmatched_ids": unmatched, "rejected": len(rejected)}
        summary["files"] = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
        summary["seal"] = seal(summary)
        (made / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    pack_report.report(summary, rejected, twins, target)
    return summary


def _inspected(files: list[File], image_size: int, max_pixels: int, bits: int) -> list[str]:
    """What `inspect` says of each."""
    reasons = []
    with ThreadPoolExecutor() as pool, progress("decoding", len(files)) as advance:
        for reason in pool.map(lambda file: inspect(file, image_size, max_pixels, bits), files):
            reasons.append(reason)
            advance()
    return reasons


def _twins(files: list[File]) -> Iterable[tuple[int, int, float]]:
    if not files:
        return ()
    cells, groups = (
        np.unique(names, return_inverse=True)[1]
        for names in ([f"{file.split}/{file.label}" for file in files], [file.group for file in files])
    )
    return duplicates.twins(np.stack([file.thumbnail for file in files]), [file.digest for file in files], cells, groups)


def _write(work: Path, task: str, kept: list[File], classes: list[str], image_size: int, max_pixels: int, bits: int) -> dict:
    splits = {name: [f for f in kept if f.split == name] for name in sorted({f.split for f in kept})}
    content = {name: hashlib.sha256() for name in splits}
    height, width = kept[0].shape

    def records(name: str) -> Iterator[dict]:
        for file in splits[name]:
            pixels, _ = images.decode(file.path, image_size, max_pixels, bits or 16)
            if images.digest(pixels) != file.digest:
                raise ValueError(f"{file.place}: changed while it was packed")
            content[name].update(images.described(file.id, file.label, file.group, file.digest))
            yield {"id": file.id, "image": pixels[..., None], "label": file.label, "group": file.group}
            advance()

    with progress("writing", len(kept)) as advance:
        builder.write(work, task, {name: functools.partial(records, name) for name in splits}, (height, width, 1))
    summary = {"version": builder.VERSION, "task": task, "image_shape": [height, width, 1], "bits": bits, "classes": classes}
    summary["splits"] = {}
    for name, members in splits.items():
        counts = collections.Counter(pack_report.class_name(task, classes, file) for file in members)
        summary["splits"][name] = {
            "count": len(members),
            "classes": dict(sorted(counts.items())),
            "groups": len({file.group for file in members}),
            "without_patient": sum(not file.known for file in members),
            "constant": sum(file.constant for file in members),
            "fingerprint": content[name].hexdigest(),
        }
    return summary


@contextlib.contextmanager
def _replacing(target: Path, task: str, overwrite: bool) -> Generator[Path]:
    """A folder to pack into; when the block ends well its data set takes the place of `target`, else nothing stays."""
    absent = [path for path in target.parents if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(target):
            _require_place(target, overwrite)
            work = Path(tempfile.mkdtemp(prefix=".pack-", dir=target.parent))
            try:
                yield work
                aside = work / "replaced"  # a rename does not replace a folder that holds files
                try:
                    if overwrite and target.exists():
                        os.replace(target, aside)
                    os.replace(builder.dataset_dir(work, task), target)
                except BaseException:  # a signal, too
                    if aside.exists() and not target.exists():
                        os.replace(aside, target)
                    raise
            finally:
                shutil.rmtree(work, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # they hold the data set now
            for path in absent:
                path.rmdir()


@contextlib.contextmanager
def _alone(target: Path) -> Generator[None]:
    """Holds off other packs of `target` and removes what killed ones left: the lock of a process ends with it."""
    path = target.parent / ".packing"
    with opened(path, os.O_RDWR | os.O_CREAT, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))  # else removed after it was opened
        except BlockingIOError:
            held = False
        if not held:
            raise ValueError(f"another pack is writing {target}: wait for it, or give another --data_dir")
        if os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path}: no lock of ours, it is not removed: move it away")
        try:
            for stale in target.parent.glob(".pack-*"):
                if stale.is_symlink() or not _WORK.fullmatch(stale.name):
                    continue
                if (stale / "replaced").exists() and not target.exists():  # killed between its two renames
                    os.replace(stale / "replaced", target)
                shutil.rmtree(stale, ignore_errors=True)
            yield
        finally:
            path.unlink(missing_ok=True)


def _csv(path: Path, header: list[str], rows: Iterable[tuple]) -> None:
    def cell(value: object) -> object:
        if not isinstance(value, str):
            return value
        return quoted(printable(value))

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([cell(value) for value in row] for row in rows)


def define_image_flags(values: flags.FlagValues) -> None:
    """The flags of all that packs images."""
    text = "DICOM and NIfTI: your secret file, made where it is missing; names of files and patients are derived from it."
    paths.define("salt", "", text, values)
    known = ", ".join(medical.WINDOWS)
    text = f"DICOM and NIfTI: centre,width; file, the window of each; or one of {known}. Without it 8-bit files alone are read."
    flags.DEFINE_string("window", "", text, flag_values=values)
    flags.DEFINE_string("slices", "all", "DICOM and NIfTI: which slices of a series: all, every:N or middle.", flag_values=values)
    flags.DEFINE_integer("bits", 0, BITS, 0, 16, flag_values=values)
    flags.register_validator("bits", lambda bits: not 0 < bits < 8, "use 8 to 16, or 0", flag_values=values)
    flags.DEFINE_float("max_rejected", 0.05, MAX_REJECTED, 0, 1, flag_values=values)


def of_volumes(values: flags.FlagValues) -> medical.Options:
    """What these flags say of DICOM and NIfTI; raises ValueError where that cannot be."""
    return medical.Options(values.salt, values.window, values.slices)
