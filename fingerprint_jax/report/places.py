"""Where an image is found in others: a map over it, and its patches beside those that they come back in.

Every picture shows what the attack compares: images at its size, and registered where it registers them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from fingerprint_jax import methods
from fingerprint_jax.data.source import Rows
from fingerprint_jax.estimators import Features, Gallery, local_match
from fingerprint_jax.methods import classical, ensemble
from fingerprint_jax.report.neighbours import PALETTE, SIDE, Pair, Picture, asked, extremes, png, shades
from fingerprint_jax.runs.run import Predictions, Run

SHOWN = 3  # images that an image's patches are found in
GAP, FRAME, MINUS = 8, (255, 196, 0), "\N{MINUS SIGN}"
OF_MEMBERSHIP = (
    "Red: nearer to a synthetic image. Blue: nearer to an image of the reference. Beside it stand the synthetic images that its"
    " reddest patches come back in. Shown are the two images with the highest scores and the two with the lowest, whatever their"
    " labels."
)
BY_PATCHES = ("local_match", "mosaic", "mosaic_sets")  # estimators that compare patches

# Of scores [N,K]: those shown, how clear they are, what splits the gallery for an image into a near and a far side, and the words.
Sides = tuple[np.ndarray, np.ndarray, Callable[[int], tuple[Features, Features]], str]


@dataclasses.dataclass(frozen=True)
class Found:
    """The section of a page: what the colours say, `limit`, the log ratio of the full ones, and the images that are shown."""

    words: str
    limit: float
    cases: list[Pair]


@dataclasses.dataclass(frozen=True)
class Case:
    """An image [S,S] in 0..1 that is shown, the two sides that it is looked for in, and the names of the images of the near one."""

    title: str
    name: str
    image: np.ndarray
    near: Features
    far: Features
    names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Places:
    """Of an image, at K places: how much nearer a patch is to one side than to the other, and to which image of it."""

    ratio: np.ndarray  # [K] log of the ratio of distances, above 0 where the near side is nearer
    position: np.ndarray  # [K] int, of the image with the nearest patch on the near side
    patch: int
    stride: int

    def corner(self, k: int, side: int) -> tuple[int, int]:
        """Row and column of the first pixel of a patch of images of a side."""
        columns = (side - self.patch) // self.stride + 1
        return k // columns * self.stride, k % columns * self.stride


def look(
    image: np.ndarray, near: Features, far: Features, *, seed: int, patch: int = 16, stride: int = 8, radius: int = 1
) -> Places:
    """Looks for every patch of an image [S,S] on two sides, as `local_match` does.

    Args:
        image: in 0..1; it is on neither side.
        near, far: values [N,S,S] of both sides.
        seed: draws the parts that the larger side is cut into.
        patch, stride, radius: as in `local_match`.
    """
    size, rng = min(len(near.index), len(far.index)), np.random.default_rng(seed)
    squared = [local_match.pair_distances(image[None], side.values, patch, stride, radius, few=1) for side in (far, near)]
    of_parts = [np.stack([x[part].min(axis=0) for part in local_match.parts(rng, len(x), size)]) for x in squared]
    (ratio,) = local_match.ratios(local_match.weights(image[None], patch, stride), *of_parts)
    return Places(ratio, squared[1][:, 0].argmin(axis=0), patch, stride)


def best(found: Places, side: int, count: int = SHOWN) -> list[int]:
    """The places with the highest ratios, at most one an image of the near side and none that overlaps another."""
    chosen: list[int] = []
    for k in np.argsort(-found.ratio, kind="stable").tolist():
        apart = [np.abs(np.subtract(found.corner(k, side), found.corner(j, side))).max() >= found.patch for j in chosen]
        if all(apart) and found.position[k] not in found.position[chosen]:
            chosen.append(k)
        if len(chosen) == count:
            break
    return chosen


def pair(case: Case, found: Places, limit: float) -> Pair:
    """An image with its map, and the images of the near side that its best patches come back in.

    Args:
        case: the image.
        found: its places.
        limit: the log ratio of the full colours.
    """
    image, name = case.image, case.name
    of_image = f"log ratio {found.ratio.mean():.2f} on average, {found.ratio.max():.2f} at most".replace("-", MINUS)
    pictures = [Picture(png(_mapped(image, found, limit)), f"Image {name} with its map: {of_image}.", f"{name}: {of_image}")]
    for k in best(found, len(image)):
        position, (top, left) = found.position[k], found.corner(k, len(image))
        other, ratio = case.names[position], f"{found.ratio[k]:.2f}".replace("-", MINUS)
        drawn = _beside(image, case.near.values[position], top, left, found.patch)
        what = f"{other}, framed at row {top}, column {left}, log ratio {ratio}. Below it the patch of {name} there, and its own."
        pictures.append(Picture(png(drawn), what, f"{other}, log ratio {ratio}; below: the patch of the image, and its own"))
    return Pair(case.title, pictures)


def section(cases: Sequence[Case], words: str, seed: int, **options: int) -> Found:
    """The section of some images, with what is special to it in words; seed and options as of `look`."""
    looked = [look(case.image, case.near, case.far, seed=seed, **options) for case in cases]
    limit = max(1e-3, *(float(np.abs(found.ratio).max()) for found in looked))
    pairs = [pair(case, found, limit) for case, found in zip(cases, looked, strict=True)]
    side, patch = len(cases[0].image), looked[0].patch
    told = (
        f"The attack sees images at {side} x {side} pixels. Each patch of {patch} x {patch} is looked for near the same place in"
        " two sets of images. The colour is the log of the ratio of the two distances."
    )
    return Found(f"{told} {words}", limit, pairs)


def member(run: Run) -> Run | None:
    """The run that compares patches with images none of which is asked about: itself, or its first member that does."""
    if run.config.method == "ensemble":
        return next((found for _, each in ensemble.members(run) if (found := member(each))), None)
    if run.config.method != "classical" or run.config.estimator.name not in BY_PATCHES or run.config.pca:
        return None
    return None if methods.reads(run.config, run.target) else run


def of_run(run: Run, member: Run, rows: Rows, predictions: Predictions, decided: np.ndarray) -> Found:
    """The section of a run that compares patches.

    Of membership, real images are looked for among synthetic ones and the reference; of attribution, synthetic images among the
    real ones of the class that was decided, and those of the other classes.

    Args:
        run: that scored the rows.
        member: that compares patches.
        rows: those asked about; predictions and decided labels [N] follow.
    """
    chosen = member.config.estimator
    options = {name: chosen[name] for name in ("patch", "stride", "radius") if chosen.get(name) is not None}
    query, gallery = classical.compared(member, rows)
    sides = _of_membership if run.task.membership else _of_classes
    scores, clear, split, words = sides(predictions.scores, decided, gallery)
    names = {index: name for part in member.own.gallery.values() for index, name in zip(part.index, part.ids, strict=True)}
    cases = []
    for i in extremes(clear):
        near, far = (side.take(side.index != query.index[i]) for side in split(i))
        title = asked(rows, scores, decided, run.source.summary["classes"], i)
        cases.append(Case(title, str(rows.ids[i]), query.values[i], near, far, [str(names[index]) for index in near.index]))
    return section(cases, words, run.config.seed, **options)


def _of_membership(scores: np.ndarray, decided: np.ndarray, gallery: Gallery) -> Sides:
    return scores[:, 0], scores[:, 0], lambda i: (gallery["generated"], gallery["reference"]), OF_MEMBERSHIP


def _of_classes(scores: np.ndarray, decided: np.ndarray, gallery: Gallery) -> Sides:
    labelled = gallery["labelled"]

    def split(i: int) -> tuple[Features, Features]:
        inside = labelled.labels == decided[i]
        return labelled.take(inside), labelled.take(~inside)

    words = (
        "Red: nearer to a real image of the class that was decided. Blue: nearer to one of another class. Beside it stand the"
        " real images that its reddest patches come back in. Shown are the two images whose scores are the clearest (first less"
        " second class) and the two least clear ones."
    )
    ordered = np.sort(scores, axis=1)
    return scores[np.arange(len(scores)), decided], ordered[:, -1] - ordered[:, -2], split, words


def _mapped(image: np.ndarray, found: Places, limit: float) -> Image.Image:
    """The image [S,S] in grey, tinted by the mean log ratio of the patches that a pixel is in."""
    total, count = np.zeros_like(image), np.zeros_like(image)
    for k, ratio in enumerate(found.ratio):
        top, left = found.corner(k, len(image))
        here = np.s_[top : top + found.patch, left : left + found.patch]
        total[here] += ratio
        count[here] += 1
    colours = PALETTE[shades(total / np.maximum(count, 1), limit)]
    grey = np.clip(image, 0, 1)[..., None]
    tinted = (0.35 + 0.65 * grey) * colours * np.where(count[..., None], 1, grey)
    return _large(tinted.round().astype(np.uint8))


def _beside(image: np.ndarray, other: np.ndarray, top: int, left: int, patch: int) -> Image.Image:
    """The other image with a frame around a place, above what both images [S,S] have there."""
    whole = _large(_grey(other)).convert("RGB")
    scale = whole.width / len(image)
    corners = [left * scale, top * scale, (left + patch) * scale - 1, (top + patch) * scale - 1]
    ImageDraw.Draw(whole).rectangle(corners, outline=FRAME, width=2)
    half = whole.width // 2
    out = Image.new("RGB", (whole.width, whole.height + GAP + half - GAP // 2), "white")
    out.paste(whole)
    for place, source in ((0, image), (half + GAP // 2, other)):
        part = Image.fromarray(_grey(source[top : top + patch, left : left + patch]))
        out.paste(part.resize((half - GAP // 2, half - GAP // 2), Image.Resampling.NEAREST), (place, whole.height + GAP))
    return out


def _grey(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _large(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
