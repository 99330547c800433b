"""Features from another run's network."""

from pathlib import Path

import numpy as np

from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.runs.run import Run
from fingerprint_jax.runtime import names
from fingerprint_jax.training import inference


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
        outputs = inference.outputs(run, rows, cache, enhance=enhance, layer=_layer(name), source=source)
        names.check("features.output", name, outputs)
        parts.append(outputs[name].reshape(len(rows), -1).astype(np.float32))
    return np.concatenate(parts, axis=1)


def shape(run: Run, output: str, source: Source) -> tuple[int, ...]:
    """The shape of `features` for one image of `source`, which raises ValueError alike; nothing is computed."""
    width = 0
    for name in output.split("+"):
        outputs = inference.shapes(run, source, _layer(name))
        names.check("features.output", name, outputs)
        width += int(np.prod(outputs[name]))
    return (width,)


def _layer(name: str) -> str:
    return "" if name in ("embedding", "logits", "error") else name
