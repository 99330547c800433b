"""Which images look alike: exact and near duplicates, between the splits and classes of a data set and within them."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

NEAR = 0.98  # correlation of thumbnails above which two images count as near duplicates
ENOUGH = 1000  # near duplicates in a cell after which no closer one is looked for
MOST = 16  # cells, beside its own, in which a twin of an image is named
_FEW = 4096  # thumbnails, which are compared before their principal components are known
_SMALL = 64  # images of a cell: the images of all cells that have no more are searched together
_BOX = 16  # components that boxes are made of
_ROUNDING = 1e-4  # of a sum of 1,024 products in float32, at the worst


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Centred 32x32 box averages of norm 1: uint8 [H,W] -> float32 [1024]; the product of two is their correlation."""
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def twins(
    thumbnails: np.ndarray, digests: Sequence[str], cells: np.ndarray, groups: np.ndarray
) -> Iterator[tuple[int, int, float]]:
    """Exact and near duplicates between cells (a split and class each), and within them.

    For every image the closest one in its own cell and in up to MOST other cells, where it is equal or correlates above NEAR: first
    the cells that have an equal one. Of an image with more than ENOUGH near duplicates in a cell (in small cells together) the
    closest of those that were met first. Within a cell images of one group are no near duplicates: they are alike, and stay
    together.

    Args:
        thumbnails: [N,1024] of `thumbnail`.
        digests: [N] of the pixels.
        cells: [N] int.
        groups: [N] int.

    Yields:
        (image, its twin, correlation); 1 for equal pixels.
    """
    short, sizes = _shorten(thumbnails), np.bincount(cells)
    equal: dict[str, dict[int, list[int]]] = {}  # {digest: {cell: the first two: one of them is another than the one asked about}}
    for j in range(len(digests)):
        if len(known := equal.setdefault(digests[j], {}).setdefault(int(cells[j]), [])) < 2:
            known.append(j)
    beyond = np.zeros(len(digests), int)  # cells, but for its own, in which an image has a twin
    done: list[set[int]] = []  # and all in which it has an equal one that is named
    for i, digest in enumerate(digests):
        own = [j for j in equal[digest][int(cells[i])] if j != i][:1]
        others = itertools.islice((known[0] for cell, known in equal[digest].items() if cell != cells[i]), MOST)
        copies = own + list(others)
        beyond[i] = len(copies) - len(own)
        done.append({int(cells[j]) for j in copies})
        yield from ((i, j, 1.0) for j in copies)
    small = np.flatnonzero((sizes > 0) & (sizes <= _SMALL))
    for looked in [*np.flatnonzero(sizes > _SMALL)[:, None], *([small] if len(small) else [])]:
        others = np.isin(cells, looked)
        open_ = others | (beyond < MOST)
        if len(looked) == 1:
            open_ &= [int(looked[0]) not in cells_done for cells_done in done]
        for i, j, correlation in zip(*_closest(thumbnails, short, np.flatnonzero(open_), others, cells, groups), strict=True):
            b, first = int(cells[j]), equal[digests[j]][int(cells[j])][0]  # its copies are as close as it is
            if b in done[i] or (b != cells[i] and beyond[i] == MOST):
                continue
            beyond[i] += b != cells[i]
            usable = cells[i] != b or groups[i] != groups[first]
            yield i, (first if usable else j), correlation


