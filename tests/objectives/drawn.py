"""What both sides of test_parity.py are given: weights, batches and the digests of gradients, in plain numpy.

Weights are drawn by the name that a tensor has in PyTorch, as those of the backbones are.
"""

import zlib
from pathlib import Path

import numpy as np

from tests.backbones.make_golden import SIZE, draw

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 3  # of momentum contrast, whose queue of 16 keys is full after two
QUEUE, EMBEDDING = 16, 16
THRESHOLD = 0.975  # of the cosine to another positive: half of the keys of these networks are nearer than that
RATE, DECAY, MOMENTUM = 1e-2, 0.1, 0.9  # those published would move nothing that three steps show
MEMBERS = 26


def projections(name, shape):
    """Two directions that a gradient is projected on: [2, *shape]."""
    return np.random.default_rng(zlib.crc32(f"projections of {name}".encode())).normal(size=(2, *shape))


def digest(name, gradient):
    """The norm of a gradient in PyTorch's layout, and its projections, which are about as large."""
    gradient = np.asarray(gradient, np.float64)
    return [float(np.linalg.norm(gradient)), *(float(np.sum(way * gradient)) for way in projections(name, gradient.shape))]


def queue():
    """The keys that a queue begins with [L,D], of unit length."""
    keys = draw("queue.keys", (QUEUE, EMBEDDING))
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


def _stream(rng, shape, labels, first=0, **views):
    count = len(labels)
    stream = {"label": np.array(labels, np.int32), "index": np.arange(first, first + count, dtype=np.int32)}
    return stream | {view: rng.uniform(-1, 1, (count, *shape)).astype(np.float32) for view in ("image", *views)}


def batch(name):
    """The batch of a step."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.startswith("contrastive"):
        generated, real = ([1] * 4, [1, 0, 1, 0, 0]) if name.endswith("sampled") else ([0, 3, 1, 4, 2, 0], [0, 0, 3, 2, 1])
        return {"generated": _stream(rng, (48, 50, 1), generated), "real": _stream(rng, (48, 50, 1), real)}
    if name in ("cross_attention", "canet"):
        count = 4 if name == "canet" else 3  # canet: of pairs
        streams = {"generated": [1] * count, "real": [1, 0, 0, 1]}
        return {stream: _stream(rng, (*SIZE, 3), labels) for stream, labels in streams.items()}
    if name == "reidentification":  # of patients, one of whom was drawn twice
        return {"reference": _stream(rng, (*SIZE, 3), [4, 4, 2, 2, 7, 7, 2, 2])}
    if name == "dclgan":
        return {stream: _stream(rng, (16, 24, 1), [1] * count) for stream, count in (("generated", 3), ("reference", 2))}
    if name == "challengers":
        return {"real": _stream(rng, (*SIZE, 3), [1, 0, 0, 1, 1])}
    if name == "sdva":
        return {"generated": _stream(rng, (*SIZE, 3), [0, 4, 2, 3, 1]), "real": _stream(rng, (*SIZE, 3), [1, 3, 0])}
    return {"generated": _stream(rng, (*SIZE, 1), [1] * 4)}  # autoencoders


def contrasted(step):
    """The batch of a step of momentum contrast: some images come again while their keys are in the queue."""
    rng = np.random.default_rng(step)
    return {
        "generated": _stream(rng, (*SIZE, 3), [1] * 5, first=3 * step, second=True),
        "real": _stream(rng, (*SIZE, 3), [1, 0, 1], first=20, second=True),
    }


def votes():
    """Logits of the members for images of which some are clear and others not: [M,N,6]."""
    rng = np.random.default_rng(0)
    clear = rng.normal(size=(60, 6)) * rng.uniform(0, 6, size=(60, 1))
    return (clear + rng.normal(size=(MEMBERS, 60, 6))).astype(np.float32)
