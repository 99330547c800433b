"""Twelve kinds of difference of content without a leak: how often does the audit take one for evidence of use?

python -m tests.audit.content_differences [--radiographs=FOLDER] [--output=FILE] [--draws=20]

No generator is trained. Used and synthetic images are of one content, the images that were not used of another, and no image stands
in two sets. Of every second draw the reference has both contents, of the others that of the images not used. `--output` keeps the
draws, so that the same command goes on where it was stopped. Beside them, on phantoms: leaks of a known size, and none.
"""

import collections
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image
from scipy import ndimage
from sklearn.cluster import KMeans

from fingerprint_jax.audit import panel, patients, stages, verdict
from fingerprint_jax.audit.sides import Images
from fingerprint_jax.data import phantom
from fingerprint_jax.runtime import environment, files

SEED = 2025  # declared beforehand
SELECTED = ("shift", "bend", "radius", "clusters", "product", "mixture")  # by the content of the images
CHANGED = ("contrast", "blur", "noise", "zoom", "crop", "scanner")  # the images themselves
LEAKS = (0.0, 0.3, 1.0)
STRENGTHS = (0.3, 0.6, 1.0, 1.5)
# Images used, as many not used; synthetic; of reference.
SIZES = {"phantoms": (60, 200, 300), "radiographs": (100, 400, 400)}


class Arrays(stages.Audit):
    """An audit of arrays, without files."""

    def __init__(self, used, not_used, generated, reference, seed: int):
        self.seed, self.joins, self.methods, self.score = seed, {}, panel.METHODS, patients.DEFAULT
        real = self._side(np.concatenate([used, not_used]), np.repeat([1, 0], [len(used), len(not_used)]), "r")
        self.__dict__["sides"] = {
            "real": real,
            "unknown": real.take(np.zeros(0, int)),
            "generated": self._side(generated, np.ones(len(generated), int), "g"),
            "reference": self._side(reference, np.zeros(len(reference), int), "f"),
        }

    @staticmethod
    def _side(pixels, labels, prefix) -> Images:
        ids = np.array([f"{prefix}{i}" for i in range(len(pixels))])
        return Images(ids, pixels, labels, ids).take(panel.canonical(pixels))

    def files(self) -> dict[str, list]:
        count = len(self.sides["real"])
        return {"id": ["x"] * count, "bytes": [1] * count, "mode": ["L"] * count, "metadata_bytes": [0] * count}

    def verdict(self) -> str:
        """Without copies, which are not looked for."""
        scores = np.array(list(self.scores().values())).T
        document = {"plan": {"alpha": stages.ALPHA}, "exact": [], "controls": {}, "copies": {"flagged": []}, "turned": None}
        document |= {"near": dict.fromkeys(("used", "not_used"), 0), "counts": dict.fromkeys(("used", "not_used"), 0)}
        document["panel"] = self.primary(scores)
        if min(document["panel"]["p"], document["panel"]["p_wrong_direction"]) <= stages.ALPHA:
            document["excess"] = self.excess(scores, self.replaced(), self.content(), self.alone())
        return verdict.decide(document)[0]


