"""Where images are found: the map is that of the score, and the patches beside each other are those that match."""

import numpy as np
import pytest

from fingerprint_jax import estimators
from fingerprint_jax.estimators import Features, local_match
from fingerprint_jax.report import places
from tests.conftest import CONFIGS, fit, load_config
from tests.report.conftest import Elements, pictures, report

SIDE, PATCH, STRIDE = 24, 8, 4


def noise(count: int, seed: int) -> Features:
    return estimators.unlabelled(np.random.default_rng(seed).uniform(0, 1, (count, SIDE, SIDE)).astype(np.float32), 1000 * seed)


@pytest.fixture
def planted():
    """An image whose patch at row 8, column 12 is in image 5 of 30, and that at row 0, column 0 in image 17; 40 others."""
    image, near, far = noise(1, 1).values[0], noise(30, 2), noise(40, 3)
    for k, top, left in ((5, 8, 12), (17, 0, 0)):
        here = np.s_[top : top + PATCH, left : left + PATCH]
        near.values[k][here] = 0.5 * image[here] + 0.1  # another contrast and brightness
    return image, near, far


def test_the_map_is_that_of_the_score(planted):
    image, near, far = planted
    found = places.look(image, near, far, seed=3, patch=PATCH, stride=STRIDE)
    query = estimators.unlabelled(image[None], 0)
    score = local_match.local_match(query, {"generated": near, "reference": far}, seed=3, patch=PATCH, stride=STRIDE, top=1.0)
    assert found.ratio.mean() == pytest.approx(score.item(), abs=1e-3)  # a copy is 0 but for rounding, above which EPSILON stands


def test_the_best_places_are_those_of_the_patches_that_come_back(planted):
    image, near, far = planted
    found = places.look(image, near, far, seed=0, patch=PATCH, stride=STRIDE)
    chosen = places.best(found, SIDE)
    assert [(found.corner(k, SIDE), found.position[k]) for k in chosen[:2]] in (
        [((8, 12), 5), ((0, 0), 17)],
        [((0, 0), 17), ((8, 12), 5)],
    )
    corners = np.array([found.corner(k, SIDE) for k in chosen])
    assert len(chosen) == len(set(found.position[chosen])) == places.SHOWN
    assert all(np.abs(a - b).max() >= PATCH for i, a in enumerate(corners) for b in corners[:i])


def test_pictures_frame_the_place_and_show_both_patches(planted):
    image, near, far = planted
    case = places.Case("title", "asked", image, near, far, [f"image {k}" for k in range(30)])
    drawn = places.section([case], "Words.", 0, patch=PATCH, stride=STRIDE)
    (pair,) = drawn.cases
    mapped, *others = pictures("".join(f'"{picture.uri}"' for picture in pair.pictures))
    scale = places.SIDE / SIDE
    red, blue = (mapped[..., c].astype(int) for c in (0, 2))
    middle = int((8 + PATCH / 2) * scale), int((12 + PATCH / 2) * scale)
    assert red[middle] > blue[middle] + 10  # found among the near ones
    first = next(k for k, picture in enumerate(pair.pictures[1:]) if picture.caption.startswith("image 5,"))
    framed = (others[first] == places.FRAME).all(axis=2)
    rows, columns = np.flatnonzero(framed.any(axis=1)), np.flatnonzero(framed.any(axis=0))
    np.testing.assert_allclose([rows[0], rows[-1], columns[0], columns[-1]], np.array([8, 16, 12, 20]) * scale, atol=2)
    # Below it both patches, enlarged: that of the image, and its own, which has half the contrast.
    below = others[first][places.SIDE + places.GAP :, :, 0].astype(float)
    cell = below.shape[0] / PATCH
    at = (np.arange(PATCH) * cell + cell / 2).astype(int)
    left, right = below[np.ix_(at, at)], below[np.ix_(at, at + below.shape[1] - below.shape[0])]
    np.testing.assert_allclose(left, image[8:16, 12:20] * 255, atol=1)
    np.testing.assert_allclose(right, near.values[5][8:16, 12:20] * 255, atol=1)


def test_two_sides_that_are_alike_have_no_colour():
    image, near = noise(1, 1).values[0], noise(30, 2)
    found = places.look(image, near, near, seed=0, patch=PATCH, stride=STRIDE)
    np.testing.assert_allclose(found.ratio, 0, atol=1e-6)


def compares_patches(path: str) -> bool:
    config = load_config(path)
    inner = config.get("member", config)
    return inner.get("estimator", {}).get("name") in places.BY_PATCHES


@pytest.mark.parametrize("path", [path for path in CONFIGS if compares_patches(path)])
def test_the_page_of_a_run_that_compares_patches_shows_them_unless_redacted(path, data_dir, tmp_path):
    run = fit(path, data_dir, tmp_path / "run")
    text = report(run, "heldout")
    page = Elements(text)
    found = [element for element in page.all("h2") if element["id"] == "where"]
    assert found and not [element for element in page.all("h2") if element["id"] == "pictures"]
    asked = run.rows("heldout").ids.tolist()
    alts = [image["alt"] for image in page.all("img")]
    maps = [alt for alt in alts if "with its map" in alt]
    assert 2 <= len(maps) <= 4 and all(any(f"Image {name} " in alt for name in asked) for alt in maps)
    assert len(alts) > len(maps)
    redacted = Elements(report(run, "heldout", "--redact"))
    assert not redacted.all("img") and "Pictures and file names are left out" in redacted.text
    assert not any(name in redacted.text for name in asked)


def test_estimators_of_patches_are_known_by_name():
    assert set(places.BY_PATCHES) <= set(estimators.registry())
