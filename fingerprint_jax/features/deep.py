"""Features from another run's network."""

import hashlib
import json
import logging
import zipfile
from pathlib import Path

import numpy as np

from fingerprint_jax import tables
from fingerprint_jax.data.source import Rows
from fingerprint_jax.methods import gradient
from fingerprint_jax.run import Run, config_hash

log = logging.getLogger(__name__)


def features(run: Run, rows: Rows, output: str, cache: Path) -> np.ndarray:
    """Output `embedding` or `logits` of a run's network for some rows: [N,D] float32, read from `cache` where it is there."""
    key = [config_hash(run.config), gradient.state(run), output, run.source.fingerprints, rows.index.tolist()]
    path = cache / (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32] + ".npz")
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as file:
                return file["features"]
        except (
            ValueError,
            OSError,
            KeyError,
            EOFError,
            RuntimeError,
            zipfile.BadZipFile,
        ) as error:  # a zip file checks its content
            log.warning("%s is damaged (%s); it is computed again", path, error)
    outputs = gradient.encode(run, gradient.restore(run), rows)
    if output not in outputs:
        raise ValueError(f"features.output={output!r} is not an output of {run.workdir}: it has {', '.join(sorted(outputs))}")
    values = outputs[output].reshape(len(rows), -1).astype(np.float32)
    with tables.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, features=values)
    return values
