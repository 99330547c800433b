"""Folders that somebody else could have made: what tests of single cases and counted trials share."""

import json
import os
from pathlib import Path

from fingerprint_jax import methods
from fingerprint_jax.data import builder
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import files
from tests.conftest import load_config

CONFIG = "configs/quickstart.py"
DATA = f"fingerprint/subtask2/{builder.VERSION}"


def fit(workdir, data_dir, **fields) -> None:
    """Fits the smoke variant of CONFIG, some fields changed; they may be others than those that the run was started with."""
    config = load_config(CONFIG)
    config.data_dir = str(data_dir)
    config.update(fields)
    methods.get(config.method).fit(Run(config, workdir, allow_change=tuple(fields)))


def reseal(folder: Path, sizes: bool = True) -> None:
    """Makes summary.json of a packed data set fit the files beside it, as anybody can; without `sizes` it has none of theirs."""
    summary = json.loads((folder / "summary.json").read_text())
    found = {name: (folder / name).stat().st_size for name in summary["files"]} if sizes else {}
    summary["files"] = found
    (folder / "summary.json").write_text(json.dumps(summary | {"seal": files.seal(summary)}))


def tree(root: Path) -> dict[str, bytes | str]:
    """Everything below a folder by its path: the bytes of a file, the target of a link, which is not followed, '' of a folder."""
    found: dict[str, bytes | str] = {}
    for place, folders, names in os.walk(root):
        for path in (Path(place) / name for name in (*folders, *names)):
            what = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(root))] = what
    return found
