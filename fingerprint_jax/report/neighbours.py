"""Nearest images and the pictures of them: an image beside the one it resembles most, and beside a pair that says nothing.

Every large gallery holds look-alikes. What a likeness is worth shows only beside the likeness of images that were not used.
"""

import base64
import dataclasses
import io
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fingerprint_jax import methods
from fingerprint_jax.data.source import Rows, Source
from fingerprint_jax.runs.run import Predictions, Run
from fingerprint_jax.training import inference

SIDE = 256  # pictures are at most this large, which bounds the size of the page
PIXELS = 32  # images are averaged to this side where they are compared by their pixels
# A reader sees zero as white, brighter as red, darker as blue; each tells its sign without colour only by the words beside it.
PALETTE = np.concatenate([np.linspace((33, 102, 172), (255, 255, 255), 128), np.linspace((255, 255, 255), (178, 24, 43), 128)])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, what it shows in words, and its caption."""

    uri: str
    words: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image, its nearest and their difference."""

    title: str
    pictures: list[Picture]


@dataclasses.dataclass(frozen=True)
class LookAlikes:
    """The section of a page.

    `space` names what distances are taken in, `shown` how the cases were chosen, `distances` is (name, images, quartiles [3]),
    `cases` are pairs side by side, `missing` says what is not there and why, `limit` is the grey level of the full colours.
    """

    space: str
    shown: str
    distances: list[tuple[str, int, list[float]]]
    cases: list[list[Pair]]
    missing: str
    limit: int


