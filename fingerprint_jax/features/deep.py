"""Features from another run's network."""

from pathlib import Path

import numpy as np

from fingerprint_jax.data.source import Rows
from fingerprint_jax.methods import gradient
from fingerprint_jax.run import Run


def features(run: Run, rows: Rows, output: str, cache: Path, enhance: str = "none") -> np.ndarray:
    """Output `embedding` or `logits` of a run's network for some rows: [N,D] float32, read from `cache` where it is there.

    `enhance` is a filter of features/enhance.py that the network sees the images through.
    """
    outputs = gradient.outputs(run, rows, cache, enhance=enhance)
    if output not in outputs:
        raise ValueError(f"features.output={output!r} is not an output of {run.workdir}: it has {', '.join(sorted(outputs))}")
    return outputs[output].reshape(len(rows), -1).astype(np.float32)