def criterion(kind: str, pool: np.ndarray, components: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much each image of a pool has the content of the used ones: [N], by its principal components [N,10] of variance 1."""
    k = int(rng.integers(3))
    first, second = components[:, k], components[:, k + 1]
    if kind == "shift":
        return first + 0.7 * rng.normal(size=len(pool))
    if kind == "bend":
        return -np.abs(first)
    if kind == "radius":
        return -np.square(components[:, :4]).sum(axis=1)
    if kind == "product":
        return first * second
    if kind == "clusters":
        found = KMeans(8, n_init=2, random_state=int(rng.integers(2**31))).fit(components[:, :6]).labels_
        return np.isin(found, rng.permutation(8)[:4]) + 0.2 * rng.normal(size=len(pool))
    # Two hospitals, of which one gave three quarters of the used images and a quarter of the others.
    hospital = components[:, 1] + 0.5 * components[:, 3] > 0
    return (rng.uniform(size=len(pool)) < np.where(hospital, 0.75, 0.25)) + 0.01 * rng.normal(size=len(pool))


def change(kind: str, images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Images uint8 [N,S,S] as another scanner, reconstruction or export gives them."""
    x, size = images.astype(float), images.shape[1]
    if kind == "contrast":
        mean = x.mean(axis=(1, 2), keepdims=True)
        x = (x - mean) * (1 + 0.15 * strength) + mean
    elif kind == "blur":
        x = np.stack([ndimage.gaussian_filter(image, 0.6 * strength) for image in x])
    elif kind == "noise":
        x += 5 * strength * rng.normal(size=x.shape)
    elif kind == "zoom":
        border = max(1, round(size * 0.04 * strength))
        inner = images[:, border:-border, border:-border]
        x = np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR)) for i in inner]).astype(float)
    elif kind == "crop":
        columns = max(1, round(size * 0.03 * strength))
        x = np.pad(x[:, :, columns:], ((0, 0), (0, 0), (0, columns)))
    else:  # scanner: another response, and a faint grid
        x = 255 * (x / 255) ** (1 + 0.2 * strength) + 3 * strength * np.sin(np.arange(size) * np.pi / 4)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def sides(kind: str, pool: np.ndarray, components: np.ndarray, sizes: tuple[int, int, int], number: int) -> list[np.ndarray]:
    """Used, not used, synthetic and reference images of a draw."""
    rng = np.random.default_rng([SEED, number, (SELECTED + CHANGED).index(kind)])
    count, generated, reference = sizes
    both = number % 2 == 0
    if kind in CHANGED:
        parts = np.split(
            pool[rng.permutation(len(pool))[: 2 * count + generated + reference]], np.cumsum([count, count, generated])
        )
        strength = float(rng.choice(STRENGTHS))
        used, not_used, made, rest = parts
        if both:
            rest = np.concatenate([rest[::2], change(kind, rest[1::2], strength, rng)])
        return [change(kind, used, strength, rng), not_used, change(kind, made, strength, rng), rest]
    order = np.argsort(-criterion(kind, pool, components, rng))
    inside, outside = (rng.permutation(half) for half in (order[: len(order) // 2], order[len(order) // 2 :]))
    used, made, more = np.split(inside, [count, count + generated])
    not_used, rest = np.split(outside, [count])
    rest = np.concatenate([rest[: reference // 2], more[: reference // 2]]) if both else rest[:reference]
    return [pool[rows] for rows in (used, not_used, made, rest)]


def draws(name: str, pool: np.ndarray, count: int, done: set) -> Iterator[dict]:
    """A verdict a kind and draw that is not `done`."""
    x = pool.reshape(len(pool), -1).astype(float)
    components = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[0][:, :10] * np.sqrt(len(pool))
    for kind in SELECTED + CHANGED:
        for number in range(count):
            if (name, kind, number) not in done:
                found = Arrays(*sides(kind, pool, components, SIZES[name], number), seed=number).verdict()
                yield {"pool": name, "kind": kind, "draw": number, "verdict": found}


def leaks(count: int, done: set) -> Iterator[dict]:
    """The same of phantoms with leaks of a known size."""
    each, generated, reference = SIZES["phantoms"]
    for leak in LEAKS:
        kind = f"leak {leak:g}"
        for number in range(count):
            if ("phantoms", kind, number) not in done:
                splits = phantom.subtask1(SEED + number, 32, leak, each, generated, unknown=2, reference=reference, slices=1)
                real = splits["train_real"]
                images = [real.images[real.labels == label] for label in (1, 0)]
                images += [splits[name].images for name in ("train_generated", "reference")]
                yield {"pool": "phantoms", "kind": kind, "draw": number, "verdict": Arrays(*images, seed=number).verdict()}


def table(lines: list[dict]) -> str:
    """How often each kind had which verdict."""
    kinds = list(dict.fromkeys((line["pool"], line["kind"]) for line in lines))
    out = ["| images | difference | draws | evidence of use | content explains | no evidence | wrong direction |", "|" + "---|" * 7]
    for pool, kind in kinds:
        found = collections.Counter(line["verdict"] for line in lines if (line["pool"], line["kind"]) == (pool, kind))
        shown = [found[name] for name in (verdict.EVIDENCE, verdict.CONTENT, verdict.NONE, verdict.WRONG_DIRECTION)]
        out.append(f"| {pool} | {kind} | {sum(found.values())} | " + " | ".join(map(str, shown)) + " |")
    return "\n".join(out)


def run(radiographs: str, output: str, count: int) -> list[dict]:
    """All draws, those of `output` not again."""
    environment.self_test()
    lines = files.read_journal(output) if output else []
    done = {(line["pool"], line["kind"], line["draw"]) for line in lines}
    phantoms = phantom.subtask1(SEED, 32, 0.0, 2, 2, unknown=2, reference=1400, slices=1)["reference"].images
    parts = [draws("phantoms", phantoms, count, done), leaks(count, done)]
    if radiographs:
        pool = np.stack([np.asarray(Image.open(path).convert("L")) for path in sorted(Path(radiographs).glob("*.png"))])
        parts.insert(1, draws("radiographs", pool, count, done))
    for part in parts:
        while True:
            with contextlib.redirect_stderr(io.StringIO()):  # the progress of each part
                line = next(part, None)
            if line is None:
                break
            lines.append(line)
            print(f"{line['pool']}, {line['kind']}, draw {line['draw']}: {line['verdict']}", flush=True)
            if output:
                with open(output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    return lines


if __name__ == "__main__":
    flags.DEFINE_string("radiographs", "", "A folder of 2,000 real images, such as chest64/reference.")
    flags.DEFINE_string("output", "", "A file that keeps the draws.")
    flags.DEFINE_integer("draws", 20, "Of each kind.", 1)
    app.run(lambda _: print(table(run(flags.FLAGS.radiographs, flags.FLAGS.output, flags.FLAGS.draws))))
