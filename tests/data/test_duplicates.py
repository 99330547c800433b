import numpy as np
import pytest

from fingerprint_jax.data import duplicates


def test_thumbnails_multiply_to_the_correlation():
    a, b = np.random.default_rng(2).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert duplicates.thumbnail(a) @ duplicates.thumbnail(b) == pytest.approx(expected, abs=1e-6)
    assert duplicates.thumbnail(a) @ duplicates.thumbnail(255 - a) == pytest.approx(-1, abs=1e-5)
    assert not duplicates.thumbnail(np.full((4, 4), 7, np.uint8)).any()


def test_twins_agree_with_all_pairs():
    """Between two cells and within them, where images of one group are left out."""
    rng = np.random.default_rng(3)
    n = 2200  # cells larger than a block
    pixels = rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
    cells = rng.integers(0, 2, n)
    cells[:10] = [0, 1, 0, 1, 0, 0, 1, 1, 0, 0]
    pixels[1] = pixels[0]  # exact, other cell
    pixels[3] = np.clip(pixels[2].astype(int) + rng.integers(-2, 3, (4, 4)), 0, 255)  # near, other cell
    pixels[5] = pixels[4]  # exact, same cell
    for i in (6, 8):  # near, same cell, and the second pair is one group
        pixels[i + 1] = np.clip(pixels[i].astype(int) + rng.integers(-2, 3, (4, 4)), 0, 255)
    groups = np.arange(n)
    groups[[5, 9]] = groups[[4, 8]]
    found = list(
        duplicates.twins(np.stack([duplicates.thumbnail(p) for p in pixels]), [p.tobytes() for p in pixels], cells, groups)
    )

    correlation = np.corrcoef(pixels.reshape(n, -1).astype(float))
    expected = {(4, 5), (5, 4)}
    same = cells[:, None] == cells
    for left_out in (same, ~same | (groups[:, None] == groups)):
        left = np.where(left_out, -1, correlation)
        near = np.flatnonzero(left.max(axis=1) > duplicates.NEAR)
        expected |= set(zip(near.tolist(), left.argmax(axis=1)[near].tolist(), strict=True))
    assert {(i, j) for i, j, _ in found} == expected >= {(0, 1), (1, 0), (2, 3), (3, 2), (6, 7), (7, 6)}
    assert not {(8, 9), (9, 8)} & expected and len(found) == len(expected)
    assert dict(((i, j), c) for i, j, c in found)[0, 1] == 1


def test_of_three_copies_each_has_another_as_its_twin():
    thumbnails = np.zeros((4, 1024), np.float32)
    found = duplicates.twins(thumbnails, ["x", "x", "y", "x"], np.zeros(4, int), np.array([0, 0, 1, 0]))
    assert list(found) == [(0, 1, 1.0), (1, 0, 1.0), (3, 0, 1.0)]


def _lookalikes(rng, count: int, spread: float, patterns: int) -> np.ndarray:
    """Thumbnails around few patterns, each with as much noise: `spread` 0.1 puts two of a pattern at a correlation of 0.99."""
    thumbnails = rng.standard_normal((patterns, 1024))[rng.integers(0, patterns, count)]
    thumbnails += spread * rng.standard_normal((count, 1024)) * rng.uniform(0.5, 2, (count, 1))
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    return (thumbnails / np.linalg.norm(thumbnails, axis=1, keepdims=True)).astype(np.float32)


def _check_against_all_pairs(thumbnails, digests, cells, groups):
    """As many and the same images as a search through all pairs finds; where several are as close, any of them."""
    found = {(i, cells[j]): (j, correlation) for i, j, correlation in duplicates.twins(thumbnails, digests, cells, groups)}
    all_pairs = thumbnails.astype(float) @ thumbnails.T.astype(float)
    expected = {}
    for cell in np.unique(cells):
        others = np.flatnonzero(cells == cell)
        same = np.array(digests)[:, None] == np.array(digests)[others]
        same &= np.arange(len(cells))[:, None] != others
        left_out = (cells == cell)[:, None] & (groups[:, None] == groups[others])
        value = np.where(same, 1, np.where(left_out, -1, all_pairs[:, others]))
        expected |= {(i, cell): value[i].max() for i in np.flatnonzero(value.max(axis=1) > duplicates.NEAR)}
    assert found.keys() == expected.keys()
    for (i, cell), (j, correlation) in found.items():
        assert cells[j] == cell and i != j and correlation == pytest.approx(expected[i, cell], abs=1e-5)
        if digests[i] != digests[j]:
            assert all_pairs[i, j] == pytest.approx(expected[i, cell], abs=1e-5)
            first = next(k for k in np.flatnonzero(cells == cell) if digests[k] == digests[j])
            assert j == first or (cells[i] == cell and groups[i] == groups[first])  # of copies the first
    return len(found)


