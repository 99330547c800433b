"""Features from another run's network."""

from pathlib import Path

import numpy as np

from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.methods import gradient
from fingerprint_jax.run import Run


def features(run: Run, rows: Rows, output: str, cache: Path, source: Source, enhance: str = "none") -> np.ndarray:
    """Outputs of a run's network for some rows of `source`: [N,D] float32, read from `cache` where they are there.

    Args:
        run: of the network; its own data may be those of another task.
        rows: of `source`.
        output: embedding, logits, error, or the path of a layer in the backbone, such as `stages/1/0`, whose mean over places
            counts; of several joined by + the columns side by side.
        cache: a folder.
        source: the data set of the rows.
        enhance: a filter of features/enhance.py that the network sees the images through.

    Raises ValueError with the layers there are for an output that is none, and for images of another size than the network's.
    """
    parts = []
    for name in output.split("+"):
        layer = "" if name in ("embedding", "logits", "error") else name
        outputs = gradient.outputs(run, rows, cache, enhance=enhance, layer=layer, source=source)
        if name not in outputs:
            raise ValueError(f"features.output={name!r} is not an output of {run.workdir}: it has {', '.join(sorted(outputs))}")
        parts.append(outputs[name].reshape(len(rows), -1).astype(np.float32))
    return np.concatenate(parts, axis=1)
