"""The real images that generators learn: what they are, packed once, and known again."""

import csv
import hashlib
import json
import os
import tempfile
from pathlib import Path

from fingerprint_jax.data import builder, folders, images, packing
from fingerprint_jax.data.folders import File
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.runtime import files

RECORD, FIELDS = "pool.json", {"image_size": int, "real_dir": str, "groups": str}  # of what all is made
OTHER = "give another --output"


def found_in(real: Path, groups: str) -> list[File]:
    """The files of a folder, or of the folders in it, as `pack` finds them."""
    skip = {os.path.realpath(groups)} if groups else set()
    places = folders.layout("images", real, flat=not folders.class_names(real))
    return [file for place in places for file in folders.scan(place, skip)[0]]


def given(real: Path, groups: str, size: int, output: Path, flag: str = "real_dir") -> dict[str, int | str]:
    """What generators are made of: size, digests of names and content of the images, and of the file of patients, '' for none.

    `flag` names the folder. Raises ValueError where something is not there.
    """
    if not real.is_dir():
        raise ValueError(f"--{flag}={real}: there is no such folder")
    if output.resolve().is_relative_to(real.resolve()):
        raise ValueError(f"--output={output} is in --{flag}={real}: name a folder elsewhere")
    if groups and not Path(groups).is_file():
        raise ValueError(f"--groups={groups}: there is no such file")
    found = [file.path for file in found_in(real, groups) if file.path.suffix.lower() in images.FORMATS]
    if not found:
        raise ValueError(f"--{flag}={real}: no image in it, which is named {', '.join(images.FORMATS)}")
    content = hashlib.sha256()
    for path in found:
        content.update(json.dumps([str(path.relative_to(real)), files.digest(path)]).encode())
    return {"image_size": size, "real_dir": content.hexdigest(), "groups": files.digest(Path(groups)) if groups else ""}


def pack(real: Path, groups: str, output: Path, now: dict[str, int | str], flag: str = "real_dir") -> Source:
    """All images of a folder, or of the folders in it, packed in `<output>/pool`, now or before.

    `now` is what `given` says of them, `flag` names the folder; raises ValueError where others were packed.
    """
    size, record = int(now["image_size"]), output / RECORD
    if builder.dataset_dir(output / "pool", "images").exists():
        known = files.read_json(record, FIELDS, OTHER)
        was = {"image_size": f"images of {known['image_size']} pixels", "real_dir": "other images", "groups": "other patients"}
        if changed := [name for name in FIELDS if known[name] != now[name]]:
            name, value = {"image_size": ("image_size", size), "real_dir": (flag, real), "groups": ("groups", groups)}[changed[0]]
            raise ValueError(f"--{name}={value}: {output} is of {was[changed[0]]}: give those, or another --output")
        source = open_source(str(output / "pool"), "images")
        if known.get("packed", source.fingerprints["train"]) != source.fingerprints["train"]:  # older ones do not say it
            raise ValueError(f"{output / 'pool'} has other images than were packed there: put those back, or {OTHER}")
        return source
    files.write_text(record, json.dumps(now, indent=1))  # before there is anything that it could be wrong about
    with tempfile.TemporaryDirectory() as temporary:
        labels = "" if folders.class_names(real) else Path(temporary) / "labels.csv"
        if labels:  # of a folder without classes: all of one
            with labels.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([["id", "label"], *([each.id, "real"] for each in found_in(real, groups))])
        packing.pack("images", output / "pool", real, groups=groups, labels=labels, image_size=size)
    source = open_source(str(output / "pool"), "images")
    files.write_text(record, json.dumps(now | {"packed": source.fingerprints["train"]}, indent=1))
    return source


def verified(source: Source, made: Path) -> Source:
    """A packed data set whose records are those that its summary describes; raises ValueError that says what to remove."""
    try:
        source.verify()
    except ValueError as error:
        raise ValueError(f"{error}; here: remove {made}, and the same command makes it anew") from None
    return source