@pytest.mark.parametrize("few", [4096, 200])  # of more than so many the principal components are compared first
@pytest.mark.parametrize(
    ("spread", "patterns"),
    [(0.1, 20), (0.1, 1800), (0.15, 3), (1e-4, 40), (0.3, 40)],
    ids=["clusters", "pairs", "at the limit", "all but equal", "none"],
)
def test_twins_are_those_of_all_pairs_whatever_the_images(few, spread, patterns, monkeypatch):
    monkeypatch.setattr(duplicates, "_FEW", few)
    rng, count = np.random.default_rng(4), 1800
    thumbnails = _lookalikes(rng, count, spread, patterns)
    thumbnails[::50] = 0  # of images that are constant but for a pixel or two
    digests = [f"copy {i // 20}" if i % 20 < 2 else str(i) for i in range(count)]
    for i in range(0, count, 20):
        thumbnails[i + 1] = thumbnails[i]
    found = _check_against_all_pairs(thumbnails, digests, rng.integers(0, 3, count), rng.integers(0, count // 2, count))
    assert found > count / 20 or spread == 0.3


@pytest.mark.parametrize("few", [4096, 200])
def test_twins_of_many_small_cells_are_those_of_all_pairs(few, monkeypatch):
    """A folder a patient: some cells of one image, some of more, two that are large."""
    monkeypatch.setattr(duplicates, "_FEW", few)
    monkeypatch.setattr(duplicates, "_SMALL", 8)
    rng, count = np.random.default_rng(8), 900
    thumbnails = _lookalikes(rng, count, 0.1, 150)
    digests = [f"copy {i // 20}" if i % 20 < 3 else str(i) for i in range(count)]
    for i in range(0, count, 20):
        thumbnails[i + 1] = thumbnails[i + 2] = thumbnails[i]
    cells = np.where(rng.random(count) < 0.3, rng.integers(0, 2, count), rng.integers(2, 400, count))
    found = _check_against_all_pairs(thumbnails, digests, cells, rng.integers(0, count // 2, count))
    assert found > count


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("equal", [True, False])
def test_of_an_image_twins_in_few_cells_are_named_whatever_their_number(equal, size):
    """So that what is kept grows with the images, not with images times cells."""
    rng, count = np.random.default_rng(10), 40 * size
    thumbnails = _lookalikes(rng, 1 if equal else count, 0.05, 1)[[0] * count if equal else range(count)]
    cells = np.arange(count) // size
    found = list(duplicates.twins(thumbnails, ["x" if equal else str(i) for i in range(count)], cells, np.arange(count)))
    assert len(found) == len({(i, cells[j]) for i, j, _ in found}) == count * (duplicates.MOST + (size > 1))
    own = {i for i, j, _ in found if cells[i] == cells[j]}
    assert all(i != j for i, j, _ in found) and own == (set(range(count)) if size > 1 else set())


def test_small_cells_are_searched_together(monkeypatch):
    rng, count, searches = np.random.default_rng(9), 500, []
    thumbnails, real = _lookalikes(rng, count, 0.1, 250), duplicates._closest
    monkeypatch.setattr(duplicates, "_closest", lambda *given: searches.append(given[3].sum()) or real(*given))
    for cells, expected in ((np.zeros(count, int), [count]), (np.arange(count), [count]), (np.arange(count) // 100, [100] * 5)):
        list(duplicates.twins(thumbnails, [str(i) for i in range(count)], cells, np.arange(count)))
        assert searches == expected
        searches.clear()


def test_images_whose_components_tell_nothing_are_compared_all_the_same(monkeypatch):
    """Most of the images span the components; noise that is orthogonal to them has all its norm in what they leave."""
    monkeypatch.setattr(duplicates, "_FEW", 200)
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.standard_normal((1024, 80)))[0].T
    thumbnails = np.concatenate([rng.standard_normal((1600, 70)) @ basis[:70], rng.standard_normal((400, 10)) @ basis[70:]])
    thumbnails[1800:] = thumbnails[1600:1800] + 0.02 * rng.standard_normal((200, 80)) @ basis
    thumbnails = (thumbnails / np.linalg.norm(thumbnails, axis=1, keepdims=True)).astype(np.float32)
    found = _check_against_all_pairs(thumbnails, [str(i) for i in range(2000)], np.zeros(2000, int), np.arange(2000))
    assert found >= 390


def test_where_all_images_are_alike_each_has_a_twin_and_not_all_pairs_are_compared(monkeypatch):
    monkeypatch.setattr(duplicates, "ENOUGH", 100)
    rng, count = np.random.default_rng(6), 8000
    thumbnails = _lookalikes(rng, count, 0.05, 1)
    compared = []
    real = np.count_nonzero  # twice a block: pairs to compare, and twins among them
    monkeypatch.setattr(duplicates.np, "count_nonzero", lambda x, **axis: compared.append(x.size) or real(x, **axis))
    cells = rng.integers(0, 2, count)
    found = list(duplicates.twins(thumbnails, [str(i) for i in range(count)], cells, np.arange(count)))
    assert {(i, cells[j]) for i, j, _ in found} == {(i, cell) for i in range(count) for cell in (0, 1)}
    assert all(thumbnails[i] @ thumbnails[j] == pytest.approx(c, abs=1e-5) and c > duplicates.NEAR for i, j, c in found[::100])
    assert max(compared) <= 1024 * 512 and sum(compared) / 2 < 2 * count * (duplicates.ENOUGH + 512) < count**2 / 6
