"""What is to be said of the files of a pack: how many were rejected and why, too dark 16-bit ones, what is there twice, counts."""

import collections
import re
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from fingerprint_jax.data import images, tasks
from fingerprint_jax.data.folders import File, Folder, Rejected
from fingerprint_jax.runtime.names import printable

_OTHER_SIZE = re.compile(r"\d+x\d+ pixels, most have (\d+x\d+)(.*)")
SHOWN = 20  # lines of a list that go to the terminal
SIZES = 5  # other sizes in a line


def is_image(path: str, reason: str) -> bool:
    """Whether a rejected file counts as an image that was lost: it is named like one, or has one inside, or cannot be looked at.

    Tables, texts and what file browsers leave (Thumbs.db) do not count.
    """
    named = Path(path).suffix.lower() in images.FORMATS or reason.startswith(("cannot be listed", "DICOM:", "NIfTI:"))
    return reason != images.NOT_NAMED and (named or reason.startswith(images.NOT_NAMED))


def by_kind(rejected: Rejected) -> list[str]:
    """One line for each kind of reason, the most frequent first: how many files, and one of them."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, reason in rejected:  # what differs within a kind: names, paths and numbers
        kinds.setdefault(re.sub(r"'.*?'|/\S+|\d+", "", reason), []).append((path, reason))
    lines = []
    for found in sorted(kinds.values(), key=len, reverse=True):
        path, reason = found[0]
        if match := _OTHER_SIZE.fullmatch(reason):
            sizes = collections.Counter(reason.partition(" ")[0] for _, reason in found).most_common()
            listed = ", ".join(f"{count} x {size}" for size, count in sizes[:SIZES])
            listed += f" and {len(sizes) - SIZES} sizes more" if len(sizes) > SIZES else ""
            lines.append(f"{len(found)} images of other sizes than {match[1]}: {listed}{match[2]}, for example {path}")
        else:
            lines.append(f"{len(found)} files, {reason}, for example {path}" if len(found) > 1 else f"{path}: {reason}")
    return lines


def require_share(folders: list[Folder], kept: list[File], rejected: Rejected, most: float) -> None:
    """Raises ValueError where more than the share `most` of the images of a folder were rejected; names all such folders."""
    roots = {folder.path for folder in folders}
    lost: collections.Counter[Path] = collections.Counter()
    for path, reason in rejected:
        if is_image(path, reason):  # of the innermost folder that it lies in
            lost[next((above for above in (Path(path), *Path(path).parents) if above in roots), Path(path).parent)] += 1
    kept_below: collections.Counter[Path] = collections.Counter()
    whole = {(file.folder.path, file.place) for file in kept}  # of a volume, not each of its slices
    for path, count in collections.Counter(path for path, _ in whole).items():
        for above in (path, *path.parents):
            kept_below[above] += count
    too_many = []
    for root, count in lost.items():
        of = count + kept_below[root]
        if count > most * of:
            too_many.append(f"{count} of {of} images in {root}")
    if too_many:
        more = f"more than {most:.4g} of a folder (--max_rejected)"
        raise ValueError(f"rejected: {', '.join(too_many)}: {more}; mend them as said above, or allow more, up to --max_rejected=1")


def dark(kept: list[File]) -> list[str]:
    """A line for each folder whose 16-bit images use less than half of the values, so that their grey levels would be lost.

    Also where few pixels, as of padding or an overlay, are all that is above an eighth of the values.
    """
    spans: dict[Path, list[tuple[int, int]]] = {}
    common: dict[Path, int] = {}
    for file in kept:
        if file.info.deep:
            spans.setdefault(file.folder.path, []).append(file.info.deep)
            common[file.folder.path] = max(common.get(file.folder.path, 0), file.info.common)
    most = max((high for found in spans.values() for _, high in found), default=0)
    lines = []
    for path, found in spans.items():
        low, high = min(low for low, _ in found), max(high for _, high in found)
        if high - low >= 2**15 and low < common[path] < low + 2**13:
            levels = round(common[path] / 257) - round(low / 257) + 1
            lines.append(
                f"{path}: 99 of 100 values of its {len(found)} 16-bit images go from {low} to {common[path]}, a few up to {high}:"
                f" {levels} of 256 grey levels are left for most; take the few (padding, an overlay) out, then give --bits;"
                " --bits=16 takes them as they are"
            )
        if low == high or high - low >= 2**15:
            continue
        if most < 2**15:
            remedy = f"give --bits={max(8, most.bit_length())}, or more bits where they were stored with more"
        else:
            remedy = "rescale them" if high == most else f"other folders go up to {most}, bring them to one scale"
        levels = round(high / 257) - round(low / 257) + 1
        lines.append(
            f"{path}: the values of its {len(found)} 16-bit images go from {low} to {high}, of 65535: {levels} of 256 grey levels"
            f" are left; {remedy}; --bits=16 takes them as they are"
        )
    return lines


def asked_about(task: str, files: list[File]) -> list[str]:
    """A line where reference images of membership are also, or are of patients who are also, among those that are asked about."""
    if not tasks.of(task).membership:
        return []
    asked = {file.group for file in files if file.split in ("train_real", "test_real") and (file.known or not file.constant)}
    alone = lambda file: file.group == file.id and not file.known  # noqa: E731 - its group is called like it
    found = [file for file in files if file.split == "reference" and file.group in asked and not alone(file)]
    found = [file for file in found if not file.constant]
    if not found:
        return []
    some = f"{len(found)} images, or other images of their patients, are in train or test too (first: {found[0].place})"
    return [f"reference: {some}: no system can use such a reference, leave these images out of it"]


def class_name(task: str, classes: list[str], file: File) -> str:
    """The class of an image in words."""
    if tasks.of(task).membership and file.split.endswith("generated"):
        return "synthetic"
    return classes[file.label] if file.label >= 0 else "unknown"


def likeness(a: File, b: File) -> str:
    """How two images are alike."""
    return "exact" if a.digest == b.digest else "near"


def report_rejected(rejected: Rejected, file: TextIO) -> None:
    """Prints why files were rejected, a line a kind of reason."""
    lines = by_kind(rejected)
    for line in lines[:SHOWN]:
        print(f"rejected: {printable(line)}", file=file)
    if len(lines) > SHOWN:
        print(f"rejected: {len(lines) - SHOWN} more kinds of reasons", file=file)


def report(summary: dict, rejected: Rejected, twins: list[tuple[File, File, float]], target: Path) -> None:
    """Prints why files were rejected, what was found twice, and last the counts, which are to be seen."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    report_rejected(rejected, sys.stdout)

    def cell(file: File) -> str:
        return f"{file.split}/{class_name(summary['task'], summary['classes'], file)}"

    counts = collections.Counter((likeness(a, b), cell(a), cell(b)) for a, b, _ in twins)
    pairs = {(kind, min(a, b), max(a, b)): counts[kind, a, b] + counts[kind, b, a] for kind, a, b in counts}
    across = {id(a) for a, b, _ in twins if cell(a) != cell(b)}
    within = {id(a) for a, b, _ in twins if cell(a) == cell(b)}
    console.print(f"images with an exact or near duplicate in another split or class: {len(across)}")
    console.print(f"images with an exact or near duplicate in their own split and class: {len(within)}")
    for kind, a, b in sorted(pairs, key=lambda pair: -pairs[pair])[:SHOWN]:
        own = "copies are in one group" if kind == "exact" else "their twins are in other groups"
        console.print(f"  {kind}: {counts[kind, a, b]} of {a}, " + (own if a == b else f"{counts[kind, b, a]} of {b}"))
    if len(pairs) > SHOWN:
        console.print(f"  and {len(pairs) - SHOWN} more pairs of split and class")
    if constant := sum(split["constant"] for split in summary["splits"].values()):
        console.print(f"constant images, which have no content and are compared with none: {constant}")
    height, width, _ = summary["image_shape"]
    table = Table(title=f"{summary['task']}, images of {width}x{height}", title_justify="left")
    for column in ("split", "class", "images", "groups (patients)", "content"):
        table.add_column(column, justify="right" if column in ("images", "groups (patients)") else "left")
    for name, split in summary["splits"].items():
        for row, (label, count) in enumerate(split["classes"].items()):
            first = (name, f"{split['groups']:,}", split["fingerprint"][:12]) if not row else ("", "", "")
            table.add_row(first[0], label, f"{count:,}", *first[1:])
    console.print(table)
    console.print(f"rejected files: {len(rejected)}")
    console.print(f"packed: {target}")
