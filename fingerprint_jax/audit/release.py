"""What of an audit can lie in the folder of a release: its page and its results without a picture, a name or a path.

RELEASE/index.html   the redacted page
RELEASE/audit.json   the results; the SHA-256 of its pixels stands for an image, a number for a patient
RELEASE/audit.yaml   the flags but for paths
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from fingerprint_jax.audit import page, settings
from fingerprint_jax.audit.sides import Images
from fingerprint_jax.data.source import pixel_digest
from fingerprint_jax.runtime import files, paths

PAGE, RECORD = "index.html", "audit.json"
FILES = PAGE, RECORD, settings.FILE


def define_flags(values: flags.FlagValues) -> None:
    """The flag of the folder."""
    paths.define("release", "", "Folder for page, results and flags without pictures, names and paths, to be handed on.", values)


def check(folder: Path, output: Path) -> None:
    """Raises ValueError where the folder has anything but a release of ours, or lies in that of the audit, or that in it."""
    inside, outside = folder.resolve(), output.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(f"--release={folder} and --output={output}: one lies in the other, and the latter has names and images")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--release={folder}: a file is there, name a folder")
    there = [path for path in sorted(folder.iterdir()) if not files.litter(path.name)] if folder.is_dir() else []
    foreign = [path.name for path in there if path.name not in FILES]
    if there and not foreign:
        try:
            files.read_json(folder / RECORD, {"schema": int, "plan_hash": str}, "")
        except (ValueError, OSError):
            foreign = [path.name for path in there]
    if foreign:
        text = "name an empty folder, a new one, or that of a release"
        raise ValueError(f"--release={folder} is handed on, and {foreign[0]!r} is in it: {text}")


def write(folder: Path, document: dict, sides: dict[str, Images], found: settings.Settings) -> None:
    """Writes the three files, each whole or not at all, the page last: where there is one, all three are of one audit.

    Args:
        folder: as `check` has let it pass.
        document: of audit.json.
        sides: the images, as `Sides` has them.
        found: the flags but for paths.
    """
    bare = without_names(document, sides) | {"command": settings.command(found)}
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # another audit with this folder
        for name in (PAGE, settings.FILE):
            (folder / name).unlink(missing_ok=True)
        files.write_text(folder / RECORD, json.dumps(bare, indent=1))
        settings.write(folder, found)
        page.write(folder, bare, [], redact=True)
    finally:
        os.close(descriptor)


def without_names(document: dict, sides: dict[str, Images]) -> dict:
    """The results with digests for images, numbers for patients, and without the paths in options and environment."""
    bare = json.loads(json.dumps(document))  # a list of its own wherever the same one stood twice
    copies, numbers = bare["copies"], dict[str, str]()
    lines = [*bare["exact"], *(line for name in ("flagged", "closer", "reference_pairs") for line in copies.get(name, ()))]
    for line in lines:
        side = line.get("class", "reference")
        line["id"] = _digest(sides["real" if side in ("used", "not_used") else side], line["id"])
        line["match"] = _digest(sides["generated"], line["match"])
    for line in (*lines, *bare["groups"], *copies.get("groups", ())):
        if "group" in line:
            line["group"] = numbers.setdefault(line["group"], str(len(numbers) + 1))
    bare["about"] = _without_paths(bare["about"])
    bare["plan"]["options"] = _without_paths(bare["plan"]["options"])
    bare["environment"]["settings"] = _without_paths(bare["environment"]["settings"])
    return bare


def _digest(side: Images, name: str) -> str:
    return pixel_digest(side.pixels[side.ids == name][0])


def _without_paths(value: Any) -> Any:
    """Nothing in the place of a text that has a slash, in whatever holds it: a path may have blanks."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return "" if isinstance(value, str) and "/" in value else value
