"""Features from another run's network."""

from pathlib import Path

import numpy as np

from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.methods import gradient
from fingerprint_jax.run import Run


def features(run: Run, rows: Rows, output: str, cache: Path, source: Source, enhance: str = "none") -> np.ndarray:
    """Output of a run's network for some rows of `source`: [N,D] float32, read from `cache` where it is there.

    Args:
        run: of the network; its own data may be those of another task.
        rows: of `source`.
        output: embedding, logits, or the path of a layer in the backbone, such as `stages/1/0`, whose mean over places counts.
        cache: a folder.
        source: the data set of the rows.
        enhance: a filter of features/enhance.py that the network sees the images through.

    Raises ValueError with the layers there are for an output that is none, and for images of another size than the network's.
    """
    layer = "" if output in ("embedding", "logits") else output
    outputs = gradient.outputs(run, rows, cache, enhance=enhance, layer=layer, source=source)
    if output not in outputs:
        raise ValueError(f"features.output={output!r} is not an output of {run.workdir}: it has {', '.join(sorted(outputs))}")
    return outputs[output].reshape(len(rows), -1).astype(np.float32)
