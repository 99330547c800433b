"""What is kept of predictions, of networks' outputs and of features, removed where it is to be computed again."""

import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from fingerprint_jax import Config, methods
from fingerprint_jax.runs.config import flat_config
from fingerprint_jax.runs.run import Run, refuse_links, tree
from fingerprint_jax.runtime import distributed


@distributed.by_first
def forget(run: Run, split: str = "") -> None:
    """Removes tables of predictions, of the run, its children and the finished runs that these use: they are computed again.

    Of one split, and of the packed one that it is of; without one of all splits, and with them what was kept of networks and
    images on the way, also beside the run that this one is a child of. Other files in these folders are not ours, and a folder
    `features.cache_dir` is left out of use.

    Raises ValueError where a link is in the way, or another run keeps features in such a folder.
    """
    root = run.workdir if split else run.outermost
    refuse_links(root)
    tables_of = {name.replace(":", "-") for name in (split, run.packed(split))} if split else ()
    for folder in tree(root):
        for name in tables_of:
            (folder / "predictions" / f"{name}.csv.json").unlink(missing_ok=True)
        for described in () if split else folder.glob("predictions/*.csv.json"):
            described.unlink()
            described.with_suffix("").unlink(missing_ok=True)
        for path in () if split else (*folder.glob("outputs/*.npz"), *folder.glob("features/*.npz")):
            if re.fullmatch(r".+-[0-9a-f]{16,32}\.npz", path.name):
                path.unlink()
    if not split:
        _without_caches(run.config)
    for path in _used(run.config):
        other = methods.load(path)
        if not split and _without_caches(other.config):
            raise ValueError(f"{path}: features.cache_dir in its config.json is not removed, which may hold anything: empty it")
        forget(other, split)


def _used(config: Config) -> Iterator[str]:
    """The work directories of the finished runs whose predictions or outputs a run of a config reads."""
    for name, value in flat_config(config).items():
        if value and f".{name}".endswith((".ensemble.runs", ".features.run")):
            yield from [value] if isinstance(value, str) else value


def _without_caches(config: Config) -> bool:
    """Empties every `features.cache_dir` of a config; whether there was one."""
    found = False
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= _without_caches(value)
        elif name == "cache_dir" and value:
            config[name], found = "", True
    return found
