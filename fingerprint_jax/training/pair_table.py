"""The table of pairs that a training of two stages samples from."""

import hashlib
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

    Raises ValueError where the table is not there, of other data, or another one under its name.
    """
    first = stage(run)
    if first and first.done and first.provenance["fingerprints"] != run.fingerprints:
        raise ValueError(f"{first.workdir}: its table of pairs is of other data than {run.config.data_dir}")
    if first is None or (found := read(first)) is None:
        raise ValueError(f"{run.workdir}: its table of pairs is missing, the command that trains it makes one")
    return found


def read(run: Run) -> dict[str, np.ndarray] | None:
    """The table of a stage; None where it is not finished, and where the table is missing or damaged.

    Raises ValueError where it is another one than the stage was finished with, by the count of its pairs and its digest, which
    older stages do not say.
    """
    if not run.done:
        return None
    found, known = distributed.first(lambda: tables.read_arrays(path(run))), run.outcome
    if found is None or found.keys() != {"real", "generated"}:
        return None
    seen = {"pairs": found["real"].size, "sha256": digest(found)}
    if any(known.get(name, value) != value for name, value in seen.items()):
        raise ValueError(
            f"{path(run)} is another table of pairs than that which was made here: put that back, or remove this one, and the"
            " command that trains the run makes it anew"
        )
    return found


def digest(table: dict[str, np.ndarray]) -> str:
    """SHA-256 of the record numbers of a table."""
    return hashlib.sha256(table["real"].tobytes() + table["generated"].tobytes()).hexdigest()


def path(run: Run) -> Path:
    """Where the table of a stage lies."""
    return run.workdir / "pairs.npz"
