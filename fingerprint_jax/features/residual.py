"""Co-occurrences of the high-pass residual: how a generator draws noise and edges, whatever the image shows.

Residual, quantisation, truncation and co-occurrence are those of the rich models of steganalysis (Fridrich & Kodovsky 2012, IEEE
Transactions on Information Forensics and Security 7:868), with pairs in place of quadruples and without their symmetrisation.
"""

from collections.abc import Mapping

import numpy as np

# {(down, across): weight} from a pixel: first and second differences, the Laplacian, and Ker & Boehme's kernel.
FILTERS = (
    {(0, 0): -1, (0, 1): 1},
    {(0, 0): -1, (1, 0): 1},
    {(0, -1): 0.5, (0, 0): -1, (0, 1): 0.5},
    {(-1, 0): 0.5, (0, 0): -1, (1, 0): 0.5},
    {(-1, 0): 0.25, (0, -1): 0.25, (0, 0): -1, (0, 1): 0.25, (1, 0): 0.25},
    {(a, b): (0.5 if a * b == 0 else -0.25) if (a, b) != (0, 0) else -1.0 for a in (-1, 0, 1) for b in (-1, 0, 1)},
)
OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the second pixel of a pair: down, across
BLOCK = 2**20  # pixels handled at once


def features(images: np.ndarray, *, steps: tuple[float, ...] = (2.0, 4.0, 8.0), levels: int = 3) -> np.ndarray:
    """`cooccurrence` at each of the steps, side by side: uint8 [N,H,W,1] -> float32 [N, len(steps) * D].

    Raises ValueError where there is no step.
    """
    if not steps:
        raise ValueError("features.steps=(): use at least one step, in grey levels")
    return np.concatenate([cooccurrence(images, step=step, levels=levels) for step in steps], axis=1)


def residual(images: np.ndarray, weights: Mapping[tuple[int, int], float]) -> np.ndarray:
    """One high-pass residual in grey levels, borders left out: uint8 [N,H,W] -> float32 [N,H-2,W-2]."""
    _, height, width = images.shape
    pixels = images.astype(np.float32)
    return sum(  # pyright: ignore[reportReturnType]
        np.float32(weight) * pixels[:, 1 + down : height - 1 + down, 1 + across : width - 1 + across]
        for (down, across), weight in weights.items()
    )


def cooccurrence(images: np.ndarray, *, step: float, levels: int) -> np.ndarray:
    """Square roots of the frequencies of pairs of neighbouring residuals: uint8 [N,H,W,1] -> float32 [N,D].

    D = 6 filters x 4 offsets x (2 levels + 1)^2. Euclidean distances of the roots are Hellinger's of the distributions.

    Args:
        images: of one size, 4 pixels a side or more.
        step: of the quantisation, in grey levels.
        levels: residuals of more steps than this count as this many.
    """
    size = max(1, BLOCK // (images.shape[1] * images.shape[2]))
    return np.concatenate([_block(images[i : i + size, ..., 0], step, levels) for i in range(0, len(images), size)])


def _block(images: np.ndarray, step: float, levels: int) -> np.ndarray:
    count, bins = len(images), 2 * levels + 1
    own = bins**2 * np.arange(count)[:, None, None]  # each image's bins lie by themselves
    parts = []
    for weights in FILTERS:
        codes = (np.clip(np.rint(residual(images, weights) / step), -levels, levels) + levels).astype(np.int64)
        _, height, width = codes.shape
        for down, across in OFFSETS:
            first = codes[:, : height - down, max(0, -across) : width - max(0, across)]
            second = codes[:, down:, max(0, across) : width + min(0, across)]
            pairs = np.bincount((own + bins * first + second).ravel(), minlength=count * bins**2).reshape(count, -1)
            parts.append(np.sqrt(pairs / (first.shape[1] * first.shape[2])))
    return np.concatenate(parts, axis=1).astype(np.float32)


FEATURES = {"residual": features}