def _shorten(thumbnails: np.ndarray) -> np.ndarray:
    """[N,1024] -> [N,65], whose products are bounds of the correlations from above; few thumbnails stay as they are.

    64 principal components and the norm of what they leave: of two rests no more is known than that their product is at most
    that of their norms (Cauchy and Schwarz).
    """
    if len(thumbnails) <= _FEW:
        return thumbnails
    sample = thumbnails[:: len(thumbnails) // 2048 or 1]
    components = np.linalg.eigh(sample.T @ sample)[1][:, :-65:-1]
    short = thumbnails @ components
    squares = (np.einsum("ij,ij->i", x, x) for x in (thumbnails, short))
    rest = np.sqrt(np.maximum(np.subtract(*squares), 0))
    return np.column_stack([short, rest])


def _parts(short: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    """Images by hundreds that lie together: halves of halves along the component that differs most."""
    if len(members) <= 512:
        yield members
        return
    along = short[members, short[members, :_BOX].var(axis=0).argmax()]
    order = members[np.argsort(along, kind="stable")]
    for half in np.split(order, [len(order) // 2]):
        yield from _parts(short, half)


def _closest(
    thumbnails: np.ndarray, short: np.ndarray, asked: np.ndarray, others: np.ndarray, cells: np.ndarray, groups: np.ndarray
) -> tuple[list[int], list[int], list[float]]:
    """The closest image above NEAR of those `others`, a mask, in each of their cells to each that is `asked`, and the correlations.

    A correlation above NEAR is a distance of at most sqrt(2 - 2 NEAR), also between the components of two thumbnails and between
    one and a box around others. Beyond these boxes nothing is compared; within them the bounds are, and only where one of them
    exceeds what is known the thumbnails. Blocks are of 1,024 by 512, whatever the number of images; in the worst case, where the
    bounds tell nothing, all thumbnails are compared.
    """
    members = np.flatnonzero(others)
    one = len(np.unique(cells[members])) == 1
    best, met, found = np.full(len(short), NEAR, np.float32), np.zeros(len(short), int), []
    for part in _parts(short, members):
        low, high = short[part, :_BOX].min(axis=0), short[part, :_BOX].max(axis=0)
        asked = asked[met[asked] < ENOUGH]
        outside = short[asked, :_BOX]
        outside = outside - np.clip(outside, low, high)
        near = asked[np.einsum("ij,ij->i", outside, outside) <= 2 - 2 * NEAR + _ROUNDING]
        for rows in np.split(near, range(1024, len(near), 1024)):
            open_ = short[rows] @ short[part].T > best[rows, None] - _ROUNDING
            own = others[rows]  # the only ones that a cell of the part, or a group in it, can be that of
            open_[own] &= (cells[rows[own], None] != cells[part]) | (groups[rows[own], None] != groups[part])
            kept = open_.any(axis=1)
            rows, open_ = rows[kept], open_[kept]
            if 16 * np.count_nonzero(open_) > open_.size:  # the one product of all is faster than those of many pairs
                similarity = np.where(open_, thumbnails[rows] @ thumbnails[part].T, -1)
            else:
                similarity = np.full(open_.shape, -1, np.float32)
                for row, columns in enumerate(open_):
                    similarity[row, columns] = thumbnails[part[columns]] @ thumbnails[rows[row]]
            met[rows] += np.count_nonzero(similarity > NEAR, axis=1)
            row, column = np.nonzero(similarity > best[rows, None])
            found.append(_best(rows[row], part[column], similarity[row, column], cells))
            if one:  # what is not closer than the closest so far is not looked at
                best[rows] = np.maximum(best[rows], similarity.max(axis=1, initial=-1))
    if not found:
        return [], [], []
    rows, twins, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    rows, twins, similarity = _best(rows, twins, similarity, cells)
    return rows.tolist(), twins.tolist(), similarity.tolist()


def _best(rows: np.ndarray, twins: np.ndarray, similarity: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of pairs the most similar, the first of equal ones, for each row in its own cell and in MOST cells of a twin."""
    of = cells[twins]
    order = np.lexsort((-similarity, of, of != cells[rows], rows))
    rows, twins, similarity, of = rows[order], twins[order], similarity[order], of[order]
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]) | (of[1:] != of[:-1])
    rows, twins, similarity = rows[new], twins[new], similarity[new]
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    few = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows))) <= MOST
    return rows[few], twins[few], similarity[few]
