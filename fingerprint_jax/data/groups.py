"""What belongs together: equal images are of one group, and names that look alike may be of one patient."""

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

from fingerprint_jax.data.folders import File

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?(e[+-]?[0-9]{1,3})?")


def join_equal(files: list[File]) -> list[str]:
    """Puts images with equal pixels, and all of their groups, into one group; returns what is to be said of it, a line each.

    Real images are joined with real ones and synthetic with synthetic ones, whatever their split, class and name: a synthetic
    image that equals a real one is what is looked for, not another image of the patient. A joined group is called like the first
    of its patients, and `<split>/<id>` of its first image where no patient is known. So are two others, since a name must tell
    whether a patient is known (`Source.known`): an image without one that is called like a patient, and a patient all of whose
    images, of several splits, are called like it.

    A constant image shows no patient: it is joined with equal ones that have no patient either, never with a patient.
    """
    # A node is a patient, or an image of which none is known; its name may be that of another image elsewhere.
    nodes = [("", file.group) if file.known else (file.split, file.id) for file in files]
    root = {node: node for node in nodes}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while root[node] != node:
            root[node] = node = root[root[node]]
        return node

    conflicts: list[tuple[File, File]] = []
    first: dict[tuple, int] = {}
    for i, file in enumerate(files):
        if file.constant and file.known:
            continue
        j = first.setdefault((file.split.endswith("generated"), file.digest), i)
        a, b = sorted((find(nodes[i]), find(nodes[j])))  # patients come before images
        root[b] = a
        if not file.constant and min(file.label, files[j].label) >= 0 and file.label != files[j].label:
            conflicts.append((files[j], file))
    members: dict[tuple[str, str], list[int]] = {}
    for i, node in enumerate(nodes):
        members.setdefault(find(node), []).append(i)
    for (split, name), found in members.items():
        if split:
            apart = len(found) > 1 or ("", name) in members
        else:
            apart = len(found) > 1 and all(files[i].id == name for i in found)
            split = min(files[i].split for i in found)
        for i in found:
            files[i].group = f"{split}/{name}" if apart else name
    said = []
    if conflicts:
        pair = " and ".join(file.place for file in conflicts[0])
        said.append(f"{len(conflicts)} images have the pixels of an image with another label, the first: {pair}")
    joined = sorted([sorted({nodes[i][1] for i in found if not nodes[i][0]}) for found in members.values()])
    if joined := [names for names in joined if len(names) > 1]:
        names = ", ".join(map(repr, joined[0]))
        said.append(f"{sum(map(len, joined))} patients became {len(joined)}, since they share equal images, the first: {names}")
    return said


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names that look like one: equal as numbers (1, 1.0, 01), or but for case, zeros before a number, and the marks between."""
    found: dict[object, set[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold().strip()
        if _NUMBER.fullmatch(plain):
            key: object = Decimal(plain)
        else:
            key = re.sub(r"(?<![0-9])0+(?=[0-9])", "", re.sub(r"[\W_]+", " ", plain))
        found.setdefault(key, set()).add(name)
    return sorted(tuple(sorted(same)) for same in found.values() if len(same) > 1)
