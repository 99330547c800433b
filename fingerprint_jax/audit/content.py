"""Do the used real images differ from the others by themselves? Files, simple measures and the pictures, without a synthetic image.

An attack that does no better than these may have found a difference of content, not a trace of training.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.fft import dctn
from scipy.stats import binomtest
from skimage.filters import threshold_otsu
from skimage.measure import shannon_entropy
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.extmath import randomized_svd

from fingerprint_jax.audit import panel
from fingerprint_jax.estimators import search
from fingerprint_jax.features import register, residual, texture
from fingerprint_jax.runtime.progress import progress

KINDS = ("files", "order", "intensity", "texture", "layout")
FOLDS = 5
COMPONENTS = 16  # of each view of the pictures
QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
BLOCK = 64  # images measured at once
LEVELS, SHOWN = 2, 0.01  # grey levels off the median, and the share of the pixels that has to be
ASKED, KNOWN = 200, 2000  # synthetic and real images by which it is seen how the former lie
NEARER = 0.6  # of the synthetic images; where half of them are mirrored, as by augmentation, about half are nearer
_TURNS = {
    "": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "turned upside down": lambda x: x[:, ::-1],
    "turned by 90 degrees": lambda x: np.rot90(x, 1, (1, 2)),
    "turned by 180 degrees": lambda x: x[:, ::-1, ::-1],
    "turned by 270 degrees": lambda x: np.rot90(x, 3, (1, 2)),
    "mirrored along one diagonal": lambda x: np.swapaxes(x, 1, 2),
    "mirrored along the other diagonal": lambda x: np.swapaxes(x[:, ::-1, ::-1], 1, 2),
}
CHANGES = {name: turn for name, turn in _TURNS.items() if name}  # of images in 0..1
CHANGES |= {f"{name} and inverted" if name else "inverted": lambda x, turn=turn: 1 - turn(x) for name, turn in _TURNS.items()}


def facts(images: np.ndarray, views: panel.Views, files: Mapping[str, Sequence | np.ndarray]) -> dict[str, np.ndarray]:
    """What the images [N,H,W] uint8 and their files say, by kind: {name: float64 [N,D]}.

    files: logarithm of the bytes, the mode (one column each), logarithm of 1 + the bytes of metadata.
    order: rank by the numbers in the id among all N, as a share; constant where two images have the same ones, since then each
        class was numbered by itself. Words are left out: they may be the name of the class, as in the official layout.
    intensity: `intensity`.
    texture: local binary patterns, co-occurrences and Otsu's components of features/texture.py, logarithms of the mean squares of
        the high-pass residuals of features/residual.py, and `blockiness`.

    Args:
        images: the real images that are labelled.
        views: of them, by `panel.views`.
        files: the columns `id`, `bytes`, `mode` and `metadata_bytes` of files.csv for these images.
    """
    modes = np.asarray(files["mode"])
    sizes = np.log(np.asarray(files["bytes"], np.float64)), np.log1p(np.asarray(files["metadata_bytes"], np.float64))
    numbers = [tuple(map(int, re.findall(r"\d+", name))) for name in files["id"]]
    place = {found: i for i, found in enumerate(sorted(set(numbers)))}
    if len(place) < len(numbers):
        place = dict.fromkeys(numbers, 0)
    out = {
        "files": np.stack([*sizes, *(modes == mode for mode in np.unique(modes))], axis=1).astype(np.float64),
        "order": (np.array([place[found] for found in numbers]) + 0.5)[:, None] / len(numbers),
    }
    parts = []
    with progress("measuring", len(images)) as advance:
        for first in range(0, len(images), BLOCK):
            block = images[first : first + BLOCK]
            parts.append((intensity(block), _texture(block)))
            for _ in block:
                advance()
    intensities, textures = zip(*parts, strict=True)
    measured = {"intensity": np.concatenate(intensities), "texture": np.concatenate(textures)}
    return out | measured | {"layout": layout(images, views)}


def intensity(images: np.ndarray) -> np.ndarray:
    """Grey levels and the body in them: uint8 [N,H,W] -> float64 [N,18].

    Mean, variance, skewness and excess kurtosis of features/texture.py, the quantiles 0, 1, 5, 25, 50, 75, 95, 99 and 100% in grey
    levels, entropy in bits, share of the 256 levels that occur, share of the pixels above Otsu's threshold, and height and width
    of the body's box of features/register.py as shares of the frame.
    """
    quantiles = np.quantile(images.reshape(len(images), -1), QUANTILES, axis=1).T
    rest = []
    for image in images:
        top, bottom, left, right = register.body_box(image)
        body = (image > threshold_otsu(image)).mean(), (bottom - top) / image.shape[0], (right - left) / image.shape[1]
        rest.append([shannon_entropy(image), len(np.unique(image)) / 256, *body])
    return np.concatenate([texture.moments(images[..., None]), quantiles, rest], axis=1).astype(np.float64)


def shown(images: np.ndarray) -> np.ndarray:
    """Which images show anything: uint8 [N,H,W] -> bool [N]. Of the others 99% of the pixels are within two levels of the median.

    The ends of a volume are such images: a copy of one of them is no copy of a patient.
    """
    flat = images.reshape(len(images), -1).astype(np.int16)
    return (np.abs(flat - np.median(flat, axis=1, keepdims=True)) > LEVELS).mean(axis=1) >= SHOWN


def turned(generated: np.ndarray, known: np.ndarray) -> dict | None:
    """How synthetic images have to be mirrored, turned or inverted to lie nearer to real ones; None where they lie as those do.

    Of `ASKED` synthetic images the distance to the nearest of `KNOWN` real ones is compared, grey levels of at most 64 px a side.
    The change with the smallest mean makes it smaller for more than `NEARER` of them, and for more than chance gives with so many
    changes.

    Args:
        generated: uint8 [G,H,W].
        known: uint8 [N,H,W] real images.

    Returns:
        {change: its name, share: of the synthetic images that it brings nearer, images: how many were asked}.
    """
    frame = panel.frame(*generated.shape[1:])
    asked, known = (panel.views(x[panel.canonical(x)][:most]).pixels for x, most in ((generated, ASKED), (known, KNOWN)))
    pictures = asked.reshape(-1, *frame)
    changed = {name: change(pictures) for name, change in CHANGES.items()}
    changed = {name: x.reshape(asked.shape) for name, x in changed.items() if x.shape == pictures.shape}  # not turned if not square
    found = search.nearest(np.concatenate([asked, *changed.values()]), known, 1)[0].reshape(-1, len(asked))
    best = int(found[1:].mean(axis=1).argmin())
    nearer = found[1 + best] < found[0]
    p = binomtest(int(nearer.sum()), len(nearer), alternative="greater").pvalue
    if nearer.mean() <= NEARER or p * len(changed) > 0.001:
        return None
    return {"change": list(changed)[best], "share": float(nearer.mean()), "images": len(nearer)}


def look(images: np.ndarray, views: panel.Views) -> np.ndarray:
    """What brings images nearer to others or further from them: uint8 [N,H,W], and their views -> float64 [N,40].

    `layout`, and the `grain` of the texture. Intensity has no part: the distance of copies takes brightness and contrast out.
    """
    parts = [grain(images[first : first + BLOCK]) for first in range(0, len(images), BLOCK)]
    return np.concatenate([layout(images, views), np.concatenate(parts)], axis=1)


def _texture(images: np.ndarray) -> np.ndarray:
    described = [feature(images[..., None]) for feature in (texture.lbp, texture.glcm, texture.otsu)]
    return np.concatenate([*described, grain(images)], axis=1).astype(np.float64)


def grain(images: np.ndarray) -> np.ndarray:
    """Noise, blur and compression: energies of the high-pass residuals, and `blockiness`."""
    energies = [np.square(residual.residual(images, weights)).mean(axis=(1, 2)) for weights in residual.FILTERS]
    return np.concatenate([np.log1p(np.stack(energies, axis=1)), blockiness(images)], axis=1)


def layout(images: np.ndarray, views: panel.Views) -> np.ndarray:
    """Where in the frame is what: uint8 [N,H,W], and their views -> float64 [N,32], fewer columns of fewer than 16 images.

    The first 16 principal components of the images as they lie, and registered by the body's box (panel.views). All images have a
    part in them and no label has, so that labels can be exchanged.
    """
    rows = panel.canonical(images)  # the decomposition is randomised
    out = []
    for view in (views.pixels, views.registered):
        centred = view[rows].reshape(len(images), -1).astype(np.float64)
        centred -= centred.mean(axis=0)
        left, deviations, _ = randomized_svd(centred, min(COMPONENTS, *centred.shape), random_state=0)
        out.append(left * deviations)
    return np.concatenate(out, axis=1)[np.argsort(rows)]


def blockiness(images: np.ndarray) -> np.ndarray:
    """Traces of JPEG's grid of 8x8 pixels: uint8 [N,H,W] -> float64 [N,2], 0 where there are none, and of constant images.

    First the logarithm of the mean absolute difference of neighbours across the borders of blocks over that of all others. Then
    what compression sets to zero: how much more often a coefficient of the cosine transform of a block lies within half a grey
    level of 0 than one of the blocks of a grid four pixels further. Images of less than 12 pixels a side have both 0.
    """
    pixels = images.astype(np.float64)
    if min(images.shape[1:]) < 12:
        return np.zeros((len(images), 2))
    across = [(np.abs(np.diff(pixels, axis=axis)).mean(axis=3 - axis)) for axis in (1, 2)]
    border = [np.arange(d.shape[1]) % 8 == 7 for d in across]
    edge = sum(d[:, b].mean(axis=1) for d, b in zip(across, border, strict=True))
    inside = sum(d[:, ~b].mean(axis=1) for d, b in zip(across, border, strict=True))
    ratio = np.log((edge + 0.1) / (inside + 0.1))
    return np.stack([ratio, _zeros(pixels) - _zeros(pixels[:, 4:, 4:])], axis=1)


def _zeros(pixels: np.ndarray) -> np.ndarray:
    """Share of the coefficients of 8x8 blocks that are 0 but for rounding: [N,H,W] -> [N]."""
    count, height, width = len(pixels), pixels.shape[1] // 8, pixels.shape[2] // 8
    blocks = pixels[:, : 8 * height, : 8 * width].reshape(count, height, 8, width, 8)
    return (np.abs(np.asarray(dctn(blocks, axes=(2, 4), norm="ortho"))) < 0.5).mean(axis=(1, 2, 3, 4))


def scores(facts: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """How much each image looks like a used one, by each kind of facts alone: {name: float64 [N]}.

    Logits of a logistic regression on standardised facts (L2, C = 1) that saw neither the image nor another of its group: five
    folds of whole groups, stratified. Both classes weigh the same, else the intercept of a fold would give its labels away. The
    folds depend on the images, not on names or order of the files. A kind of facts that are all constant has zeros.

    Args:
        facts: as `facts` gives them, with `intensity`, or one kind alone.
        labels: int [N] in {0, 1}.
        groups: [N] patients; the id where unknown.
        seed: of the folds.

    Raises ValueError where a class has fewer than five groups.
    """
    found = folds(facts["intensity"] if "intensity" in facts else next(iter(facts.values())), labels, groups, seed)
    out = {}
    for name, values in facts.items():
        x = values[:, np.ptp(values, axis=0) > 0]
        out[name] = np.zeros(len(labels))
        for train, held in found if x.shape[1] else ():
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000))
            out[name][held] = model.fit(x[train], labels[train]).decision_function(x[held])
    return out


def folds(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Five stratified folds of whole groups, (train, held) positions each, which depend on the rows' values [N,D] and on no order.

    Raises ValueError where a class has fewer than five groups.
    """
    for label in (0, 1):
        found = len(np.unique(groups[labels == label]))
        if found < FOLDS:
            raise ValueError(f"labels: class {label} has {found} groups, the content-only panel needs {FOLDS} of each class")
    rows = np.lexsort(values.T)
    _, first, group = np.unique(groups[rows], return_index=True, return_inverse=True)
    split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)  # a group goes by its first row
    return [(rows[train], rows[held]) for train, held in split.split(rows, labels[rows], first[group])]
