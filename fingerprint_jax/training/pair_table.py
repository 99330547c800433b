"""The table of pairs that a training of two stages samples from."""

from pathlib import Path

import numpy as np

from fingerprint_jax.data import tables
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import distributed


def stage(run: Run) -> Run | None:
    """The child `stage1` of a run of method gradient, which sees what that is trained on; None where it samples from no pairs.

    Raises ValueError for streams that no pairs fill.
    """
    c = run.config
    if "pairs" not in c or not c.pairs.candidates or not c.num_steps:
        return None
    if c.pairs.method != "pairs":
        raise ValueError(f"pairs.method={c.pairs.method!r} makes no table of pairs: use pairs")
    sizes = c.data.streams.to_dict()
    if not run.task.membership or sizes.keys() != {"real", "generated"} or len(set(sizes.values())) > 1:
        raise ValueError(f"pairs are of subtask1, real and generated, as many of each: not {c.task} with data.streams={sizes}")
    return run.child("stage1", c.pairs, seed=c.seed, fold=c.data.fold)


def table(run: Run) -> dict[str, np.ndarray]:
    """Record numbers of the pairs of the stage of a run: {'real': [M], 'generated': [M]}.

    Raises ValueError where the table is not there, or of other data.
    """
    first = stage(run)
    found = distributed.first(lambda: tables.read_arrays(path(first))) if first and first.done else None
    if first is None or found is None or found.keys() != {"real", "generated"}:
        raise ValueError(f"{run.workdir}: its table of pairs is missing, the command that trains it makes one")
    if first.provenance["fingerprints"] != run.fingerprints:
        raise ValueError(f"{first.workdir}: its table of pairs is of other data than {run.config.data_dir}")
    return found


def path(run: Run) -> Path:
    """Where the table of a stage lies."""
    return run.workdir / "pairs.npz"