def nearest(query: np.ndarray, gallery: np.ndarray, block: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row of a gallery [M,D], M >= 1, to each query [N,D]: its position [N] and the Euclidean distance [N] to it.

    `block` bounds the table of distances on the device.
    """
    best = np.full(len(query), np.inf, np.float32)
    index = np.zeros(len(query), np.int64)
    centre = gallery.mean(axis=0)  # float32 keeps more digits of small distances near the origin
    for first in range(0, len(gallery), block):
        part = jax.device_put(gallery[first : first + block] - centre)
        for start in range(0, len(query), block):
            here = slice(start, start + block)
            position, distance = jax.device_get(_closest(jax.device_put(query[here] - centre), part))
            closer = distance < best[here]
            index[here] = np.where(closer, first + position, index[here])
            best[here] = np.where(closer, distance, best[here])
    # The table's own distances cancel where two images are almost one.
    return index, np.linalg.norm(query.astype(np.float64) - gallery[index], axis=1)


@jax.jit
def _closest(query: jax.Array, gallery: jax.Array) -> tuple[jax.Array, jax.Array]:
    dots = jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
    # The squared distance less the query's own norm, which moves no minimum.
    distance = (gallery**2).sum(axis=1)[None, :] - 2 * dots
    return distance.argmin(axis=1), distance.min(axis=1)


def unasked(run: Run, split: str) -> str:
    """Why nothing of a split is shown, as the task asks nothing about its images; empty where it does."""
    if not (run.task.membership or run.task.attribution):
        return f"No pictures: the task {run.task.name} has no synthetic side."
    if split.partition(":")[0] not in ("heldout", "valid", "sequestered", run.target, run.task.test):
        return f"No pictures: {split} of {run.config.task} does not hold the images that the task asks about."
    return ""


def look_alikes(
    run: Run, split: str, rows: Rows, predictions: Predictions, decided: np.ndarray, classes: list[str]
) -> LookAlikes | str:
    """The section of a run with a network, or why there is none.

    Args:
        run: that scored them.
        split: the split that was scored, about which the task asks; its rows, predictions and decided labels [N] follow.
        classes: names of the classes.
    """
    base, encoder = split.partition(":")[0], methods.network(run)
    if encoder is None:
        return "No pictures: this system has no network that compares images."
    # Rows that the network of a fold has trained on would look nearer than they are. Record numbers are those of one data set.
    same = encoder.config.task == run.config.task and encoder.fingerprints == run.fingerprints
    trained = same and methods.reads(encoder.config, run.target)
    shown = np.flatnonzero(np.isin(rows.index, encoder.rows(split).index)) if trained else np.arange(len(rows))
    if not len(shown):
        return f"No pictures: the network of {encoder.workdir} sees no row of {split}."
    rows, scores, decided = rows.take(shown), predictions.scores[shown], decided[shown]
    embed, space = _embedder(encoder, rows, run.source)
    if not same:
        space += (
            f" This network was trained on other data, {encoder.config.data_dir}: whether it has seen these images is not known."
        )
    if len(shown) < len(predictions.ids):
        space += f" The {len(shown)} of {len(predictions.ids)} images here are those that this network did not train on."
    if trained and base == run.target and run.same_target:
        space += " The network has trained on images of this split: their distances are too small."
    compare = _membership if run.task.membership else _attribution
    return compare(run, rows, scores, decided, classes, embed, space)


def _membership(
    run: Run,
    rows: Rows,
    scores: np.ndarray,
    decided: np.ndarray,
    classes: list[str],
    embed: Callable[[Rows], np.ndarray],
    space: str,
) -> LookAlikes:
    """A real image and its nearest synthetic one, beside a reference image that is as near as that among the references."""
    synthetic = Rows.concatenate([run.rows(s) for s in ("train_generated", "test_generated") if s in run.source.splits])
    gallery = embed(synthetic)
    near, distance = nearest(embed(rows), gallery)
    if (rows.labels >= 0).all():
        groups = [(classes[k].replace("_", " "), distance[rows.labels == k]) for k in (1, 0)]
    else:
        groups = [("the images asked about", distance)]
    draw = _Pairs(run.source)
    chosen = extremes(scores[:, 0])
    for i in chosen:
        title = asked(rows, scores[:, 0], decided, classes, i)
        draw.cases.append([draw.pair(title, (rows, i), (synthetic, near[i]), "synthetic image", distance[i])])
    missing = ""
    if "reference" in run.source.splits:
        reference = run.rows("reference")
        reference_near, reference_distance = nearest(embed(reference), gallery)
        groups.append(("reference images, not used", reference_distance))
        ranks, order = distance.argsort(kind="stable").argsort(kind="stable"), reference_distance.argsort(kind="stable")
        for case, rank in zip(draw.cases, ranks[chosen], strict=True):
            # Of other numbers of images the same rank is the same share of nearer ones.
            j = int(order[int((rank + 0.5) / len(rows) * len(reference))])
            title = f"Reference image of the same rank ({rank + 1} of {len(rows)} by distance), not used"
            nearby = synthetic, reference_near[j]
            case.append(draw.pair(title, (reference, j), nearby, "synthetic image", reference_distance[j]))
    else:
        missing = "The data set has no split reference: no pair of an image known not to be used can stand beside these."
    shown = "Shown are the two images with the highest scores and the two with the lowest, whatever their labels."
    return LookAlikes(space, shown, _quartiles(groups), draw.pairs(), missing, draw.limit)


def _attribution(
    run: Run,
    rows: Rows,
    scores: np.ndarray,
    decided: np.ndarray,
    classes: list[str],
    embed: Callable[[Rows], np.ndarray],
    space: str,
) -> LookAlikes:
    """A synthetic image and the nearest real one of the predicted subset, beside the nearest of the second subset."""
    real = run.rows("train_real")
    queries, gallery = embed(rows), embed(real)
    near = np.zeros(scores.shape, np.int64)
    distance = np.zeros(scores.shape)
    for k in range(scores.shape[1]):
        inside = np.flatnonzero(real.labels == k)
        found, distance[:, k] = nearest(queries, gallery[inside])
        near[:, k] = inside[found]
    others = np.where(np.arange(scores.shape[1]) == decided[:, None], -np.inf, scores)
    second = others.argmax(axis=1)
    n = np.arange(len(rows))
    margin = scores[n, decided] - scores[n, second]
    draw = _Pairs(run.source)
    for i in extremes(margin):
        title = asked(rows, scores[n, decided], decided, classes, i)
        case = []
        for name, k in ((title, decided[i]), (f"The same image and {classes[second[i]]}, the second choice", second[i])):
            case.append(draw.pair(name, (rows, i), (real, near[i, k]), f"real image of {classes[k]}", distance[i, k]))
        draw.cases.append(case)
    groups = [("predicted subset", distance[n, decided]), ("second choice", distance[n, second])]
    shown = "Shown are the two images whose scores are the clearest (first less second subset) and the two least clear ones."
    return LookAlikes(space, shown, _quartiles(groups), draw.pairs(), "", draw.limit)


def _embedder(encoder: Run, shown: Rows, source: Source) -> tuple[Callable[[Rows], np.ndarray], str]:
    """Rows of a source -> [N,D], and the words for it."""
    if "embedding" in inference.outputs(encoder, shown, source=source):
        space = f"Distances are those of the embedding of the network in {encoder.workdir}."
        return lambda rows: inference.outputs(encoder, rows, source=source)["embedding"].astype(np.float32), space
    return lambda rows: _pixels(source, rows), f"Distances are those of the pixels, averaged to at most {PIXELS} x {PIXELS}."


def _pixels(source: Source, rows: Rows, block: int = 512) -> np.ndarray:
    height, width, _ = source.image_shape
    size = (min(PIXELS, width), min(PIXELS, height))
    parts = []
    for first in range(0, len(rows), block):
        images = source.images(rows.index[first : first + block])[..., 0]
        parts += [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX), np.float32).ravel() / 255 for x in images]
    return np.stack(parts)


class _Pairs:
    """Collects the pairs of a page, so that all difference maps share one scale."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.cases: list = []
        self.limit = 1

    def pair(self, title: str, left: tuple[Rows, int], right: tuple[Rows, int], kind: str, distance: float) -> tuple:
        (rows, i), (gallery, j) = left, right
        a, b = (_shrink(x[..., 0]) for x in self.source.images(np.array([rows.index[i], gallery.index[j]])))
        difference = a.astype(np.int16) - b
        self.limit = max(self.limit, int(np.abs(difference).max()))
        return title, rows.ids[i], gallery.ids[j], kind, float(distance), a, b, difference

    def pairs(self) -> list[list[Pair]]:
        return [[self._draw(*pair) for pair in case] for case in self.cases]

    def _draw(
        self, title: str, left: str, right: str, kind: str, distance: float, a: np.ndarray, b: np.ndarray, difference: np.ndarray
    ) -> Pair:
        mean = np.abs(difference).mean()
        coloured = Image.fromarray(shades(difference, self.limit))
        coloured.putpalette(PALETTE.round().astype(np.uint8).tobytes())
        return Pair(
            title,
            [
                Picture(png(Image.fromarray(a)), f"Image {left}.", left),
                Picture(
                    png(Image.fromarray(b)), f"Nearest {kind}: {right}, at distance {distance:.3g}.", f"{right}, at {distance:.3g}"
                ),
                Picture(
                    png(coloured),
                    f"First less second image: {mean:.0f} of 255 grey levels on average, {np.abs(difference).max()} at most.",
                    f"difference, {mean:.0f} levels on average",
                ),
            ],
        )


def shades(values: np.ndarray, limit: float) -> np.ndarray:
    """Positions in `PALETTE`, uint8, of values whose full colours are those of -limit and limit."""
    return np.clip(127.5 + values * (127.5 / limit), 0, 255).astype(np.uint8)


def uri(image: np.ndarray) -> str:
    """The PNG of an image uint8 [H,W] as a data URI, at most `SIDE` large."""
    return png(Image.fromarray(_shrink(image)))


def asked(rows: Rows, scores: np.ndarray, decided: np.ndarray, classes: list[str], i: int) -> str:
    """What was said of row `i`, and what is true."""
    truth = "truth unknown" if rows.labels[i] < 0 else f"truth: {classes[rows.labels[i]]}"
    return f"Decided: {classes[decided[i]]}; {truth}; score {scores[i]:.3g}".replace("_", " ").replace("-", "\N{MINUS SIGN}")


def extremes(values: np.ndarray) -> list[int]:
    """Positions of the two highest and the two lowest, each once."""
    order = np.argsort(-values, kind="stable")
    return list(dict.fromkeys([*order[:2].tolist(), *order[-2:].tolist()]))


def _quartiles(groups: list[tuple[str, np.ndarray]]) -> list[tuple[str, int, list[float]]]:
    return [(name, len(d), np.percentile(d, [25, 50, 75]).tolist()) for name, d in groups if len(d)]


def _shrink(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def png(picture: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
